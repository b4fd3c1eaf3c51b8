"""Mountains mirrored in a lake."""

from __future__ import annotations

from functools import cache

import numpy as np

from scenes.render import Look, Scene, Thing
from scenes.sky import blue
from scenes.solids import (
    Array,
    at,
    egg,
    fractal,
    join,
    mix,
    noise,
    rgb,
    step,
)

SUN = (-0.75, 0.42, 0.35)
RANDOM = np.random.RandomState(8)


FIRS = [
    (x + 0.24 * k + RANDOM.uniform(-0.08, 0.08), z + RANDOM.uniform(-0.3, 0.3), top * RANDOM.uniform(0.6, 1.15))
    for x, z, top, count in ((-2.55, 0.4, 1.0, 6), (1.75, 0.1, 0.75, 5))
    for k in range(count)
]


def heights(p: Array) -> Array:
    q = p * 0.25 + rgb(3.1, 0, 8.6)
    warp = q + 0.35 * np.stack([noise(q * 1.3), 0 * q[0], noise(q * 1.3 + 5)])
    total, weight, gate = np.zeros(p.shape[1], dtype=np.float32), 0.5, 1.0
    for k in range(8):
        ridge = (1 - np.abs(2 * noise(warp * 2.0**k * rgb(1, 0, 1) + 13.1 * k) - 1)) ** 2
        total += weight * ridge * gate
        gate, weight = np.clip(ridge * 1.6, 0.15, 1), weight * 0.43
    shore = step(-2.4, -7.0, p[2] + 1.1 * np.sin(0.55 * p[0] + 0.7) + 0.6 * np.abs(p[0]) * 0.9)
    return 6.2 * (total - 0.16) * shore + 0.22 * noise(p * 1.2) * step(-2.3, -3.6, p[2] + 0.8 * np.abs(p[0])) - 0.10


@cache
def grid() -> Array:
    """The heights for x from -12 to 12 and z from -24 to 0: too many octaves to sum at every step of a ray."""
    x, z = np.meshgrid(np.linspace(-12, 12, 640), np.linspace(-24, 0, 640), indexing="ij")
    p = np.stack([x.ravel(), 0 * x.ravel(), z.ravel()]).astype(np.float32)
    return heights(p).reshape(640, 640).astype(np.float32)


def land(p: Array) -> Array:
    """The height below each point, read between the points of the grid."""
    g = grid()
    x, z = np.clip((p[0] / 12 + 1) / 2, 0, 0.9999) * 639, np.clip(p[2] / 24 + 1, 0, 0.9999) * 639
    i, j = x.astype(np.int32), z.astype(np.int32)
    a, b = x - i, z - j
    return (g[i, j] * (1 - a) + g[i + 1, j] * a) * (1 - b) + (g[i, j + 1] * (1 - a) + g[i + 1, j + 1] * a) * b


def land_look(p: Array) -> Look:
    h = np.float32(0.03)
    slope = np.hypot(
        land(p + rgb(h, 0, 0)) - land(p - rgb(h, 0, 0)), land(p + rgb(0, 0, h)) - land(p - rgb(0, 0, h))
    ) / (2 * h)
    grain = fractal(p * 4)
    rock = mix(rgb(0.15, 0.13, 0.12), rgb(0.33, 0.30, 0.28), grain) * (
        0.8 + 0.4 * np.sin(p[1] * 22 + 5 * noise(p * 2)) ** 2
    )
    snow = step(1.3, 2.0, p[1] + 0.8 * (grain - 0.5)) * step(3.2, 1.9, slope)
    forest = step(1.25, 0.7, p[1] + 0.6 * (fractal(p * 2.3) - 0.5)) * step(2.8, 1.8, slope)
    trees = mix(rgb(0.012, 0.035, 0.018), rgb(0.05, 0.10, 0.035), noise(p * rgb(26, 9, 26)))
    shore = mix(rgb(0.28, 0.25, 0.20), rgb(0.16, 0.20, 0.06), step(0.02, 0.07, p[1]))
    color = mix(mix(rock, trees, forest), rgb(0.86, 0.88, 0.92), snow)
    return Look(mix(color, shore, step(0.10, 0.04, p[1])))


def firs(p: Array) -> Array:
    out = np.full(p.shape[1], 9, dtype=np.float32)
    for x, z, height in FIRS:
        q = at(p, x, 0.02, z)
        r, y = np.hypot(q[0], q[2]), q[1] / height
        skirt = 0.21 * height * (1 - y) * (0.72 + 0.28 * (1 - (y * 8) % 1)) - 0.03 * height * noise(q * 26 / height)
        out = np.minimum(out, np.maximum(r - np.maximum(skirt, 0.012), np.maximum(q[1] - height, -q[1] - 0.3)))
    return out * 0.6


def islets(p: Array) -> Array:
    out = join(egg(at(p, -2.0, -0.10, 0.45), 1.15, 0.19, 0.75), egg(at(p, 2.25, -0.10, 0.1), 1.05, 0.17, 0.7), 0.02)
    return (out - 0.07 * noise(p * 4) - 0.02 * noise(p * 17)) * 0.7


def islets_look(p: Array) -> Look:
    meadow = mix(rgb(0.03, 0.07, 0.02), rgb(0.16, 0.18, 0.05), noise(p * 15))
    return Look(mix(rgb(0.20, 0.18, 0.14), meadow, step(0.03, 0.07, p[1])))


def lake(p: Array) -> Array:
    near = np.exp(-0.25 * np.abs(p[2] - 4))
    return p[1] - 0.006 * near * (noise(p * rgb(3, 0, 9)) + 0.5 * noise(p * rgb(7, 0, 21)) - 0.75)


def scene() -> Scene:
    return Scene(
        things=[
            Thing(lambda p: (p[1] - land(p)) * 0.5, land_look),
            Thing(firs, lambda p: Look(mix(rgb(0.008, 0.025, 0.012), rgb(0.035, 0.075, 0.025), noise(p * 30)))),
            Thing(islets, islets_look),
            Thing(lake, lambda p: Look(rgb(0.01, 0.045, 0.05), shine=0.03, gloss=300)),
        ],
        sky=lambda d: blue(d, SUN, 0.42, 0.7),
        eye=(0.3, 0.62, 4.6),
        target=(0.15, 1.35, -4),
        fov=42,
        sun=SUN,
        sun_color=(3.4, 2.7, 1.9),
        sun_size=0.01,
        haze=0.013,
        exposure=0.62,
        careful=1.0,
        far=40,
    )
