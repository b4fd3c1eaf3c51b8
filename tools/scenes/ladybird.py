"""A ladybird on a leaf."""

from __future__ import annotations

import numpy as np

from scenes.render import Look, Scene, Thing
from scenes.solids import (
    Array,
    at,
    egg,
    fractal,
    length,
    mix,
    noise,
    rgb,
    rod,
    step,
    turn,
    unit,
)

RANDOM = np.random.RandomState(11)


BOKEH = [
    (
        *unit(
            np.array([-1.5 + RANDOM.uniform(-1.6, 1.6), RANDOM.uniform(-0.55, 0.55), -2.5])
            + RANDOM.uniform(-0.9, 0.9, 3) * [0.6, 0, 0.6]
        ),
        RANDOM.uniform(0.04, 0.10),
        RANDOM.uniform(0.1, 0.5),
    )
    for _ in range(40)
]


def onto(p: Array) -> Array:
    """The beetle's own axes: it walks along +x, up is +y."""
    return turn(turn(at(p, 0.05, 0.13, 0.05), "y", 32), "z", 8)


def leaf_height(p: Array) -> Array:
    middle = p[2] - 0.15 * np.sin(0.6 * p[0])
    side = np.abs(middle)
    vein = np.abs((p[0] - 0.55 * side) * 1.15 % 1 - 0.5)
    fold = 0.10 * np.sqrt(side * side + 0.01) - 0.035 * side**2
    return (
        fold
        + 0.03 * np.sin(1.3 * p[0] + 1)
        + 0.035 * step(0.02, 0.20, vein) * step(0.0, 0.3, side)
        - 0.045 * step(0.10, 0.0, side)
    )


def leaf(p: Array) -> Array:
    edge = (
        np.abs(p[2] - 0.15 * np.sin(0.6 * p[0]))
        - 1.35 * np.sqrt(np.maximum(1 - ((p[0] + 0.3) / 3.4) ** 2, 0))
        - 0.03 * np.sin(14 * p[0])
    )
    return np.maximum(np.abs(p[1] - leaf_height(p) + 0.02) - 0.02, edge * 0.7) * 0.75


def leaf_look(p: Array) -> Look:
    side = np.abs(p[2] - 0.15 * np.sin(0.6 * p[0]))
    vein = np.abs((p[0] - 0.55 * side) * 1.15 % 1 - 0.5)
    fine = np.abs((p[0] * 0.8 + 1.2 * side + 0.2 * noise(p * 5)) * 7 % 1 - 0.5)
    green = mix(rgb(0.03, 0.15, 0.012), rgb(0.08, 0.27, 0.03), fractal(p * 3))
    pale = np.maximum(np.maximum(step(0.035, 0.0, side), 0.7 * step(0.05, 0.01, vein)), 0.25 * step(0.08, 0.02, fine))
    return Look(mix(green, rgb(0.36, 0.52, 0.14), pale), shine=0.03, gloss=25, through=0.5)


def shell(q: Array) -> Array:
    dome = np.maximum(egg(at(q, -0.10, 0, 0), 0.52, 0.42, 0.43), -q[1] - 0.02)
    seam = np.hypot(q[2], np.minimum(q[1] - 0.1, 0)) - 0.008
    return np.maximum(np.maximum(dome, q[0] - 0.32), -seam)


def shell_look(p: Array) -> Look:
    q = onto(p)
    spots = np.zeros(p.shape[1], dtype=bool)
    for x, y, z, r in (
        (0.30, 0.30, 0, 0.11),
        (0.02, 0.34, 0.22, 0.10),
        (-0.28, 0.33, 0.16, 0.085),
        (-0.12, 0.12, 0.41, 0.09),
        (-0.42, 0.15, 0.24, 0.075),
    ):
        spots |= length(np.stack([q[0] - x, q[1] - y, np.abs(q[2]) - z])) < r
    red = mix(rgb(0.50, 0.008, 0.002), rgb(0.62, 0.035, 0.004), noise(q * 4))
    return Look(np.where(spots, 0.012, red), shine=0.05, gloss=350)


