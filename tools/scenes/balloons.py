"""Hot-air balloons over hills."""

from __future__ import annotations

from functools import partial

import numpy as np

from scenes.render import Look, Scene, Thing
from scenes.sky import blue
from scenes.solids import (
    Array,
    at,
    box,
    drum,
    fractal,
    join,
    length,
    mix,
    noise,
    rgb,
    rod,
    step,
    turn,
)

BALLOONS = [  # place, scale, turn, colours
    ((-0.55, 1.55, 0.6), 0.62, 15, ((0.70, 0.03, 0.02), (0.85, 0.55, 0.05), (0.80, 0.78, 0.72))),
    ((1.35, 2.25, -1.6), 0.52, 50, ((0.03, 0.12, 0.48), (0.75, 0.75, 0.72), (0.60, 0.04, 0.05))),
    ((1.05, 0.95, -3.6), 0.50, 80, ((0.04, 0.32, 0.12), (0.80, 0.62, 0.05), (0.80, 0.40, 0.03))),
    ((-2.6, 2.35, -4.8), 0.50, 10, ((0.40, 0.05, 0.38), (0.85, 0.45, 0.10), (0.10, 0.35, 0.50))),
]


SUN = (-0.65, 0.55, 0.75)


def own(k: int, p: Array) -> Array:
    """The axes of balloon k: the middle of its envelope is the origin, its radius 0.8."""
    place, scale, angle, _ = BALLOONS[k]
    return turn(at(p, *place) / scale, "y", angle)


def envelope(k: int, p: Array) -> Array:
    q = own(k, p)
    a = np.arctan2(q[2], q[0])
    r = np.hypot(q[0], q[2]) * (1 + 0.012 * np.cos(24 * a))
    s = np.stack([r, q[1], 0 * r])
    top = length(at(s, 0, 0.18, 0)) - 0.80
    taper = rod(s, (0, 0.18, 0), (0, -0.92, 0), 0.80, 0.20)
    return np.maximum(join(top, taper, 0.05), -1.02 - q[1]) * 0.8 * BALLOONS[k][1]


def envelope_look(k: int, p: Array) -> Look:
    q = own(k, p)
    first, second, third = (rgb(*color) for color in BALLOONS[k][3])
    around = np.arctan2(q[2], q[0]) / np.pi * 12
    gore, band = np.floor(around), np.floor((q[1] + 0.9) * 5.2)
    if k == 0:  # stripes from pole to pole, crossed by a zigzag
        color = np.where(gore % 2 == 0, first, second)
        zigzag = np.abs(q[1] - 0.16 - 0.07 * (1 - 2 * np.abs(around % 2 - 1))) < 0.085
        color = np.where(zigzag, third, color)
    elif k == 1:  # a chequerboard with a cap
        color = np.where((gore + band) % 2 == 0, first, second)
        color = np.where(q[1] > 0.72, third, color)
    else:
        color = np.where(band % 3 == 0, first, np.where(band % 3 == 1, second, third))
    return Look(color * (0.95 + 0.1 * noise(q * 3)), shine=0.02, gloss=20, through=0.25)


def gondola(k: int, p: Array) -> Array:
    q = own(k, p)
    basket = box(at(q, 0, -1.62, 0), 0.17, 0.13, 0.17, 0.03) + 0.008 * np.sin(q[1] * 150) * np.sin(
        q[0] * 90 + q[2] * 90
    )
    s = np.abs(q) * rgb(1, 0, 1) + q * rgb(0, 1, 0)
    ropes = np.minimum(
        rod(s, (0.14, -1.5, 0.14), (0.17, -1.0, 0.03), 0.008), rod(s, (0.14, -1.5, 0.14), (0.03, -1.0, 0.17), 0.008)
    )
    return np.minimum(basket, np.minimum(ropes, drum(at(q, 0, -1.25, 0), 0.05, 0.06))) * 0.9 * BALLOONS[k][1]


def wicker(p: Array) -> Look:
    return Look(mix(rgb(0.20, 0.10, 0.04), rgb(0.34, 0.20, 0.09), noise(p * 60)))


def hills(p: Array) -> Array:
    far = step(-1, -14, p[2])
    h = (
        -1.0
        + 0.25 * np.sin(0.55 * p[0] + 0.3 * p[2] + 1.2)
        + 0.2 * np.sin(0.8 * p[2] - 0.4 * p[0])
        + far * 1.4 * noise(p * rgb(0.22, 0, 0.22) + rgb(4.3, 0, 2.2))
    )
    return (p[1] - h) * 0.7


def trees(p: Array) -> Array:
    cell = np.floor(p[[0, 2]] / 0.42)
    jitter = noise(np.stack([cell[0] * 3.3, cell[1] * 5.1, cell[0] * 0]) + 0.37)
    wood = fractal(np.stack([cell[0] * 0.14, cell[0] * 0, cell[1] * 0.14]) + 7.9, 2) > 0.53
    x, z = (p[[0, 2]] / 0.42 - cell - 0.5 - 0.3 * (jitter - 0.5)) * 0.42
    ground = hills(p) / 0.7
    crown = length(np.stack([x, (ground - 0.10) * 0.8, z])) - 0.10 - 0.10 * jitter * wood
    rough = 0.03 * noise(p * 17)
    return np.where(wood, np.minimum(crown + rough, 0.25), 0.25) * 0.55


def ground_look(p: Array) -> Look:
    patch = np.floor(
        np.stack([p[0] * 0.55 + 0.5 * np.sin(p[2] * 0.3), 0 * p[0], p[2] * 0.45 + 0.3 * np.sin(p[0] * 0.5)])
    )
    kind = noise(patch * 5.37 + 0.5)
    field = mix(rgb(0.07, 0.16, 0.03), rgb(0.42, 0.34, 0.10), step(0.45, 0.60, kind))
    field = mix(field, rgb(0.16, 0.27, 0.05), step(0.62, 0.70, kind))
    rows = 0.9 + 0.12 * np.sin((p[0] * np.cos(patch[0]) + p[2] * np.sin(patch[0])) * 55)
    return Look(field * rows * (0.35 + 1.1 * fractal(p * 9)) * (0.7 + 0.6 * noise(p * 2)))


def scene() -> Scene:
    things = [
        Thing(hills, ground_look),
        Thing(trees, lambda p: Look(mix(rgb(0.015, 0.05, 0.012), rgb(0.07, 0.15, 0.03), noise(p * 13)))),
    ]
    for k, ((x, y, z), scale, *_) in enumerate(BALLOONS):
        things.append(Thing(partial(envelope, k), partial(envelope_look, k), ((x, y, z), 1.2 * scale)))
        things.append(Thing(partial(gondola, k), wicker, ((x, y - 1.4 * scale, z), 0.5 * scale)))
    return Scene(
        things,
        sky=lambda d: blue(d, SUN, 0.36),
        eye=(0.0, 0.75, 5.6),
        target=(0.1, 1.15, 0),
        fov=42,
        sun=SUN,
        sun_color=(3.3, 2.7, 1.9),
        sun_size=0.02,
        haze=0.016,
        exposure=0.55,
        careful=0.85,
        far=45,
    )
