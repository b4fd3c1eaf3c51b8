"""The procedural set: the same pixels on every machine, true masks, fair controls, one sentence for bad input."""

from __future__ import annotations

import hashlib
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from labkit.data import shapes
from labkit.data.shapes import CLASSES, SIDES
from labkit.data.silhouettes import silhouettes
from labkit.errors import LabkitError


def digest(data):
    pixels = (data.images * 255).round().byte().numpy().tobytes() + data.masks.numpy().tobytes()
    return hashlib.sha256(pixels + data.labels.numpy().tobytes()).hexdigest()[:16]


PINNED = {
    ("train", 64, "classify", 1.0): "b82e455c82bf4d7f",
    ("test", 64, "classify", 1.0): "47f43734c2bacacc",
    ("val", 96, "classify", 2.0): "332865e3c2bdec2a",
    ("val", 64, "count", 1.0): "023228f5b89da06e",
    ("val", 64, "relate", 1.0): "f4f181d3f3938602",
}


@pytest.mark.parametrize("key", PINNED, ids=str)
def test_pixels_are_pinned(key):
    split, size, task, difficulty = key
    assert digest(shapes(split, 40, size, task=task, difficulty=difficulty)) == PINNED[key]


@pytest.mark.parametrize("task", ["classify", "count", "relate"])
def test_an_image_depends_on_its_index_alone(task):
    whole = shapes("val", 70, task=task, difficulty=1.5)
    for start, n in ((5, 3), (31, 39), (69, 1)):
        part = shapes("val", n, task=task, difficulty=1.5, start=start)
        for a, b in zip((part.images, part.labels, part.masks), (whole.images, whole.labels, whole.masks), strict=True):
            assert torch.equal(a, b[start : start + n])


def test_splits_and_seeds_differ():
    sets = [shapes(split, 4, seed=seed).images for split, seed in product(("train", "val", "test"), (0, 1))]
    for i, a in enumerate(sets):
        assert all((a - b).abs().mean() > 0.02 for b in sets[i + 1 :])


def test_what_comes_back():
    data = shapes("val", 33, size=48)
    assert data.images.shape == (33, 3, 48, 48) and data.images.dtype == torch.float32
    assert data.images.min() >= 0 and data.images.max() <= 1
    assert data.masks.shape == (33, 48, 48) and data.masks.dtype == torch.bool
    assert data.labels.dtype == torch.int64 and data.names == CLASSES


def test_classes_are_balanced_and_every_image_has_an_object_inside_the_frame():
    data = shapes("train", 2000)
    counts = torch.bincount(data.labels, minlength=len(CLASSES))
    assert (counts - 200).abs().max() < 5 * (2000 * 0.1 * 0.9) ** 0.5
    area = data.masks.float().mean((1, 2))
    assert area.min() > 0.02 and area.max() < 0.2
    border = torch.ones(64, 64, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert (data.masks & border).any((1, 2)).float().mean() < 0.1


def test_masks_are_where_the_object_is():
    """Without clutter and noise the mask separates object from background: the object's colour is far from it."""
    data = shapes("val", 200, difficulty=0)
    colour = (data.images * data.masks[:, None]).sum((2, 3)) / data.masks.sum((1, 2))[:, None]
    to_object = (data.images - colour[..., None, None]).abs().amax(1)
    inside = (to_object * data.masks).sum((1, 2)) / data.masks.sum((1, 2))
    outside = (to_object * ~data.masks).sum((1, 2)) / (~data.masks).sum((1, 2))
    assert (inside < outside).float().mean() > 0.98


def test_the_centre_is_not_a_hint():
    """Pointing at the centre hits the object in far fewer images than half, pointing at random in fewer still."""
    covered = F.avg_pool2d(shapes("val", 2000).masks.float()[:, None], 8)[:, 0] >= 0.25
    centre = covered[:, 3:5, 3:5].float().mean()
    assert covered.float().mean() < centre < 0.4


def test_difficulty_turns_the_signal_down():
    easy, normal, hard = (shapes("val", 300, difficulty=d) for d in (0, 1, 2))
    assert torch.equal(easy.labels, normal.labels) and torch.equal(easy.labels, hard.labels)

    def roughness(data):
        return (data.images.diff(dim=3).abs() * ~data.masks[:, None, :, 1:]).mean()

    assert roughness(easy) < roughness(normal) < roughness(hard)


def test_a_larger_size_shows_the_same_scene():
    small, large = shapes("val", 50), shapes("val", 50, size=128)
    assert torch.equal(small.labels, large.labels)
    shrunk = F.avg_pool2d(large.masks.float()[:, None], 2)[:, 0] > 0.5
    overlap = (shrunk & small.masks).sum((1, 2)) / (shrunk | small.masks).sum((1, 2))
    assert overlap.min() > 0.8


def _pieces(mask):
    """Number of 4-connected pieces of a mask, by flooding."""
    left, pieces = mask.clone(), 0
    while left.any():
        flood = torch.zeros_like(left)
        flood.view(-1)[int(left.view(-1).nonzero()[0])] = True
        while True:
            grown = F.max_pool2d(flood[None, None].float(), 3, 1, 1)[0, 0].bool() & left
            if torch.equal(grown, flood):
                break
            flood = grown
        left, pieces = left & ~flood, pieces + 1
    return pieces


def test_count_labels_count_the_copies():
    data = shapes("val", 40, task="count")
    assert [_pieces(m) for m in data.masks] == [int(label) + 2 for label in data.labels]


def test_relate_labels_say_where_the_star_lies():
    """The star is the piece that fills less of its own bounding box's disc: compare the two pieces' solidity."""
    data = shapes("val", 60, task="relate", difficulty=0)
    for mask, label in zip(data.masks, data.labels, strict=True):
        assert _pieces(mask) == 2
        first = torch.zeros_like(mask)
        first.view(-1)[int(mask.view(-1).nonzero()[0])] = True
        for _ in range(64):
            first = F.max_pool2d(first[None, None].float(), 3, 1, 1)[0, 0].bool() & mask
        pieces = []
        for part in (first, mask & ~first):
            y, x = part.nonzero(as_tuple=True)
            box = (y.max() - y.min() + 1) * (x.max() - x.min() + 1)
            pieces.append((part.sum() / box, x.float().mean(), y.float().mean()))
        star, disc = sorted(pieces, key=lambda p: p[0])
        dx, dy = star[1] - disc[1], star[2] - disc[2]
        said = ("left" if dx < 0 else "right") if dx.abs() > dy.abs() else ("above" if dy < 0 else "below")
        assert said == SIDES[label]


def test_silhouettes_are_ten_different_solid_shapes():
    inside = silhouettes() < 0
    assert inside.shape[0] == len(CLASSES) and (inside.mean((1, 2)) > 0.1).all()
    for i, j in product(range(len(CLASSES)), repeat=2):
        if i < j:
            assert (inside[i] & inside[j]).sum() / (inside[i] | inside[j]).sum() < 0.9


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"split": "vall"}, 'Did you mean "val"'),
        ({"task": "counts"}, 'Did you mean "count"'),
        ({"n": 0}, "n of at least 1"),
        ({"size": 8}, "size of 16 to 1024"),
        ({"difficulty": 3}, "difficulty of 0 to 2"),
        ({"seed": -1}, "seed of at least 0"),
    ],
)
def test_bad_input_is_one_sentence(arguments, said):
    with pytest.raises(LabkitError, match=said):
        shapes(**{"split": "val", "n": 2} | arguments)
