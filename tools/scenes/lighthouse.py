"""A lighthouse on a rocky coast at sunset."""

from __future__ import annotations

import numpy as np

from scenes.render import Look, Scene, Thing
from scenes.sky import clouds
from scenes.solids import (
    Array,
    at,
    ball,
    box,
    drum,
    egg,
    fractal,
    join,
    length,
    mix,
    noise,
    rgb,
    ring,
    rod,
    step,
    turn,
    unit,
)

SUN = (-0.42, 0.13, -0.9)
LAMP = (0.85, 2.27, -0.5)
SEEN = (0.669, 0.168)  # where in the picture the lamp is


def waves(p: Array) -> Array:
    h = np.zeros(p.shape[1], dtype=np.float32)
    for k in range(7):
        a, f = 0.9 + 1.1 * np.sin(2.4 * k), 1.1 * 1.55**k
        phase = (p[0] * np.cos(a) + p[2] * np.sin(a)) * f + 1.3 * k + 0.8 * np.sin(0.7 * f * p[0] + k)
        h += 0.075 / 1.55**k * (1 - np.abs(np.sin(phase * 0.5))) ** 1.5
    return (p[1] + 0.10 - h) * 0.7


def sea_look(p: Array) -> Look:
    near = rocks(p) / 0.55
    foam = step(0.22, 0.03, near - 0.25 * fractal(p * 6) + 0.05) * step(0.35, 0.6, fractal(p * 11))
    return Look(mix(rgb(0.005, 0.035, 0.05), rgb(0.75, 0.75, 0.75), foam), shine=0.03 * (1 - foam), gloss=160)


def rocks(p: Array) -> Array:
    q = p + 0.25 * np.stack([noise(p * 1.9), noise(p * 1.9 + 7), noise(p * 1.9 + 3)]) - 0.12
    out = join(egg(at(q, 0.75, -0.15, -0.5), 1.35, 0.62, 0.9), egg(at(q, 1.9, -0.1, -0.8), 1.1, 0.50, 0.8), 0.2)
    for x, y, z, r in (
        (-0.75, -0.12, -0.1, 0.36),
        (0.1, -0.10, 0.45, 0.32),
        (1.35, -0.10, 0.55, 0.42),
        (-1.35, -0.14, -0.7, 0.25),
    ):
        out = join(out, egg(at(q, x, y, z), r, 0.75 * r, 0.8 * r), 0.08)
    crack = np.abs(noise(p * rgb(2.6, 5.5, 2.6)) - 0.5)
    return (out - 0.10 * fractal(p * 3.2, 3) + 0.05 * step(0.06, 0.0, crack)) * 0.55


def rock_look(p: Array) -> Look:
    wet = step(0.22, 0.02, p[1] + 0.15 * (noise(p * 3) - 0.5))
    stone = mix(rgb(0.16, 0.12, 0.10), rgb(0.38, 0.30, 0.24), fractal(p * 5))
    grass = step(0.42, 0.55, p[1] + 0.14 * (fractal(p * 5) - 0.5))
    stone = mix(stone, rgb(0.10, 0.13, 0.04), 0.85 * grass)
    return Look(stone * (1 - 0.7 * wet), shine=0.04 * wet, gloss=30)


def tower(p: Array) -> Array:
    q = at(p, 0.85, 0.5, -0.5)
    y = np.clip(q[1], 0, 1.62)
    shaft = np.maximum(np.hypot(q[0], q[2]) - (0.27 - 0.085 * y), np.abs(q[1] - 0.76) - 0.86) * 0.95
    gallery = np.minimum(drum(at(q, 0, 1.63, 0), 0.26, 0.028, 0.01), ring(at(q, 0, 1.76, 0), 0.245, 0.010))
    a = np.round(np.arctan2(q[2], q[0]) / (np.pi / 7)) * (np.pi / 7)
    posts = (
        length(
            np.stack([q[0] - 0.245 * np.cos(a), np.maximum(np.abs(q[1] - 1.70) - 0.06, 0), q[2] - 0.245 * np.sin(a)])
        )
        - 0.007
    )
    return np.minimum(shaft, np.minimum(gallery, posts))


def tower_look(p: Array) -> Look:
    q = at(p, 0.85, 0.5, -0.5)
    paint = np.where(np.floor(q[1] / 0.325 + 0.02) % 2 == 0, rgb(0.62, 0.05, 0.03), rgb(0.80, 0.78, 0.74))
    paint = np.where(q[1] > 1.6, rgb(0.06, 0.06, 0.07), paint)
    a = np.arctan2(q[0], q[2])
    for height, angle in ((0.45, 0.1), (1.08, 0.35), (0.13, -0.5)):
        window = (np.abs(a - angle) * 0.25 < 0.035) & (np.abs(q[1] - height) < 0.055)
        paint = np.where(window, rgb(0.02, 0.02, 0.03), paint)
    return Look(paint * (0.88 + 0.2 * fractal(p * rgb(9, 3, 9))), shine=0.02, gloss=20)


