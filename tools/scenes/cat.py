"""A ginger cat that sits on a rug and looks at you."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from scenes.render import Look, Scene, Thing
from scenes.room import room, wood
from scenes.solids import (
    Array,
    at,
    ball,
    box,
    egg,
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

TAIL = [
    (0.26, 0.12, -0.42),
    (0.52, 0.09, -0.30),
    (0.62, 0.08, 0.00),
    (0.52, 0.08, 0.30),
    (0.28, 0.09, 0.50),
    (0.06, 0.10, 0.53),
]


def mirror(p: Array) -> Array:
    q = p.copy()
    q[0] = np.abs(q[0])
    return q


def head_of(p: Array) -> Array:
    """The head's own axes: tilted a little, because it is curious."""
    return turn(turn(at(p, 0.02, 1.16, 0.16), "z", -7), "y", -8)


def head(p: Array) -> Array:
    q = mirror(head_of(p))
    skull = join(egg(q, 0.31, 0.265, 0.27), egg(at(q, 0.15, -0.10, 0.09), 0.16, 0.13, 0.14), 0.10)
    face = join(
        egg(at(q, 0.055, -0.105, 0.235), 0.078, 0.062, 0.075), egg(at(q, 0, -0.16, 0.20), 0.07, 0.05, 0.07), 0.04
    )
    nose = rod(q, (0, 0.02, 0.20), (0, -0.055, 0.285), 0.06, 0.035)
    skull = join(join(skull, face, 0.06), nose, 0.06)
    ear = turn(at(q, 0.175, 0.19, -0.03), "z", 17)
    outer = np.maximum(rod(ear * rgb(1, 1, 1.5), (0, 0, 0), (0.03, 0.25, 0.0), 0.14, 0.012), -0.3 - ear[1])
    inner = rod(ear * rgb(1, 1, 1.5), (-0.005, 0.0, 0.13), (0.025, 0.19, 0.07), 0.10, 0.008)
    return join(skull, np.maximum(outer, -inner) * 0.7, 0.05)


def trunk(p: Array) -> Array:
    q = mirror(p)
    out = join(egg(at(q, 0, 0.46, -0.16), 0.37, 0.50, 0.44), egg(at(q, 0, 0.66, 0.08), 0.26, 0.40, 0.25), 0.2)
    out = join(out, egg(at(q, 0.29, 0.24, -0.05), 0.19, 0.26, 0.34), 0.08)
    out = join(out, rod(q, (0.13, 0.60, 0.16), (0.125, 0.08, 0.30), 0.115, 0.075), 0.06)
    out = join(out, egg(at(q, 0.125, 0.065, 0.35), 0.095, 0.065, 0.125), 0.04)
    return join(out, egg(at(q, 0.32, 0.06, 0.26), 0.10, 0.06, 0.16), 0.05)


def tail(p: Array) -> Array:
    out = np.full(p.shape[1], 9, dtype=np.float32)
    for k, (a, b) in enumerate(pairwise(TAIL)):
        out = join(out, rod(p, a, b, 0.085 - 0.004 * k, 0.081 - 0.004 * k), 0.03)
    return out


def fur(p: Array) -> Array:
    out = join(join(trunk(p), head(p), 0.09), tail(p), 0.04)
    close = out < 0.06
    tufts = np.zeros_like(out)
    tufts[close] = noise(p[:, close] * rgb(55, 22, 55)) + 0.5 * noise(p[:, close] * rgb(120, 45, 120))
    return (out - 0.009 * tufts) * 0.85


def fur_look(p: Array) -> Look:
    q, h = mirror(p), head_of(p)
    on_head = step(0.92, 1.02, p[1])
    hair = 0.75 + 0.5 * noise(p * rgb(130, 30, 130))
    wobble = 0.8 * fractal(p * 5, 2)
    bars = np.sin(p[1] * 17 + wobble * 5 + 3 * q[0])
    crown = np.sin(np.abs(h[0]) * 46 + wobble * 2) * step(0.02, 0.12, h[1]) + np.sin(
        h[1] * 34 + np.abs(h[0]) * 20
    ) * step(0.14, 0.24, np.abs(h[0]))
    rings = np.sin(20 * (np.arctan2(p[2], p[0] - 0.15)) + wobble)
    on_tail = step(0.05, 0.0, tail(p) - 0.02)
    stripe = step(0.1, 0.7, mix(mix(bars, crown, on_head), rings, on_tail))
    coat = mix(rgb(0.62, 0.24, 0.06), rgb(0.24, 0.065, 0.012), stripe * 0.85)
    front = step(0.10, 0.34, p[2]) * step(0.26, 0.12, q[0]) * step(1.0, 0.85, p[1]) * step(0.16, 0.3, p[1])
    socks = step(0.17, 0.10, p[1]) * step(0.1, 0.2, p[2]) * (1 - on_tail)
    muzzle = step(0.20, 0.12, np.hypot(h[0], (h[1] + 0.13) * 1.3)) * step(0.12, 0.2, h[2])
    coat = mix(coat, rgb(0.74, 0.66, 0.55), np.clip(front + socks + muzzle, 0, 1))
    e = turn(at(mirror(h), 0.175, 0.19, -0.03), "z", 17)
    ear = (
        step(0.075, 0.04, np.abs(e[0] - 0.01))
        * step(0.02, 0.06, e[1])
        * step(0.2, 0.15, e[1])
        * step(-0.01, 0.02, e[2])
    )
    coat = mix(coat, rgb(0.62, 0.28, 0.22), 0.8 * ear)
    return Look(coat * hair, through=0.1)


