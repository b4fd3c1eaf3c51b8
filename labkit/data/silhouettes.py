"""The ten silhouettes of `shapes`, as tables of signed distance: negative inside, in units of the radius."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

CLASSES = ("disc", "ring", "crescent", "triangle", "square", "star", "plus", "heart", "arrow", "zed")
TABLE = 96  # resolution of a table, which spans [-SPAN, SPAN]²
SPAN = 1.25


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
def silhouettes() -> NDArray[np.float32]:
    """Signed distance tables (classes, TABLE, TABLE); every silhouette has radius about 1."""
    axis = (np.arange(TABLE) + 0.5) / TABLE * 2 * SPAN - SPAN
    y, x = np.meshgrid(axis, axis, indexing="ij")
    r = np.sqrt(x * x + y * y)
    star = [p for pair in zip(_turned(5, 1.0), _turned(5, 0.42, -54.0), strict=True) for p in pair]
    bars = (np.abs(x) - 0.3, np.abs(y) - 0.95), (np.abs(x) - 0.95, np.abs(y) - 0.3)
    lobes = np.minimum(np.sqrt((x - 0.42) ** 2 + (y + 0.3) ** 2), np.sqrt((x + 0.42) ** 2 + (y + 0.3) ** 2)) - 0.47
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
