"""Oranges and apples in a bowl, with grapes and a lemon."""

from __future__ import annotations

import numpy as np

from scenes.render import Look, Scene, Thing
from scenes.room import room
from scenes.solids import (
    Array,
    at,
    ball,
    drum,
    egg,
    join,
    mix,
    noise,
    rgb,
    rod,
    step,
    turn,
)

RANDOM = np.random.RandomState(4)


GRAPES = [
    (-0.80 + 0.10 * i + RANDOM.uniform(-0.02, 0.02), 0.10 + 0.15 * (k % 2), 0.66 + 0.13 * j + 0.06 * (k % 2))
    for k, (i, j) in enumerate((i, j) for i in (-1.5, 0.2, 1.8) for j in range(3))
]


def orange(p: Array, x: float, y: float, z: float) -> Array:
    q = at(p, x, y, z) / rgb(1, 0.94, 1)
    return (ball(q, 0.34) + 0.006 * noise(q * 38)) * 0.85


def apple(p: Array, x: float, y: float, z: float, tilt: float) -> Array:
    q = turn(at(p, x, y, z), "z", tilt)
    r = np.hypot(q[0], q[2])
    return (np.hypot(r - 0.13, q[1] * (1.0 + 0.12 * q[1])) - 0.235 + 0.03 * q[1]) * 0.8


def apple_look(p: Array) -> Look:
    streaks = noise(np.stack([np.arctan2(p[2] - 0.25, p[0] + 0.3) * 9, p[1] * 2.2, p[0] * 1.5]))
    red = mix(
        rgb(0.50, 0.02, 0.02),
        rgb(0.75, 0.30, 0.06),
        0.8 * step(0.4, 1.0, streaks) * step(0.35, 0.9, noise(p * 2.4)),
    )
    return Look(red, shine=0.045, gloss=180)


def lemon(p: Array) -> Array:
    q = turn(turn(at(p, 0.66, 0.12, 0.72), "y", 35), "z", -4)
    body = join(egg(q, 0.25, 0.185, 0.185), egg(q, 0.33, 0.07, 0.07), 0.09)
    return (body + 0.005 * noise(q * 34)) * 0.8


def bowl(p: Array) -> Array:
    q = at(p, -0.1, 0.62, 0)
    shell = np.maximum(np.abs(ball(q / rgb(1, 0.72, 1), 0.86)) * 0.75 - 0.025, q[1] + 0.06)
    return np.minimum(shell * 0.9, drum(at(q, 0, -0.60, 0), 0.36, 0.05, 0.02))


def bowl_look(p: Array) -> Look:
    r = np.hypot(p[0] + 0.1, p[2])
    band = step(0.012, 0.006, np.abs(p[1] - 0.48)) + step(0.012, 0.006, np.abs(p[1] - 0.43))
    a = np.arctan2(p[2], p[0] + 0.1) * 14 / np.pi
    leaf = np.hypot((a - np.round(a)) * 1.4, (p[1] - 0.29) * 9 + 0.5 * np.sin(a * np.pi)) < 0.42
    blue = np.clip(band + leaf, 0, 1) * (r > 0.4)
    return Look(mix(rgb(0.74, 0.74, 0.70), rgb(0.05, 0.10, 0.38), blue), shine=0.05, gloss=300)


def grapes(p: Array) -> Array:
    out = np.full(p.shape[1], 9, dtype=np.float32)
    for x, y, z in GRAPES:
        out = np.minimum(out, ball(at(p, x, y, z), 0.105))
    return out


def cloth_look(p: Array) -> Look:
    weave = 0.9 + 0.1 * np.sin(p[0] * 220) * np.sin(p[2] * 220)
    u, v = np.abs(p[0] * 1.1 % 1 - 0.5), np.abs(p[2] * 1.1 % 1 - 0.5)
    check = 0.5 * (u < 0.14) + 0.5 * (v < 0.14)
    return Look(mix(rgb(0.36, 0.36, 0.34), rgb(0.08, 0.13, 0.17), check) * weave)


def stalk(p: Array) -> Array:
    return np.minimum(
        rod(p, (-0.30, 1.02, 0.22), (-0.34, 1.20, 0.26), 0.016),
        rod(p, (0.25, 0.9, 0.36), (0.33, 1.06, 0.40), 0.016),
    )


def scene() -> Scene:
    return Scene(
        things=[
            Thing(lambda p: p[1] - 0.012 * noise(p * 1.3), cloth_look),
            Thing(bowl, bowl_look, ((-0.1, 0.4, 0), 1.0)),
            Thing(
                lambda p: np.minimum(
                    np.minimum(orange(p, -0.5, 0.78, -0.15), orange(p, 0.18, 0.80, -0.38)),
                    orange(p, -0.12, 0.55, 0.2),
                ),
                lambda p: Look(rgb(0.86, 0.30, 0.02) * (0.85 + 0.3 * noise(p * 4)), shine=0.03, gloss=60),
                ((-0.15, 0.7, -0.1), 0.9),
            ),
            Thing(
                lambda p: np.minimum(apple(p, -0.30, 0.86, 0.22, 8), apple(p, 0.25, 0.74, 0.33, -14)),
                apple_look,
                ((-0.02, 0.8, 0.27), 0.75),
            ),
            Thing(
                lemon,
                lambda p: Look(rgb(0.86, 0.62, 0.03) * (0.9 + 0.2 * noise(p * 5)), shine=0.03, gloss=70),
                ((0.66, 0.12, 0.72), 0.4),
            ),
            Thing(
                grapes,
                lambda p: Look(mix(rgb(0.10, 0.02, 0.10), rgb(0.22, 0.05, 0.20), noise(p * 6)), shine=0.05, gloss=200),
                ((-0.75, 0.12, 0.8), 0.6),
            ),
            Thing(stalk, lambda p: Look(rgb(0.12, 0.07, 0.03)), ((0, 1.0, 0.3), 0.5)),
        ],
        sky=room,
        eye=(0.5, 1.75, 4.3),
        target=(-0.05, 0.42, 0),
        fov=33,
        aperture=0.05,
        sun=(-0.8, 0.9, 0.5),
        sun_color=(2.8, 2.5, 2.1),
        sun_size=0.15,
        exposure=0.55,
        rays=48,
    )
