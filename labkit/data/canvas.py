"""Painting for `shapes`: textured grounds and silhouettes, a batch of pictures at a time.

Only additions, products, divisions, square roots and comparisons are used on pixels: IEEE 754 rounds them the same
everywhere, so the pictures can be pinned by a hash. (A sine would differ in its last bit from machine to machine.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labkit.data.dice import Dice
from labkit.data.silhouettes import SPAN, TABLE, silhouettes

Array = NDArray[np.float32]


def _wave(t: Array) -> Array:
    """A triangle wave of period 1 and range [0, 1]: a sine that is the same on every machine."""
    return np.abs(2 * (t - np.floor(t)) - 1)


def _turn(dice: Dice, most: float) -> tuple[Array, Array]:
    """cos and sin of a random angle, through t = tan(angle / 2): up to 45° × `most`, or any angle when `most` > 1."""
    t = dice.uniform(1, low=-0.41421357, high=0.41421357)[:, 0] * np.float32(min(1.0, most))
    cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    quarter = np.floor(dice.uniform(1)[:, 0] * 4) * np.float32(most > 1)
    cos, sin = np.where(quarter % 2 == 1, -sin, cos), np.where(quarter % 2 == 1, cos, sin)
    flip = np.where(quarter >= 2, np.float32(-1), np.float32(1))
    return cos * flip, sin * flip


class Canvas:
    """A batch of pictures with a margin, so that a box around any centre inside the frame can be painted."""

    def __init__(self, dice: Dice, n: int, size: int) -> None:
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
            mix += np.float32(weight) * (rows[:, :, i] + (rows[:, :, i + 1] - rows[:, :, i]) * f[None, None, :])
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
        """One silhouette an image, where `shown`. Whole ones are objects and enter the mask; the others lose a side."""
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
            ((p.astype(np.float32) + np.float32(0.5)) / np.float32(self.size) - at[:, i, None]) / radius[:, None]
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
        dust = self.dice.bytes(self.size * self.size * 3).reshape(self.n, self.size, self.size, 3)
        grain = (dust.astype(np.float32) - np.float32(127.5)) * np.float32(noise / 127.5)
        out = np.clip(self.frame(self.pixels) + grain, 0, 1)
        return (out * 255 + np.float32(0.5)).astype(np.uint8), self.frame(self.mask)


def far_colour(dice: Dice, base: Array, contrast: float) -> Array:
    """The first of eight random colours that is at least `contrast` away from `base`, else the farthest."""
    draws = dice.uniform(8, 3)
    gaps = np.abs(draws - base[:, None]).max(-1)
    far = gaps >= np.float32(contrast)
    pick = np.where(far.any(1), far.argmax(1), gaps.argmax(1))
    return draws[np.arange(len(draws)), pick]
