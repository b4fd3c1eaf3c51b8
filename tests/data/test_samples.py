"""The ten shipped pictures: all there, small, different, described, and drawn by the script that says so."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from labkit.data.samples import DESCRIPTIONS, samples
from labkit.errors import LabkitError
from labkit.paths import DATA

IMAGES = DATA / "images"


def test_ten_pictures_with_a_sentence_each():
    data = samples(96)
    assert data.images.shape == (10, 3, 96, 96) and data.images.dtype == torch.float32
    assert data.images.min() >= 0 and data.images.max() <= 1
    assert len(set(data.names)) == 10 and all(name.endswith(".") and len(name) > 20 for name in data.names)
    assert data[[3]].names == (data.names[3],)


def test_the_folder_holds_exactly_these_and_stays_small():
    assert {path.stem for path in IMAGES.glob("*.jpg")} == set(DESCRIPTIONS)
    assert "CC0" in (IMAGES / "LICENSE.md").read_text(encoding="utf-8")
    for path in IMAGES.glob("*.jpg"):
        assert path.stat().st_size <= 40_000, f"{path.name} is larger than 40 kB"
        with Image.open(path) as image:
            assert image.mode == "RGB" and min(image.size) >= 256 and max(image.size) <= 320


def test_the_pictures_have_contrast_and_differ_from_one_another():
    images = samples(32).images
    assert images.std((1, 2, 3)).min() > 0.08
    distance = torch.cdist(images.flatten(1), images.flatten(1)) / (3 * 32 * 32) ** 0.5
    assert distance[~torch.eye(10, dtype=torch.bool)].min() > 0.15


@pytest.mark.parametrize("name", ["lighthouse", "mug"])
def test_the_script_draws_the_picture_that_ships(name, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(DATA.parent / "tools"), *sys.path])
    from make_images import SCENES
    from scenes.render import render

    assert set(SCENES) == set(DESCRIPTIONS)
    first, second = (render(replace(SCENES[name](), rays=2), size=24) for _ in range(2))
    assert np.array_equal(first, second)
    drawn = torch.from_numpy(first).permute(2, 0, 1)[None] / 255
    shipped = samples(24).images[list(DESCRIPTIONS).index(name)][None]
    assert (F.avg_pool2d(drawn, 4) - F.avg_pool2d(shipped, 4)).abs().mean() < 0.05


def test_a_missing_picture_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(sys.modules["labkit.data.samples"], "DATA", tmp_path)
    with pytest.raises(LabkitError, match=r"images/cat.jpg' is not a file"):
        samples()
