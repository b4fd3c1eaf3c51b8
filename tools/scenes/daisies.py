"""Daisies in a meadow."""

from __future__ import annotations

from functools import partial

import numpy as np

from scenes.render import Look, Scene, Thing
from scenes.solids import (
    Array,
    at,
    egg,
    length,
    mix,
    noise,
    rgb,
    rod,
    step,
    turn,
    unit,
)

FLOWERS = [  # place, scale, turn, tilt towards the eye
    ((-0.12, 0.42, 0.25), 1.0, 10, 58),
    ((0.98, 0.05, -0.75), 0.85, -25, 46),
    ((-1.10, -0.12, -1.2), 0.85, 40, 40),
    ((0.35, -0.42, -2.2), 0.8, 5, 35),
    ((-1.9, 0.35, -2.8), 0.9, 20, 50),
    ((1.9, 0.45, -3.0), 0.9, -30, 52),
]


RANDOM = np.random.RandomState(3)


BLADES = [
    (RANDOM.uniform(-2.2, 2.2), RANDOM.uniform(-3.0, 0.3), RANDOM.uniform(1.0, 1.9), RANDOM.uniform(-0.35, 0.35))
    for _ in range(34)
]


DOTS = [
    (
        *unit(np.array([RANDOM.uniform(-0.7, 0.7), RANDOM.uniform(-0.35, 0.0), -1.0])),
        RANDOM.uniform(0.008, 0.022),
        RANDOM.rand(),
    )
    for _ in range(45)
]


def own(p: Array, flower: tuple) -> Array:
    place, scale, angle, tilt = flower
    return turn(turn(at(p, *place) / scale, "y", -angle), "x", tilt)


def petals(flower: tuple, p: Array) -> Array:
    q = own(p, flower)
    r, a = np.hypot(q[0], q[2]), np.arctan2(q[2], q[0])
    out = np.full_like(r, 9)
    for count, phase, height in ((17, 0.0, 0.0), (16, 0.17, 0.035)):
        turnover = 2 * np.pi / count
        k = np.round((a + phase) / turnover)
        b = a + phase - k * turnover
        vary = noise(np.stack([k * 3.7, k * 1.9 + count, k * 0]))
        lift = q[1] - height - 0.14 * r * (vary - 0.35) + 0.17 * np.maximum(r - 0.5, 0) ** 1.5
        groove = 0.004 * np.cos(r * b * 60)
        long = r - 0.50 - 0.05 * vary
        out = np.minimum(out, egg(np.stack([long, lift + groove, r * b]), 0.36, 0.026, 0.098))
    return out * 0.55 * flower[1]


def petals_look(flower: tuple, p: Array) -> Look:
    r = length(own(p, flower)[[0, 2]])
    return Look(mix(rgb(0.66, 0.68, 0.50), rgb(0.86, 0.86, 0.86), step(0.2, 0.42, r)), through=0.3)


def heart(flower: tuple, p: Array) -> Array:
    q = own(p, flower)
    r, a = np.hypot(q[0], q[2]), np.arctan2(q[2], q[0])
    seeds = np.cos(13 * a + 42 * r) * np.cos(21 * a - 42 * r) * step(0.02, 0.1, r)
    return (egg(at(q, 0, 0.02, 0), 0.245, 0.125, 0.245) - 0.011 * seeds) * 0.7 * flower[1]


def heart_look(flower: tuple, p: Array) -> Look:
    q = own(p, flower)
    r, a = np.hypot(q[0], q[2]), np.arctan2(q[2], q[0])
    seeds = step(-0.6, 0.5, np.cos(13 * a + 42 * r) * np.cos(21 * a - 42 * r))
    return Look(mix(rgb(0.55, 0.22, 0.0), rgb(0.92, 0.60, 0.02), seeds) * mix(0.75, 1.0, step(0.02, 0.16, r)))


def stems(p: Array) -> Array:
    out = np.full(p.shape[1], 9, dtype=np.float32)
    for (x, y, z), scale, *_ in FLOWERS:
        out = np.minimum(out, rod(p, (x, y, z - 0.05), (x * 0.9 + 0.05, -2.5, z - 0.5), 0.04 * scale))
    return out


def grass(p: Array) -> Array:
    out = np.full(p.shape[1], 9, dtype=np.float32)
    for x, z, height, lean in BLADES:
        q = at(p, x, -1.8, z)
        y = np.clip(q[1], 0, height)
        q = q - np.stack([lean * y * y, y, 0.3 * lean * y])
        width = 0.05 * (1 - y / height) ** 0.7
        out = np.minimum(out, np.hypot(np.maximum(np.abs(q[0]) - width, 0), np.hypot(q[1], q[2])) - 0.006)
    return out * 0.75


def meadow(d: Array) -> Array:
    ground = mix(rgb(0.04, 0.13, 0.02), rgb(0.42, 0.60, 0.14), step(-0.45, 0.12, d[1] + 0.35 * (noise(d * 7) - 0.3)))
    color = mix(ground, rgb(0.02, 0.07, 0.02), 0.7 * step(0.03, 0.10, d[1] + 0.1 * noise(d * 8)))
    color = mix(
        color,
        mix(rgb(0.60, 0.78, 0.95), rgb(0.18, 0.40, 0.80), step(0.1, 0.8, d[1])),
        step(0.14, 0.22, d[1] + 0.09 * noise(d * 9)),
    )
    for x, y, z, r, tone in DOTS:
        color = mix(
            color,
            np.where(tone > 0.3, rgb(0.85, 0.88, 0.80), rgb(0.85, 0.65, 0.10)),
            0.55 * step(r, 0.8 * r, np.arccos(np.clip(d[0] * x + d[1] * y + d[2] * z, -1, 1))),
        )
    return color


def scene() -> Scene:
    things = [
        Thing(stems, lambda p: Look(rgb(0.07, 0.20, 0.03) * (0.8 + 0.4 * noise(p * 9)), through=0.2)),
        Thing(
            grass, lambda p: Look(mix(rgb(0.02, 0.08, 0.01), rgb(0.16, 0.36, 0.04), step(-1.4, 0.2, p[1])), through=0.5)
        ),
    ]
    for flower in FLOWERS:
        ball = (flower[0], 0.98 * flower[1])
        things.append(Thing(partial(petals, flower), partial(petals_look, flower), ball))
        things.append(Thing(partial(heart, flower), partial(heart_look, flower), ball))
    return Scene(
        things,
        sky=meadow,
        eye=(0.1, 0.95, 3.6),
        target=(0.05, 0.16, 0),
        fov=38,
        aperture=0.075,
        focus=3.35,
        sun=(0.65, 0.95, 0.2),
        sun_color=(2.6, 2.4, 1.9),
        exposure=0.55,
        careful=0.8,
    )
