"""Three goldfish in a pond."""

from __future__ import annotations

from functools import partial

import numpy as np

from scenes.render import Look, Scene, Thing
from scenes.solids import (
    Array,
    at,
    ball,
    egg,
    fractal,
    join,
    mix,
    noise,
    rgb,
    step,
    turn,
)

RANDOM = np.random.RandomState(5)


WEEDS = [
    (RANDOM.uniform(-2.2, 2.2), RANDOM.uniform(-2.6, -0.9), RANDOM.uniform(0.7, 2.0), RANDOM.uniform(-0.12, 0.12))
    for _ in range(16)
]


STONES = [(RANDOM.uniform(-1.6, 1.6), RANDOM.uniform(-1.2, 1.5), RANDOM.uniform(0.08, 0.24)) for _ in range(14)]


def place(p: Array, fish: tuple) -> Array:
    x, y, z, heading, scale = fish
    return turn(turn(at(p, x, y, z), "y", heading) / scale, "z", 4)


def body(q: Array) -> Array:
    return join(egg(at(q, 0.08, 0, 0), 0.46, 0.27, 0.19), egg(at(q, -0.38, 0.02, 0), 0.26, 0.11, 0.07), 0.22)


def fins(q: Array) -> Array:
    wave = 0.05 * np.sin(7 * q[0] + 9 * q[1] + 1)
    a, r = np.arctan2(q[1] - 0.02, -(q[0] + 0.52)), np.hypot(q[0] + 0.52, q[1] - 0.02)
    edge = 0.40 + 0.16 * np.cos(2 * (np.abs(a) - 0.55)) + 0.015 * np.sin(40 * a)
    tail = np.maximum(np.maximum(r - edge, np.abs(a) - 1.05), np.abs(q[2] - wave - 0.06 * a) - 0.012)
    ridge = 0.46 - 0.35 * (q[0] + 0.02) ** 2 * 4 + 0.02 * np.sin(60 * q[0]) - 0.25 * np.maximum(q[0], 0)
    back = np.maximum(
        np.maximum(q[1] - ridge, 0.12 - q[1]),
        np.maximum(np.abs(q[0] + 0.06) - 0.30, np.abs(q[2] - 0.3 * wave) - 0.010),
    )
    side = q.copy()
    side[2] = np.abs(side[2])
    s = turn(turn(at(side, 0.16, -0.16, 0.15), "x", 42), "z", 28)
    paddle = np.maximum(np.hypot((s[0] + 0.10) / 1.25, s[1]) - 0.13, np.abs(s[2]) - 0.008)
    b = turn(turn(at(side, -0.22, -0.20, 0.05), "x", 18), "z", 40)
    belly = np.maximum(np.hypot((b[0] + 0.08) / 1.5, b[1]) - 0.09, np.abs(b[2]) - 0.008)
    return np.minimum(np.minimum(tail, back), np.minimum(paddle, belly)) * 0.5


def eyes(q: Array) -> Array:
    q = q.copy()
    q[2] = np.abs(q[2])
    return ball(at(q, 0.37, 0.07, 0.125), 0.058)


def fish_solid(fish: tuple, p: Array) -> Array:
    q = place(p, fish)
    return np.minimum(np.minimum(body(q), fins(q)), eyes(q)) * fish[4]


def fish_look(fish: tuple, tint: Array, p: Array) -> Look:
    q = place(p, fish)
    d_body, d_fins, d_eyes = body(q), fins(q), eyes(q)
    u, v = q[0] * 24, q[1] * 24
    row = np.floor(v)
    scale = np.hypot(u - 0.5 * (row % 2) - np.round(u - 0.5 * (row % 2)), (v - row - 0.5))
    skin = mix(tint, rgb(0.95, 0.50, 0.18), step(-0.04, -0.28, q[1] + 0.06 * noise(q * 5)))
    patch = step(0.60, 0.66, fractal(q * 3.1 + fish[0] * 9 + 2.3, 2))
    skin = mix(skin, rgb(0.95, 0.85, 0.75), patch * 0.7) * (1.12 - 0.45 * scale * (q[0] < 0.25))
    rays = 0.75 + 0.25 * np.sin(np.arctan2(q[1], q[0] + 0.5) * 70)
    color = np.where(d_fins < d_body, mix(tint, rgb(1, 0.75, 0.5), 0.35) * rays, skin)
    r = np.hypot(q[0] - 0.375, q[1] - 0.07)
    color = np.where(
        d_eyes < np.minimum(d_body, d_fins) + 0.002,
        np.where(r < 0.034, 0.01, rgb(0.7, 0.5, 0.15)),
        color,
    )
    return Look(color, shine=0.035 * (d_body < d_fins), gloss=60)


