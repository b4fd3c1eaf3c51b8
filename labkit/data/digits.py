"""Real handwriting that needs no download: scikit-learn's 1,797 digits, made large enough for a transformer.

The originals have 8×8 pixels of 17 grey levels, from 13 writers ("Optical Recognition of Handwritten Digits",
Alpaydin and Kaynak, 1998, UCI repository, CC BY 4.0). White ink on black; the mask is the ink.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import repeat

from labkit.data.batch import ImageSet
from labkit.errors import LabkitError, closest

SPLITS = ("train", "val", "all")
INK = 0.5  # a pixel at least this bright belongs to the stroke


def digits(split: str = "train", size: int = 32, seed: int = 0) -> ImageSet:
    """Handwritten digits 0 to 9: 1,438 to train on, 359 held out, the same share of each digit in both.

    `seed` chooses which digits are held out; the images of "train" and "val" with one seed never overlap.
    """
    if split not in SPLITS:
        raise LabkitError(f'There is no split "{split}": digits has "train", "val" and "all".{closest(split, SPLITS)}')
    if size < 8:
        raise LabkitError(f"The digits are 8 pixels wide and cannot be shrunk to {size}: choose size=8 or more.")
    raw, labels = _load()
    rows = torch.from_numpy(_rows(labels, split, seed))
    small = torch.from_numpy(raw)[rows].float() / 16
    gray = F.interpolate(small[:, None], size=(size, size), mode="bicubic").clamp(0, 1)
    return ImageSet(
        images=repeat(gray, "n 1 h w -> n 3 h w").contiguous(),
        labels=torch.from_numpy(labels)[rows],
        masks=gray[:, 0] > INK,
        names=tuple("0123456789"),
    )


def _rows(labels: np.ndarray, split: str, seed: int) -> np.ndarray:
    """Row numbers of a split, in the original order: a fifth of each digit, chosen at random, is held out."""
    # RandomState rather than default_rng: numpy promises that its stream never changes.
    random = np.random.RandomState(seed)
    held_out = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        rows = random.permutation(np.flatnonzero(labels == digit))
        held_out[rows[: round(len(rows) / 5)]] = True
    return np.flatnonzero({"train": ~held_out, "val": held_out, "all": held_out | ~held_out}[split])


def _load() -> tuple[np.ndarray, np.ndarray]:
    """The table inside scikit-learn; importing all of it would take two seconds."""
    found = importlib.util.find_spec("sklearn")
    table = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz" if found and found.origin else None
    if table is None or not table.is_file():
        raise LabkitError("The digits come with scikit-learn, which is not installed: run `pip install scikit-learn`.")
    rows = np.loadtxt(table, delimiter=",")
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)
