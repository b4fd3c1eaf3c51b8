"""A city at night, mirrored in a river."""

from __future__ import annotations

import numpy as np

from scenes.render import Look, Scene, Thing
from scenes.sky import clouds
from scenes.solids import (
    Array,
    at,
    ball,
    box,
    mix,
    noise,
    rgb,
    rod,
    step,
    unit,
)

WINDOW = ((0.055, 0.075, 0.30, 0.28), (0.10, 0.060, 0.40, 0.25), (0.040, 0.10, 0.22, 0.38))  # cell width, height, pane


MOON = (0.20, 0.285, -0.93)
RANDOM = np.random.RandomState(21)


TOWERS = [(-0.82, -2.2, 0.26, 2.0, 0), (1.28, -1.9, 0.24, 1.6, 2)] + [
    (
        -2.35 + 0.37 * k + RANDOM.uniform(-0.06, 0.06),
        z + RANDOM.uniform(-0.15, 0.1),
        RANDOM.uniform(0.14, 0.20),
        top * RANDOM.uniform(0.5, 1.15),
        RANDOM.randint(3),
    )
    for z, top in ((-1.45, 0.75), (-2.9, 1.45))
    for k in range(14)
]


def blocks(p: Array) -> Array:
    out = np.full(p.shape[1], 9, dtype=np.float32)
    for x, z, w, h, _ in TOWERS:
        out = np.minimum(out, np.maximum(np.maximum(np.abs(p[0] - x), np.abs(p[2] - z)) - w, p[1] - h))
    return out


def block_look(p: Array) -> Look:
    color, glow = np.zeros_like(p) + rgb(0.03, 0.035, 0.05), np.zeros_like(p)
    for k, (x, z, w, h, style) in enumerate(TOWERS):
        mine = (np.abs(p[0] - x) < w + 0.01) & (np.abs(p[2] - z) < w + 0.01) & (p[1] < h + 0.01)
        front = np.abs(p[2] - z) > w - 0.004
        u = np.where(front, p[0] - x, p[2] - z) / WINDOW[style][0] + 0.5
        v = p[1] / WINDOW[style][1]
        pane = (
            (np.abs(u % 1 - 0.5) < WINDOW[style][2])
            & (np.abs(v % 1 - 0.5) < WINDOW[style][3])
            & (p[1] < h - 0.06)
            & (p[1] > 0.08)
        )
        cell = np.stack([np.floor(u) * 1.37 + k * 5.1, np.floor(v) * 2.11, front * 3.3 + 0.5])
        luck = noise(cell * 3.7)
        warm = mix(rgb(1.0, 0.62, 0.25), rgb(0.75, 0.88, 1.0), step(0.55, 0.7, noise(cell * 1.9 + 9)))
        bright = step(0.50 - 0.06 * (k % 3), 0.62, luck) * (0.4 + 1.1 * noise(cell * 5.3))
        glow = np.where(mine & pane, warm * bright * 0.85, glow)
        roof = mine & (p[1] > h - 0.05) & (k % 4 == 0)
        glow = np.where(roof, rgb(0.25, 0.5, 1.0) * 0.9, glow)
    return Look(color, shine=0.04, gloss=40, glow=glow)


def spires(p: Array) -> Array:
    out = np.minimum(
        rod(p, (-0.82, 2.0, -2.2), (-0.82, 2.75, -2.2), 0.05, 0.006),
        rod(p, (1.28, 1.6, -1.9), (1.28, 2.05, -1.9), 0.014, 0.006),
    )
    return out


def quay(p: Array) -> Array:
    return np.minimum(box(at(p, 0, -0.05, -3.0), 9, 0.09, 2.1), box(at(p, 0, 0.075, -0.93), 9, 0.008, 0.008))


def lamps(p: Array) -> Array:
    q = at(p, 0, 0.14, -0.96)
    q[0] = q[0] - np.round(q[0] / 0.42) * 0.42
    return ball(q, 0.020)


def trees(p: Array) -> Array:
    q = at(p, 0.21, 0.13, -1.10)
    q[0] = q[0] - np.round(q[0] / 0.42) * 0.42
    return (ball(q, 0.085) - 0.05 * noise(p * 18)) * 0.6


def river(p: Array) -> Array:
    swell = noise(p * rgb(2.2, 0, 8)) + 0.55 * noise(p * rgb(5, 0, 19) + 3) + 0.3 * noise(p * rgb(11, 0, 43))
    return (p[1] + 0.12 - 0.016 * swell) * 0.9


def night(d: Array) -> Array:
    color = mix(rgb(0.17, 0.085, 0.10), rgb(0.008, 0.016, 0.055), step(-0.05, 0.42, d[1]))
    near = (d * unit(rgb(*MOON))).sum(0)
    puff = clouds(d, 0.45, 0.6)
    disc = step(0.99935, 0.99945, near) * (1.5 - 0.7 * noise(d * 70))
    halo = 0.06 * np.maximum(near, 0) ** 60 + 0.25 * np.maximum(near, 0) ** 1200
    color = color + rgb(0.12, 0.10, 0.13) * puff * (0.6 + 3 * np.maximum(near, 0) ** 40)
    return color + rgb(0.95, 0.92, 0.80) * (disc * (1 - 0.6 * puff) + halo)


def scene() -> Scene:
    return Scene(
        things=[
            Thing(blocks, block_look),
            Thing(
                spires,
                lambda p: Look(
                    rgb(0.10, 0.10, 0.12), glow=np.where(p[1] > 2.6, rgb(2, 0.1, 0.1), rgb(0.08, 0.10, 0.16))
                ),
            ),
            Thing(quay, lambda p: Look(rgb(0.10, 0.09, 0.08))),
            Thing(lamps, lambda p: Look(rgb(1, 0.8, 0.5), glow=rgb(5.0, 3.2, 1.4))),
            Thing(trees, lambda p: Look(rgb(0.03, 0.06, 0.02), glow=rgb(0.04, 0.035, 0.008))),
            Thing(river, lambda p: Look(rgb(0.004, 0.010, 0.018), shine=0.05, gloss=200)),
        ],
        sky=night,
        eye=(0.2, 0.62, 3.9),
        target=(0.1, 0.78, -1.5),
        fov=40,
        sun=MOON,
        sun_color=(0.20, 0.24, 0.34),
        haze=0.02,
        exposure=1.05,
        bounces=1,
        careful=0.9,
        far=30,
    )