def weed(p: Array) -> Array:
    out = np.full(p.shape[1], 9, dtype=np.float32)
    for x, z, height, lean in WEEDS:
        q = at(p, x, -0.9, z)
        q[0] -= lean * q[1] + 0.10 * np.sin(2.6 * q[1] + 7 * x)
        q[2] -= 0.07 * np.cos(2.2 * q[1] + 5 * x)
        y = np.clip(q[1], 0, height)
        width = 0.075 * (1 - 0.8 * y / height) * (0.8 + 0.2 * np.sin(9 * y + x))
        q[1] -= y
        out = np.minimum(out, np.hypot(np.maximum(np.abs(q[0]) - width, 0), np.hypot(q[1], q[2])) - 0.012)
    return out * 0.7


def stones(p: Array) -> Array:
    out = p[1] + 0.92 - 0.07 * noise(p * 1.7)
    for x, z, r in STONES:
        out = join(out, egg(at(p, x, -0.93, z), r, 0.6 * r, 0.8 * r), 0.03)
    return out - 0.02 * noise(p * 9)


def floor_look(p: Array) -> Look:
    u = np.stack([p[0], p[2]]) * 2.6
    web = np.zeros(p.shape[1], dtype=np.float32)
    for k in range(3):  # the net of light that waves throw on the ground
        u = u + 0.7 * np.sin(u[::-1] * 1.3 + k * 2.1)
        web += np.abs(np.sin(u[0] + 0.5 * k) + np.sin(u[1]))
    net = step(1.5, 0.2, web)
    sand = mix(rgb(0.05, 0.05, 0.035), rgb(0.22, 0.20, 0.14), fractal(p * 7))
    return Look(sand * (0.6 + 1.6 * net))


def water(d: Array) -> Array:
    rays = noise(np.stack([d[0] * 9 / np.maximum(d[1] + 0.9, 0.2), d[1] * 0, d[2]]))
    up = step(-0.4, 1.0, d[1])
    return mix(rgb(0.008, 0.06, 0.075), rgb(0.16, 0.46, 0.46), up) * (0.85 + 0.4 * rays * up)


def scene() -> Scene:
    school = [  # (place, heading, scale), colour
        ((0.05, 0.05, 0.55, -24, 1.0), rgb(0.90, 0.15, 0.005)),
        ((-1.12, 0.66, -1.3, 162, 0.62), rgb(0.95, 0.33, 0.03)),
        ((0.86, -0.42, -0.4, 20, 0.5), rgb(0.85, 0.10, 0.01)),
    ]
    things = [
        Thing(stones, floor_look),
        Thing(
            weed,
            lambda p: Look(mix(rgb(0.02, 0.10, 0.02), rgb(0.16, 0.32, 0.05), step(-0.9, 0.9, p[1])), through=0.4),
        ),
    ]
    for fish, tint in school:
        things.append(Thing(partial(fish_solid, fish), partial(fish_look, fish, tint), (fish[:3], 1.1 * fish[4])))
    return Scene(
        things,
        sky=water,
        eye=(0.1, 0.1, 3.6),
        target=(0, -0.08, 0),
        fov=36,
        aperture=0.045,
        focus=3.1,
        sun=(0.25, 1.0, 0.35),
        sun_color=(2.0, 2.3, 2.0),
        sun_size=0.1,
        haze=0.085,
        exposure=0.85,
        careful=0.8,
    )
