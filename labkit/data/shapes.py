"""Shapes: a procedural data set with ground truth. One silhouette, anywhere, turned and coloured at random, lies among
textured clutter and clipped pieces of other silhouettes; every image comes with its label and the mask of its object.

Deterministic on any machine: random numbers are a hash (SplitMix64, Steele et al. 2014) of (seed, split, index, slot),
and pixels are made with additions, products, divisions and square roots only, which IEEE 754 rounds the same everywhere.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.data.batch import ImageSet
from labkit.errors import LabkitError, closest

Array = NDArray[np.float32]
Task = Literal["classify", "count", "relate"]
CHUNK = 32  # images painted together; small enough to stay in the cache
CLASSES = ("disc", "ring", "crescent", "triangle", "square", "star", "plus", "heart", "arrow", "zed")
COUNTS = ("two", "three", "four", "five")
SIDES = ("left", "right", "above", "below")
NAMES = {"classify": CLASSES, "count": COUNTS, "relate": SIDES}
SPLITS = {"train": 0, "val": 1, "test": 2}
TABLE = 96  # resolution of a silhouette's distance table, which spans [-1.25, 1.25]²
SPAN = 1.25


# --- silhouettes ------------------------------------------------------------------------------------------------
def _polygon(x: NDArray, y: NDArray, points: list[tuple[float, float]]) -> NDArray:
    """Signed distance to a simple polygon (negative inside): nearest edge, sign by the crossing rule."""
    best, inside = np.full_like(x, np.inf), np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(points, points[1:] + points[:1], strict=True):
        ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
        t = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
        best = np.minimum(best, (px - t * ex) ** 2 + (py - t * ey) ** 2)
        if ey != 0:
            inside ^= ((ay > y) != (by > y)) & (px < ex * py / ey)
    return np.where(inside, -1, 1) * np.sqrt(best)


def _turned(points: int, radius: float, start: float = -90.0) -> list[tuple[float, float]]:
    """Corners of a regular polygon; rounded, so that every machine's cosine gives the same corner."""
    angles = np.deg2rad(start + np.arange(points) * 360 / points)
    return [(round(float(np.cos(a)) * radius, 6), round(float(np.sin(a)) * radius, 6)) for a in angles]


@cache
def silhouettes() -> Array:
    """Signed distance tables (classes, TABLE, TABLE); every silhouette has radius about 1."""
    axis = (np.arange(TABLE) + 0.5) / TABLE * 2 * SPAN - SPAN
    y, x = np.meshgrid(axis, axis, indexing="ij")
    r = np.sqrt(x * x + y * y)
    star = [p for pair in zip(_turned(5, 1.0), _turned(5, 0.42, -54.0), strict=True) for p in pair]
    bars = (np.abs(x) - 0.3, np.abs(y) - 0.95), (np.abs(x) - 0.95, np.abs(y) - 0.3)
    lobes = (
        np.minimum(np.sqrt((x - 0.42) ** 2 + (y + 0.3) ** 2), np.sqrt((x + 0.42) ** 2 + (y + 0.3) ** 2))
        - 0.47
    )
    arrow = [(0, -1.0), (0.8, -0.1), (0.3, -0.1), (0.3, 0.95), (-0.3, 0.95), (-0.3, -0.1), (-0.8, -0.1)]
    zed = [(-0.75, -0.9), (0.75, -0.9), (0.75, -0.5), (-0.1, 0.5), (0.75, 0.5), (0.75, 0.9), (-0.75, 0.9)]
    zed += [(-0.75, 0.5), (0.1, -0.5), (-0.75, -0.5)]
    tables = {
        "disc": r - 0.88,
        "ring": np.abs(r - 0.74) - 0.22,
        "crescent": np.maximum(r - 0.95, 0.75 - np.sqrt((x - 0.5) ** 2 + y * y)),
        "triangle": _polygon(x, y, _turned(3, 1.1)),
        "square": _polygon(x, y, _turned(4, 1.08, -45.0)),
        "star": _polygon(x, y, [(1.15 * a, 1.15 * b) for a, b in star]),
        "plus": np.minimum(*(np.maximum(a, b) for a, b in bars)),
        "heart": np.minimum(lobes, _polygon(x, y, [(-0.86, -0.13), (0.86, -0.13), (0.0, 0.95)])),
        "arrow": _polygon(x, y, arrow),
        "zed": _polygon(x, y, zed),
    }
    return np.stack([tables[name] for name in CLASSES]).astype(np.float32)


