"""A mug of coffee and a biscuit on a wooden table."""

from __future__ import annotations

import numpy as np

from scenes.render import Look, Scene, Thing
from scenes.room import room, wood
from scenes.solids import (
    Array,
    at,
    drum,
    fractal,
    join,
    mix,
    noise,
    rgb,
    ring,
    step,
    turn,
)


def cup(p: Array) -> Array:
    shell = np.maximum(drum(p, 0.46, 0.52, 0.08), -drum(at(p, 0, 0.12, 0), 0.405, 0.52, 0.06))
    q = turn(at(p, 0.46, 0.0, 0), "x", 90) / rgb(0.85, 1, 1)
    handle = np.maximum(ring(q, 0.27, 0.062) * 0.85, -drum(p, 0.42, 0.7))
    return join(shell, handle, 0.06)


def cup_look(p: Array) -> Look:
    glaze = rgb(0.05, 0.22, 0.36) * (0.85 + 0.3 * fractal(p * 6))
    rim = step(0.44, 0.47, p[1] + 0.03 * noise(np.stack([p[0] * 4, p[1] * 0, p[2] * 4])))
    inside = np.hypot(p[0], p[2]) < 0.43
    return Look(mix(glaze, rgb(0.80, 0.76, 0.68), np.maximum(rim, inside)), shine=0.05, gloss=400)


def coffee_look(p: Array) -> Look:
    r, a = np.hypot(p[0], p[2]), np.arctan2(p[2], p[0])
    heart = 0.5 + 0.5 * np.sin(r * 46 + 1.2 * np.sin(2 * a + 0.6) + 2 * np.cos(a - 0.8))
    foam = step(0.45, 0.75, heart) * step(0.36, 0.30, r)
    return Look(mix(rgb(0.16, 0.06, 0.02), rgb(0.78, 0.58, 0.38), foam), shine=0.03, gloss=200)


def saucer(p: Array) -> Array:
    r = np.hypot(p[0], p[2])
    return np.maximum(np.abs(p[1] + 0.50 - 0.18 * np.maximum(r - 0.45, 0) ** 1.5 - 0.04) - 0.022, r - 0.86) * 0.8


def biscuit(p: Array) -> Array:
    q = turn(at(p, 0.52, -0.385, 0.50), "z", -6)
    r, a = np.hypot(q[0], q[2]), np.arctan2(q[2], q[0])
    return (
        np.maximum(r - 0.2 - 0.012 * np.cos(18 * a), np.abs(q[1]) - 0.03) - 0.012 + 0.02 * (fractal(p * 14, 3) - 0.5)
    ) * 0.7


def biscuit_look(p: Array) -> Look:
    crumb = mix(rgb(0.45, 0.22, 0.07), rgb(0.78, 0.50, 0.22), fractal(p * 17))
    chips = step(0.66, 0.70, noise(p * 13))
    return Look(mix(crumb, rgb(0.10, 0.04, 0.02), chips))


def scene() -> Scene:
    table = rgb(0.16, 0.07, 0.03), rgb(0.50, 0.28, 0.13)
    white = rgb(0.80, 0.76, 0.68)
    return Scene(
        things=[
            Thing(
                lambda p: p[1] + 0.52,
                lambda p: Look(wood(turn(p, "y", 24), *table, 0.62), shine=0.04, gloss=30),
            ),
            Thing(cup, cup_look, ((0.15, 0, 0), 0.95)),
            Thing(lambda p: drum(at(p, 0, 0.36, 0), 0.415, 0.03, 0.01), coffee_look, ((0, 0.36, 0), 0.45)),
            Thing(saucer, lambda p: Look(white, shine=0.05, gloss=300), ((0, -0.45, 0), 0.95)),
            Thing(biscuit, biscuit_look, ((0.52, -0.385, 0.50), 0.3)),
        ],
        sky=room,
        eye=(1.15, 1.75, 3.3),
        target=(0.08, -0.08, 0),
        fov=34,
        aperture=0.06,
        sun=(-0.85, 0.75, 0.15),
        sun_color=(2.6, 2.3, 1.9),
        sun_size=0.12,
        exposure=0.55,
        rays=48,
    )
