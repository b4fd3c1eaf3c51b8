"""Ten pictures that come with labkit, so that every model has something to look at offline.

They look like photographs but were drawn by code (`tools/make_images.py`), so they may be shared freely (CC0).
"""

from __future__ import annotations

import torch

from labkit.data.batch import ImageSet
from labkit.data.picture import read_image
from labkit.errors import LabkitError
from labkit.paths import DATA

DESCRIPTIONS = {
    "cat": "A ginger cat sits on a round rug in front of a sofa.",
    "goldfish": "Three goldfish swim over a sandy pond floor with water weed.",
    "ladybird": "A red ladybird with black spots walks over a green leaf.",
    "daisies": "White daisies with yellow hearts stand in a meadow.",
    "fruit": "Oranges and apples lie in a bowl, grapes and a lemon beside it.",
    "mug": "A blue mug of coffee and a biscuit stand on a wooden table.",
    "balloons": "Four hot-air balloons float over hills and fields.",
    "mountains": "Snowy mountains are mirrored in a lake with fir trees.",
    "lighthouse": "A red and white lighthouse stands on a rocky coast at sunset.",
    "city": "The lit windows of a city at night are mirrored in a river.",
}


def samples(size: int = 224) -> ImageSet:
    """The ten pictures; `names[i]` describes picture i in one sentence."""
    if size < 1:
        raise LabkitError(f"size must be 1 or more, got {size}.")
    files = [DATA / "images" / f"{name}.jpg" for name in DESCRIPTIONS]
    return ImageSet(torch.stack([read_image(file, size) for file in files]), names=tuple(DESCRIPTIONS.values()))