# --- random numbers ---------------------------------------------------------------------------------------------
def _hash(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64: a bijection of 64-bit integers whose output passes as random."""
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class _Dice:
    """Uniform numbers for a batch of images; each call takes the next slots of every image's own stream."""

    def __init__(self, seed: int, split: int, index: NDArray[np.int64]) -> None:
        key = _hash(np.array([seed * 4 + split], np.uint64))
        self.streams, self.slot = _hash(key ^ index.astype(np.uint64)), 0

    def bits(self, count: int) -> NDArray[np.uint64]:
        slots = np.arange(self.slot, self.slot + count, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95)
        self.slot += count
        return _hash(self.streams[:, None] + slots)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Array:
        u = (self.bits(int(np.prod(shape))) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
        return np.float32(low) + np.float32(high - low) * u.reshape(len(u), *shape)

    def bytes(self, count: int) -> NDArray[np.uint8]:
        return self.bits(-(-count // 8)).astype("<u8").view(np.uint8)[:, :count]


# --- painting ---------------------------------------------------------------------------------------------------
def _wave(t: Array) -> Array:
    """A triangle wave of period 1 and range [0, 1]: a sine that is the same on every machine."""
    return np.abs(2 * (t - np.floor(t)) - 1)


def _turn(dice: _Dice, most: float) -> tuple[Array, Array]:
    """cos and sin of a random angle, through t = tan(angle / 2): up to 45° × `most`, or any angle when `most` > 1."""
    t = dice.uniform(1, low=-0.41421357, high=0.41421357)[:, 0] * np.float32(min(1.0, most))
    cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    quarter = np.floor(dice.uniform(1)[:, 0] * 4) * np.float32(most > 1)
    cos, sin = np.where(quarter % 2 == 1, -sin, cos), np.where(quarter % 2 == 1, cos, sin)
    flip = np.where(quarter >= 2, np.float32(-1), np.float32(1))
    return cos * flip, sin * flip


class _Canvas:
    """A batch of pictures with a margin, so that a box around any centre inside the frame can be painted."""

    def __init__(self, dice: _Dice, n: int, size: int) -> None:
        self.dice, self.n, self.size, self.margin = dice, n, size, int(size * 0.3) + 2
        self.pixels = np.zeros((n, size + 2 * self.margin, size + 2 * self.margin, 3), np.float32)
        self.mask = np.zeros(self.pixels.shape[:3], bool)

    def frame(self, array: NDArray) -> NDArray:
        return array[:, self.margin : -self.margin, self.margin : -self.margin]

    def background(self, contrast: float) -> Array:
        """Two colours mixed by noise at three scales and a slanted grating; returns the mean colour."""
        dice, n, axis = (
            self.dice,
            self.n,
            (np.arange(self.size, dtype=np.float32) + 0.5) / np.float32(self.size),
        )
        base = dice.uniform(3, low=0.15, high=0.85)
        swing = dice.uniform(3, low=-1, high=1) * np.float32(0.35 * contrast)
        mix = np.zeros((n, self.size, self.size), np.float32)
        for cells, weight in ((3, 0.5), (6, 0.3), (12, 0.2)):
            noise, at = dice.uniform(cells + 1, cells + 1, low=-1, high=1), axis * np.float32(cells)
            i, f = at.astype(np.int64), at - np.floor(at)
            rows = noise[:, i] + (noise[:, i + 1] - noise[:, i]) * f[None, :, None]
            mix += np.float32(weight) * (
                rows[:, :, i] + (rows[:, :, i + 1] - rows[:, :, i]) * f[None, None, :]
            )
        cos, sin = _turn(dice, 2.0)
        slant = axis[None, :, None] * sin[:, None, None] + axis[None, None, :] * cos[:, None, None]
        grating = _wave(slant * dice.uniform(1, 1, low=3.0, high=9.0) + 9) - np.float32(0.5)
        mix += grating * dice.uniform(1, 1, low=0.0, high=1.2)
        self.frame(self.pixels)[...] = base[:, None, None] + mix[..., None] * swing[:, None, None]
        return base

    def paint(
        self,
        kind: NDArray,
        at: Array,
        radius: Array,
        turn: float,
        colour: Array,
        shown: NDArray,
        largest: float,
        whole: bool,
    ) -> None:
        """One silhouette an image, where `shown`, of radius up to `largest`. Whole ones enter the mask; the others lose a side."""
        dice, rows = self.dice, np.flatnonzero(shown)
        cos, sin = _turn(dice, turn)
        cut = dice.uniform(1, 1, low=-0.35, high=0.35)
        depth = np.float32(0.35) * (dice.uniform(1, 1) < np.float32(0.3))  # three in ten are striped
        stripes = dice.uniform(1, 1, low=1.2, high=2.2)
        kind, at, radius, colour, cut, depth, stripes = (
            a[rows] for a in (kind, at, radius, colour, cut, depth, stripes)
        )
        cos, sin = cos[rows, None, None], sin[rows, None, None]
        side = int(2.4 * largest * self.size) + 2
        corner = np.floor(at * np.float32(self.size)).astype(np.int64) - side // 2  # of the box, in the frame
        xs, ys = corner[:, 0, None] + np.arange(side), corner[:, 1, None] + np.arange(side)
        dx, dy = (
            ((p.astype(np.float32) + np.float32(0.5)) / np.float32(self.size) - at[:, i, None])
            / radius[:, None]
            for i, p in enumerate((xs, ys))
        )
        u = dx[:, None, :] * cos + dy[:, :, None] * sin
        v = dy[:, :, None] * cos - dx[:, None, :] * sin
        scale = np.float32(TABLE / (2 * SPAN))
        col, row = (np.clip((w + np.float32(SPAN)) * scale, 0, TABLE - 1).astype(np.int64) for w in (u, v))
        distance = silhouettes().reshape(-1)[(kind[:, None, None] * TABLE + row) * TABLE + col]
        if not whole:
            distance = np.maximum(distance, u - cut)
        alpha = np.clip(np.float32(0.5) - distance * (radius * np.float32(self.size))[:, None, None], 0, 1)
        shade = 1 - depth * (_wave(v * stripes + 9) > np.float32(0.5))
        box = (rows[:, None, None], ys[:, :, None] + self.margin, xs[:, None, :] + self.margin)
        under = self.pixels[box]
        self.pixels[box] = under + alpha[..., None] * (colour[:, None, None] * shade[..., None] - under)
        if whole:
            self.mask[box] |= alpha > np.float32(0.5)

    def finish(self, noise: float) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        grain = self.dice.bytes(self.size * self.size * 3).reshape(self.n, self.size, self.size, 3)
        grain = (grain.astype(np.float32) - np.float32(127.5)) * np.float32(noise / 127.5)
        out = np.clip(self.frame(self.pixels) + grain, 0, 1)
        return (out * 255 + np.float32(0.5)).astype(np.uint8), self.frame(self.mask)


def _far_colour(dice: _Dice, base: Array, contrast: float) -> Array:
    """The first of eight random colours that is at least `contrast` away from `base`, else the farthest."""
    draws = dice.uniform(8, 3)
    gaps = np.abs(draws - base[:, None]).max(-1)
    far = gaps >= np.float32(contrast)
    pick = np.where(far.any(1), far.argmax(1), gaps.argmax(1))
    return draws[np.arange(len(draws)), pick]


# --- scenes -----------------------------------------------------------------------------------------------------
def _kinds(dice: _Dice) -> NDArray[np.int64]:
    return (dice.uniform(1)[:, 0] * len(CLASSES)).astype(np.int64)


def _place(
    task: Task, dice: _Dice
) -> tuple[NDArray[np.int64], list[tuple[NDArray[np.int64], Array, Array, Array]]]:
    """Labels, and the objects of the scene: (kind, centre, radius, shown) each, one row an image."""
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
    offset = np.where(
        (label < 2)[:, None], np.stack([sign * along, across], 1), np.stack([across, sign * along], 1)
    )
    reach = np.abs(offset) + np.float32(0.14)
    middle = reach + dice.uniform(2) * (1 - 2 * reach)
    disc, star = (np.full(n, CLASSES.index(name)) for name in ("disc", "star"))
    radii = dice.uniform(2, low=0.11, high=0.14)
    return label, [(disc, middle - offset, radii[:, 0], here), (star, middle + offset, radii[:, 1], here)]


def _draw(
    task: Task, dice: _Dice, size: int, d: float
) -> tuple[NDArray[np.uint8], NDArray, NDArray[np.bool_]]:
    """Pixels (n, size, size, 3), labels and masks of one chunk at difficulty `d`."""
    n = len(dice.streams)
    canvas = _Canvas(dice, n, size)
    base = canvas.background(0.25 + 0.75 * d)
    for _ in range(10):  # fragments, 6 of them on average at difficulty 1
        kind, at, radius = _kinds(dice), dice.uniform(2), dice.uniform(1, low=0.08, high=0.17)[:, 0]
        shown = dice.uniform(1)[:, 0] < np.float32(0.6 * d)
        canvas.paint(kind, at, radius, 2.0, dice.uniform(3), shown, 0.17, whole=False)
    label, objects = _place(task, dice)
    colour = _far_colour(dice, base, 0.55 - 0.25 * d)
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
        raise LabkitError(
            f'The split "{split}" is unknown; choose one of {", ".join(SPLITS)}.{closest(split, SPLITS)}'
        )
    if task not in get_args(Task):
        raise LabkitError(
            f'The task "{task}" is unknown; choose one of {", ".join(NAMES)}.{closest(task, NAMES)}'
        )
    if n < 1 or start < 0 or seed < 0:
        raise LabkitError(
            f"n={n}, start={start}, seed={seed}: expected n of at least 1, start and seed of at least 0."
        )
    if not 16 <= size <= 1024 or not 0 <= difficulty <= 2:
        raise LabkitError(
            f"size={size}, difficulty={difficulty}: expected a size of 16 to 1024, difficulty of 0 to 2."
        )
    pixels, labels, masks = (
        np.empty((n, size, size, 3), np.uint8),
        np.empty(n, np.int64),
        np.empty((n, size, size), bool),
    )
    for first in range(0, n, CHUNK):
        part = slice(first, min(first + CHUNK, n))
        dice = _Dice(seed, SPLITS[split], np.arange(start + part.start, start + part.stop))
        pixels[part], labels[part], masks[part] = _draw(task, dice, size, difficulty)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return ImageSet(images, torch.from_numpy(labels), torch.from_numpy(masks), NAMES[task])