def front(q: Array) -> Array:
    return np.minimum(egg(at(q, 0.36, 0.09, 0), 0.14, 0.17, 0.25), egg(at(q, 0.50, 0.05, 0), 0.10, 0.10, 0.14))


def limbs(q: Array) -> Array:
    s = q.copy()
    s[2] = np.abs(s[2])
    out = np.minimum(
        rod(s, (0.56, 0.08, 0.06), (0.70, 0.14, 0.14), 0.012),
        rod(s, (0.70, 0.14, 0.14), (0.77, 0.11, 0.19), 0.012, 0.022),
    )
    for x, reach in ((0.28, 0.16), (0.02, 0.02), (-0.24, -0.14)):
        knee = (x + reach, 0.06, 0.50)
        out = np.minimum(out, rod(s, (x, 0.0, 0.25), knee, 0.035, 0.026))
        out = np.minimum(out, rod(s, knee, (x + 1.7 * reach, -0.12, 0.60), 0.022, 0.012))
    return out


def front_look(p: Array) -> Look:
    q = onto(p)
    cheeks = length(np.stack([q[0] - 0.40, q[1] - 0.12, np.abs(q[2]) - 0.20])) < 0.085
    brow = length(np.stack([q[0] - 0.57, q[1] - 0.10, np.abs(q[2]) - 0.075])) < 0.035
    return Look(np.where(cheeks | brow, rgb(0.75, 0.70, 0.60), 0.012), shine=0.05, gloss=200)


def drops(p: Array) -> Array:
    out = np.full(p.shape[1], 9, dtype=np.float32)
    for x, z, r in (
        (-0.95, 0.55, 0.13),
        (-1.15, 0.30, 0.06),
        (0.85, 0.75, 0.10),
        (0.62, 0.95, 0.05),
        (1.15, -0.35, 0.085),
        (-0.70, -0.65, 0.07),
    ):
        q = at(p, x, 0, z)
        q[1] = p[1] - leaf_height(rgb(x, 0, z))[0]
        out = np.minimum(out, egg(q, r, 0.75 * r, r))
    return out


def drop_look(p: Array) -> Look:
    below = leaf_look(p * rgb(0.96, 1, 0.96)).albedo
    return Look(below * 1.25, shine=0.06, gloss=900, through=0.5)


def garden(d: Array) -> Array:
    """Far leaves and sky, out of focus: soft discs of light."""
    color = mix(rgb(0.02, 0.07, 0.015), rgb(0.22, 0.38, 0.10), step(-0.5, 0.7, d[1] + 0.3 * noise(d * 3)))
    for x, y, z, r, light in BOKEH:
        near = np.arccos(np.clip(d[0] * x + d[1] * y + d[2] * z, -1, 1))
        color = color + step(r, 0.85 * r, near) * light * rgb(0.75, 0.9, 0.35)
    return color + step(0.45, 1.0, d[1]) * rgb(0.8, 0.95, 1.0)


def scene() -> Scene:
    body = ((0.05, 0.2, 0.05), 0.95)
    return Scene(
        things=[
            Thing(leaf, leaf_look),
            Thing(lambda p: shell(onto(p)), shell_look, body),
            Thing(lambda p: front(onto(p)), front_look, body),
            Thing(lambda p: limbs(onto(p)), lambda p: Look(rgb(0.01, 0.01, 0.01), shine=0.04), body),
            Thing(drops, drop_look),
        ],
        sky=garden,
        eye=(1.5, 1.35, 2.5),
        target=(0.05, 0.18, 0.05),
        fov=32,
        aperture=0.06,
        sun=(0.3, 1.0, -0.25),
        sun_color=(2.8, 2.6, 2.1),
        sun_size=0.06,
        exposure=0.8,
        careful=0.8,
    )