def eyes(p: Array) -> Array:
    return ball(at(mirror(head_of(p)), 0.118, 0.02, 0.216), 0.073)


def eyes_look(p: Array) -> Look:
    q = at(mirror(head_of(p)), 0.118, 0.02, 0.216)
    x, y = q[0] + 0.008, q[1]
    slit = (x / 0.020) ** 2 + (y / 0.052) ** 2 < 1
    iris = mix(rgb(0.50, 0.62, 0.10), rgb(0.35, 0.28, 0.02), step(0.02, 0.065, np.hypot(x, y)))
    rim = np.hypot(x, y * 1.15) > 0.063
    return Look(np.where(slit | rim, 0.008, iris), shine=0.06, gloss=600)


def whiskers(p: Array) -> Array:
    q = mirror(head_of(p))
    out = np.full(p.shape[1], 9, dtype=np.float32)
    for rise, back in ((0.05, 0.16), (-0.01, 0.20), (-0.07, 0.22)):
        out = np.minimum(out, rod(q, (0.085, -0.10 + 0.3 * rise, 0.28), (0.40, -0.10 + rise, back), 0.0045, 0.0015))
    return out


def rug_look(p: Array) -> Look:
    r = np.hypot(p[0], p[2] * 1.2)
    bands = rgb(0.30, 0.03, 0.03) * np.ones_like(r)
    for edge, color in (
        (0.95, rgb(0.05, 0.07, 0.16)),
        (1.12, rgb(0.55, 0.40, 0.22)),
        (1.20, rgb(0.30, 0.03, 0.03)),
    ):
        bands = np.where(r > edge, color, bands)
    return Look(bands * (0.6 + 0.8 * noise(p * 60)))


def rug(p: Array) -> Array:
    return np.maximum(np.hypot(p[0], p[2] * 1.2) - 1.4, np.abs(p[1]) - 0.03 - 0.01 * noise(p * 60)) * 0.7


def sofa(p: Array) -> Array:
    q = at(p, 0.3, 0, -2.6)
    seat = join(box(at(q, 0, 0.35, 0.2), 2.0, 0.3, 0.7, 0.12), box(at(q, 0, 0.95, -0.4), 2.0, 0.75, 0.25, 0.18), 0.05)
    pillow = turn(at(q, -0.95, 0.95, 0.15), "z", 14)
    pillow = egg(pillow, 0.42, 0.36, 0.16)
    return np.minimum(seat, pillow)


def sofa_look(p: Array) -> Look:
    q = at(p, -0.65, 0.95, -2.45)
    return Look(np.where(length(q) < 0.47, rgb(0.60, 0.42, 0.10), rgb(0.10, 0.20, 0.22)) * (0.8 + 0.4 * noise(p * 40)))


def scene() -> Scene:
    boards = rgb(0.13, 0.06, 0.03), rgb(0.36, 0.19, 0.09)
    around_head = ((0.02, 1.16, 0.16), 0.6)
    return Scene(
        things=[
            Thing(lambda p: p[1], lambda p: Look(wood(turn(p, "y", 70), *boards, 0.5), shine=0.04, gloss=40)),
            Thing(rug, rug_look),
            Thing(sofa, sofa_look, ((0.3, 0.7, -2.6), 2.5)),
            Thing(fur, fur_look, ((0.05, 0.8, 0.0), 1.05)),
            Thing(eyes, eyes_look, around_head),
            Thing(
                lambda p: egg(at(head_of(p), 0, -0.072, 0.328), 0.040, 0.028, 0.025),
                lambda p: Look(rgb(0.50, 0.16, 0.13), shine=0.04),
                around_head,
            ),
            Thing(whiskers, lambda p: Look(rgb(0.9, 0.9, 0.88), glow=0.1), around_head),
        ],
        sky=room,
        eye=(-0.75, 1.15, 3.9),
        target=(0.06, 0.78, 0),
        fov=27,
        aperture=0.05,
        focus=3.75,
        sun=(-0.8, 0.75, 0.55),
        sun_color=(2.7, 2.4, 2.0),
        sun_size=0.12,
        exposure=0.5,
        rays=48,
        careful=0.8,
    )
