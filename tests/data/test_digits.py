"""The digits: the same split for everybody, nothing in two splits, ink where the mask says."""

from __future__ import annotations

import hashlib

import pytest
import torch

from labkit.data.digits import digits
from labkit.errors import LabkitError

VAL_HASH = "aef57afdfc309c552dd16523ca6b4f6d50e7b41568ba260c1f44a4204ad3cfcf"


def test_the_split_is_fixed():
    train, val = digits("train", size=8), digits("val", size=8)
    assert train.labels.bincount().tolist() == [142, 146, 142, 146, 145, 146, 145, 143, 139, 144]
    assert val.labels.bincount().tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    originals = (val.images[:, 0] * 16).round().to(torch.uint8)
    assert hashlib.sha256(originals.numpy().tobytes() + val.labels.numpy().tobytes()).hexdigest() == VAL_HASH


def test_splits_are_disjoint_and_complete():
    def rows(split: str) -> list[bytes]:
        return [image.numpy().tobytes() for image in digits(split, size=8, seed=3).images[:, 0]]

    train, val, everything = rows("train"), rows("val"), rows("all")
    assert len(set(everything)) == 1797 == len(everything)  # no two digits are equal, so bytes identify them
    assert not set(train) & set(val)
    assert set(train) | set(val) == set(everything)


def test_another_seed_holds_out_other_digits():
    assert not torch.equal(digits("val", size=8, seed=0).images, digits("val", size=8, seed=1).images)


def test_images_are_smooth_enlargements_with_ink_masks():
    small, large = digits("val", size=8), digits("val", size=32)
    assert large.images.shape == (359, 3, 32, 32) and large.images.dtype == torch.float32
    assert large.images.min() >= 0 and large.images.max() <= 1
    assert large.masks.shape == (359, 32, 32) and large.masks.dtype == torch.bool
    assert torch.equal(large.images[:, 0], large.images[:, 2])
    back = torch.nn.functional.avg_pool2d(large.images, 4)
    assert (back - small.images).abs().mean() < 0.05
    ink, paper = large.images[:, 0][large.masks], large.images[:, 0][~large.masks]
    assert ink.min() > paper.max() and 0.2 < large.masks.float().mean() < 0.4


def test_bad_input_is_answered_in_one_sentence(monkeypatch):
    with pytest.raises(LabkitError, match=r'"train", "val" and "all".*Did you mean "val"'):
        digits("vall")
    with pytest.raises(LabkitError, match="size=8 or more"):
        digits(size=4)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LabkitError, match="pip install scikit-learn"):
        digits()
