"""A room to put things in: light from a window, boards of wood."""

from __future__ import annotations

import numpy as np

from scenes.solids import Array, fractal, mix, noise, rgb, step


def wood(p: Array, dark: Array, light: Array, plank: float) -> Array:
    """Boards along x, each cut from another tree."""
    board = np.floor(p[2] / plank)
    q = np.stack([p[0] * 0.6 + board * 7.3, p[1] * 4 + board * 3.1, p[2] * 4 + board * 1.7])
    bend = fractal(q, 3)
    rings = 0.5 + 0.5 * np.sin(26 * (bend + 0.25 * q[2]))
    fiber = noise(np.stack([p[0] * 5 + board, p[1] * 60, p[2] * 90]))
    tone = 0.55 * rings + 0.45 * fiber
    gap = np.abs(p[2] / plank - np.round(p[2] / plank)) * plank
    return (
        mix(dark, light, tone) * (0.35 + 0.65 * step(0.0, 0.012, gap)) * (0.8 + 0.4 * noise(rgb(1, 1, 1) * board * 5.7))
    )


def room(d: Array) -> Array:
    """A dim warm room with one tall window at the left."""
    wall = mix(rgb(0.20, 0.15, 0.11), rgb(0.42, 0.36, 0.30), step(-0.6, 0.9, d[1]))
    u, v = d[2] / np.maximum(-d[0], 1e-3), d[1] / np.maximum(-d[0], 1e-3)
    pane = step(1.02, 0.95, np.abs(u)) * step(0.1, 0.16, v) * step(1.75, 1.65, v) * (d[0] < 0)
    bars = 1 - step(0.05, 0.03, np.abs(u)) - step(0.05, 0.03, np.abs(v - 0.85))
    return wall + rgb(3.4, 3.9, 4.6) * pane * np.clip(bars, 0, 1)
