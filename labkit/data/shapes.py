"""Shapes: a procedural data set with ground truth. One silhouette, anywhere, turned and coloured at random, lies among
textured clutter and clipped pieces of other silhouettes; every image comes with its label and the mask of its object.

An image depends on (seed, split, index) alone and is the same on any machine; a test pins the pixels.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.data.batch import ImageSet
from labkit.data.canvas import Array, Canvas, far_colour
from labkit.data.dice import Dice
from labkit.data.silhouettes import CLASSES
from labkit.errors import LabkitError, closest

Task = Literal["classify", "count", "relate"]
Thing = tuple[NDArray[np.int64], Array, Array, NDArray[np.bool_]]  # kind, centre, radius, shown: one row an image
COUNTS = ("two", "three", "four", "five")
SIDES = ("left", "right", "above", "below")
NAMES = {"classify": CLASSES, "count": COUNTS, "relate": SIDES}
SPLITS = {"train": 0, "val": 1, "test": 2}
CHUNK = 32  # images painted together; small enough to stay in the cache


def _kinds(dice: Dice) -> NDArray[np.int64]:
    return (dice.uniform(1)[:, 0] * len(CLASSES)).astype(np.int64)


def _place(task: Task, dice: Dice) -> tuple[NDArray[np.int64], list[Thing]]:
    """Labels, and the objects of the scene."""
    n = len(dice.streams)
    here = np.ones(n, bool)
    if task == "classify":
        kind, radius = _kinds(dice), dice.uniform(1, low=0.17, high=0.24)[:, 0]
        at = radius[:, None] + dice.uniform(2) * (1 - 2 * radius[:, None])
        return kind, [(kind, at, radius, here)]
    if task == "count":  # up to five copies, each in a cell of its own of a 3×3 board
        kind, label = _kinds(dice), (dice.uniform(1)[:, 0] * len(COUNTS)).astype(np.int64)
        cells = np.argsort(dice.uniform(9), axis=1, kind="stable")
        copies = []
        for slot in range(5):
            corner = np.stack([cells[:, slot] % 3, cells[:, slot] // 3], 1).astype(np.float32)
            at = (corner + dice.uniform(2, low=0.4, high=0.6)) / np.float32(3)
            copies.append((kind, at, dice.uniform(1, low=0.1, high=0.13)[:, 0], slot < label + 2))
        return label, copies
    # relate: on which side of the disc does the star lie?
    label = (dice.uniform(1)[:, 0] * len(SIDES)).astype(np.int64)
    along, across = dice.uniform(1, low=0.18, high=0.3)[:, 0], dice.uniform(1, low=-0.15, high=0.15)[:, 0]
    sign = np.where(label % 2 == 0, np.float32(-1), np.float32(1))
    offset = np.where((label < 2)[:, None], np.stack([sign * along, across], 1), np.stack([across, sign * along], 1))
    reach = np.abs(offset) + np.float32(0.14)
    middle = reach + dice.uniform(2) * (1 - 2 * reach)
    disc, star = (np.full(n, CLASSES.index(name)) for name in ("disc", "star"))
    radii = dice.uniform(2, low=0.11, high=0.14)
    return label, [(disc, middle - offset, radii[:, 0], here), (star, middle + offset, radii[:, 1], here)]


def _draw(task: Task, dice: Dice, size: int, d: float) -> tuple[NDArray[np.uint8], NDArray, NDArray[np.bool_]]:
    """Pixels (n, size, size, 3), labels and masks of one chunk at difficulty `d`."""
    n = len(dice.streams)
    canvas = Canvas(dice, n, size)
    base = canvas.background(0.25 + 0.75 * d)
    for _ in range(10):  # fragments, 6 of them on average at difficulty 1
        kind, at, radius = _kinds(dice), dice.uniform(2), dice.uniform(1, low=0.08, high=0.17)[:, 0]
        shown = dice.uniform(1)[:, 0] < np.float32(0.6 * d)
        canvas.paint(kind, at, radius, 2.0, dice.uniform(3), shown, 0.17, whole=False)
    label, objects = _place(task, dice)
    colour = far_colour(dice, base, 0.55 - 0.25 * d)
    for kind, at, radius, shown in objects:
        canvas.paint(kind, at, radius, 0.5 * d, colour, shown, 0.24, whole=True)
    pixels, masks = canvas.finish(0.02 + 0.06 * d)
    return pixels, label, masks


def shapes(
    split: str = "train",
    n: int = 1000,
    size: int = 64,
    seed: int = 0,
    *,
    task: Task = "classify",
    difficulty: float = 1.0,
    start: int = 0,
) -> ImageSet:
    """Images `start` to `start + n` of the endless series (seed, split), with labels and object masks.

    `classify`: which silhouette? `count`: how many copies? `relate`: on which side of the disc is the star?
    `difficulty` from 0 (plain, upright, clean) over 1 (the set that ships) to 2 turns contrast, clutter, rotation
    and noise together; the scene of an index stays the same, also when `size` changes.
    """
    if split not in SPLITS:
        raise LabkitError(f'The split "{split}" is unknown; choose one of {", ".join(SPLITS)}.{closest(split, SPLITS)}')
    if task not in get_args(Task):
        raise LabkitError(f'The task "{task}" is unknown; choose one of {", ".join(NAMES)}.{closest(task, NAMES)}')
    if n < 1 or start < 0 or seed < 0:
        raise LabkitError(f"n={n}, start={start}, seed={seed}: expected n of at least 1, start and seed of at least 0.")
    if not 16 <= size <= 1024 or not 0 <= difficulty <= 2:
        raise LabkitError(f"size={size}, difficulty={difficulty}: expected a size of 16 to 1024, difficulty of 0 to 2.")
    pixels, labels, masks = (
        np.empty((n, size, size, 3), np.uint8),
        np.empty(n, np.int64),
        np.empty((n, size, size), bool),
    )
    for first in range(0, n, CHUNK):
        part = slice(first, min(first + CHUNK, n))
        dice = Dice(seed, SPLITS[split], np.arange(start + part.start, start + part.stop))
        pixels[part], labels[part], masks[part] = _draw(task, dice, size, difficulty)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return ImageSet(images, torch.from_numpy(labels), torch.from_numpy(masks), NAMES[task])
