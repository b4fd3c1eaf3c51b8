"""ImageSet: images, labels, masks and names stay in step."""

from __future__ import annotations

import pytest
import torch

from labkit.data.batch import ImageSet
from labkit.errors import LabkitError


def make(n: int = 6) -> ImageSet:
    values = torch.arange(n)
    images = values.view(n, 1, 1, 1).expand(n, 3, 2, 2).float()
    return ImageSet(images, values, values.view(n, 1, 1).expand(n, 2, 2) > 2, tuple("abcdef"), ("x.png is empty.",))


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (slice(1, 3), [1, 2]),
        ([4, 0, 0], [4, 0, 0]),
        (torch.tensor([5, 1]), [5, 1]),
        (torch.arange(6) > 3, [4, 5]),
        (slice(0, 0), []),
    ],
)
def test_indexing_keeps_everything_in_step(index, rows):
    part = make()[index]
    assert len(part) == len(rows)
    assert part.labels.tolist() == rows
    assert part.images[:, 0, 0, 0].tolist() == rows
    assert part.masks[:, 0, 0].tolist() == [row > 2 for row in rows]
    assert part.names == tuple("abcdef")  # classes keep their names: a label still points at its own


def test_without_labels_the_names_follow_the_images():
    assert ImageSet(torch.zeros(3, 3, 2, 2), names=("a", "b", "c"))[[2, 0]].names == ("c", "a")


def test_a_single_index_is_refused_because_it_would_drop_the_batch():
    with pytest.raises(TypeError, match=r"data\[i:i\+1\]"):
        make()[2]


def test_to_moves_every_tensor():
    moved = make().to("meta")
    assert {moved.images.device.type, moved.labels.device.type, moved.masks.device.type} == {"meta"}


def test_repr_tells_what_is_inside_and_what_was_skipped():
    assert repr(make()) == "ImageSet(6 images of 2×2, 6 classes, masks, 1 skipped, see .skipped)"
    assert repr(ImageSet(torch.zeros(1, 3, 4, 8))) == "ImageSet(1 image of 4×8, no labels)"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_pixels_that_are_no_numbers_are_named(bad):
    images = torch.zeros(3, 3, 4, 4)
    images[1, 2, 0, 0] = bad
    with pytest.raises(LabkitError, match="1 of 3 images hold NaN or infinite pixels, the first is number 1"):
        ImageSet(images)