def cap(p: Array) -> Array:
    q = at(p, 0.85, 2.38, -0.5)
    dome = np.maximum(egg(q, 0.17, 0.15, 0.17), -q[1])
    a = np.round(np.arctan2(q[2], q[0]) / (np.pi / 4)) * (np.pi / 4)
    bars = (
        length(
            np.stack([q[0] - 0.135 * np.cos(a), np.maximum(np.abs(q[1] + 0.11) - 0.11, 0), q[2] - 0.135 * np.sin(a)])
        )
        - 0.010
    )
    return np.minimum(
        np.minimum(dome, bars), np.minimum(ball(at(q, 0, 0.16, 0), 0.03), rod(q, (0, 0.1, 0), (0, 0.32, 0), 0.006))
    )


def house(p: Array) -> Array:
    q = turn(at(p, 1.65, 0.55, -0.55), "y", 25)
    roof = np.maximum((q[1] - 0.33 + 0.85 * np.abs(q[2])) * 0.76, np.maximum(np.abs(q[0]) - 0.40, 0.11 - q[1]))
    return np.minimum(
        np.minimum(box(at(q, 0, -0.1, 0), 0.36, 0.25, 0.22), roof), box(at(q, 0.22, 0.25, 0.05), 0.04, 0.14, 0.04)
    )


def house_look(p: Array) -> Look:
    q = turn(at(p, 1.65, 0.55, -0.55), "y", 25)
    u, v = np.abs(np.abs(q[0]) - 0.18), np.abs(q[1] + 0.02)
    window = (u < 0.045) & (v < 0.06) & (np.abs(q[2]) > 0.21)
    wall = np.where(window, 0.05, rgb(0.74, 0.70, 0.64))
    return Look(
        np.where((q[1] > 0.10) & ~window, rgb(0.30, 0.10, 0.06), wall), glow=np.where(window, rgb(1.6, 0.9, 0.3), 0)
    )


def evening(d: Array) -> Array:
    up = np.maximum(d[1], 0)
    color = mix(rgb(1.15, 0.50, 0.20), rgb(0.36, 0.34, 0.52), step(-0.02, 0.30, up))
    color = mix(color, rgb(0.07, 0.13, 0.34), step(0.15, 0.8, up))
    near = np.maximum((d * unit(rgb(*SUN))).sum(0), 0)
    color = color + rgb(1.5, 0.75, 0.25) * (0.5 * near**8 + 1.2 * near**90) + rgb(9, 7, 4) * step(0.9993, 0.9996, near)
    puff = clouds(d, 0.52, 0.55)
    lit = mix(rgb(0.30, 0.20, 0.27), rgb(1.35, 0.55, 0.25), step(0.2, 1.0, near) * (1 - 0.5 * puff))
    return mix(color, lit, 0.85 * puff)


def beam(picture: Array) -> Array:
    """A soft glow around the lamp, as a lens gives it."""
    h, w, _ = picture.shape
    y, x = np.mgrid[0:h, 0:w] / h
    r = np.hypot(x - SEEN[0], y - SEEN[1])
    glow = 0.55 * np.exp(-((r / 0.035) ** 2)) + 0.22 * np.exp(-r / 0.07)
    return picture + glow[..., None] * np.array([1.0, 0.85, 0.55])


def scene() -> Scene:
    return Scene(
        things=[
            Thing(waves, sea_look),
            Thing(rocks, rock_look, ((0.8, 0.0, -0.3), 2.7)),
            Thing(tower, tower_look, ((0.85, 1.4, -0.5), 1.2)),
            Thing(cap, lambda p: Look(rgb(0.30, 0.04, 0.03), shine=0.04, gloss=40), ((0.85, 2.4, -0.5), 0.45)),
            Thing(
                lambda p: drum(at(p, *LAMP), 0.10, 0.09),
                lambda p: Look(rgb(0.5, 0.5, 0.4), glow=rgb(4.0, 3.0, 1.5)),
                (LAMP, 0.2),
            ),
            Thing(house, house_look, ((1.65, 0.55, -0.55), 0.65)),
        ],
        sky=evening,
        eye=(-0.35, 0.72, 5.6),
        target=(0.15, 1.0, -0.5),
        fov=36,
        sun=SUN,
        sun_color=(3.2, 1.7, 0.75),
        sun_size=0.03,
        haze=0.012,
        exposure=0.62,
        careful=0.85,
        far=60,
        finish=beam,
    )
