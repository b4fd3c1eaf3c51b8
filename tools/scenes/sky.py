"""The sky by day, with clouds."""

from __future__ import annotations

import numpy as np

from scenes.solids import Array, fractal, mix, noise, rgb, step, unit


def clouds(d: Array, cover: float, scale: float = 1.0) -> Array:
    """How much cloud lies in each direction, 0 to 1: a flat layer seen from below."""
    up = np.maximum(d[1], 0.02)
    q = np.stack([d[0] / up, np.full_like(up, 3.7), d[2] / up]) * scale
    q = q + 0.6 * noise(q * 0.7)
    return step(1 - cover, 1.35 - cover, fractal(q, 5)) * step(0.02, 0.22, d[1])


def blue(d: Array, sun: tuple, cover: float = 0.45, scale: float = 1.0) -> Array:
    color = mix(rgb(0.55, 0.74, 0.95), rgb(0.06, 0.20, 0.58), step(-0.08, 0.65, d[1]))
    warm = np.maximum((d * unit(rgb(*sun))).sum(0), 0)
    color = color + rgb(1.0, 0.75, 0.45) * (0.25 * warm**6)
    puff = clouds(d, cover, scale)
    return mix(color, rgb(1.05, 1.02, 1.0) - 0.25 * puff * rgb(1, 0.9, 0.75), 0.9 * puff)
