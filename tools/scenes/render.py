"""A small path tracer: light comes from a sun and a sky, solids are distance functions, numpy does the work.

A scene is a list of things (a distance and a look), a sky, a sun and a camera. `render` follows each ray through a
few bounces ("The rendering equation", Kajiya, 1986; sphere tracing: Hart, 1996) and averages many rays per pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from scenes.solids import Array, dot, length, mix, rgb, unit


class Look(NamedTuple):
    albedo: Array  # (3, n) or (3, 1)
    shine: Array | float = 0.0  # the share that is mirrored when seen head-on
    gloss: float = 60.0  # how small the sun's highlight is
    glow: Array | float = 0.0  # light of its own
    through: float = 0.0  # the share of sunlight that passes a thin leaf


class Thing(NamedTuple):
    distance: Callable[[Array], Array]
    look: Callable[[Array], Look]
    bound: tuple[tuple[float, float, float], float] | None = None  # a ball around it: spares distances far away


@dataclass
class Scene:
    things: list[Thing]
    sky: Callable[[Array], Array]
    eye: tuple[float, float, float]
    target: tuple[float, float, float]
    sun: tuple[float, float, float] = (0.5, 0.8, 0.3)
    sun_color: tuple[float, float, float] = (3.0, 2.8, 2.5)
    sun_size: float = 0.04
    fov: float = 40.0
    aperture: float = 0.0
    focus: float | None = None
    far: float = 40.0
    haze: float = 0.0  # how fast distance fades into the sky
    exposure: float = 1.0
    bounces: int = 2
    rays: int = 12  # for each pixel
    finish: Callable[[Array], Array] | None = None  # paints on the finished picture, (h, w, 3) in [0, 1]
    careful: float = 0.9  # the share of a distance that is stepped: less for distances that are only estimates
    ambient: Array = field(default_factory=lambda: rgb(0.15, 0.15, 0.15))


def distances(scene: Scene, p: Array) -> Array:
    """(things, n)"""
    out = np.empty((len(scene.things), p.shape[1]), dtype=np.float32)
    for row, thing in zip(out, scene.things, strict=True):
        if thing.bound is None:
            row[:] = thing.distance(p)
            continue
        center, radius = thing.bound
        row[:] = length(p - rgb(*center)) - radius
        near = row < 0.1 * radius
        if near.any():
            row[near] = thing.distance(p[:, near])
    return out


def march(scene: Scene, origin: Array, ray: Array, steps: int) -> tuple[Array, Array]:
    """How far each ray runs, and whether it hits."""
    t = np.full(ray.shape[1], 2e-3, dtype=np.float32)
    hit = np.zeros(ray.shape[1], dtype=bool)
    alive = np.arange(ray.shape[1])
    for _ in range(steps):
        gap = distances(scene, origin[:, alive] + ray[:, alive] * t[alive]).min(0)
        touch = gap < 4e-4 * (1 + t[alive])
        hit[alive[touch]] = True
        t[alive] += np.where(touch, 0, gap * scene.careful)
        alive = alive[~touch & (t[alive] < scene.far)]
        if not alive.size:
            break
    return t, hit


def normals(scene: Scene, p: Array, which: Array, t: Array) -> Array:
    """The gradient of the distance, from four points of a tetrahedron."""
    out = np.zeros_like(p)
    for k, thing in enumerate(scene.things):
        mine = which == k
        if mine.any():
            h = 5e-4 * (1 + t[mine])
            for corner in (rgb(1, -1, -1), rgb(-1, -1, 1), rgb(-1, 1, -1), rgb(1, 1, 1)):
                out[:, mine] += corner * thing.distance(p[:, mine] + corner * h)
    return unit(out)


def around(axis: Array, u: Array, spread: Array) -> Array:
    """Directions near `axis`: `u` (2, n) in [0, 1) picks one, `spread` is the largest sine."""
    s = np.sqrt(u[0]) * spread
    side = unit(np.cross(axis, np.where(np.abs(axis[1]) < 0.9, rgb(0, 1, 0), rgb(1, 0, 0)), axis=0))
    up = np.cross(axis, side, axis=0)
    a = 2 * np.pi * u[1]
    return axis * np.sqrt(np.maximum(1 - s * s, 0)) + side * (s * np.cos(a)) + up * (s * np.sin(a))


def radiance(scene: Scene, origin: Array, ray: Array, u: Array, bounces: int) -> Array:
    t, hit = march(scene, origin, ray, 120 if bounces == scene.bounces else 60)
    color = np.broadcast_to(scene.sky(ray), ray.shape).astype(np.float32)
    if not hit.any():
        return color
    ray, t = ray[:, hit], t[hit]
    p = origin[:, hit] + ray * t
    lit = shade(scene, p, ray, t, u[:, hit], bounces)
    fade = np.exp(-scene.haze * t)
    color[:, hit] = mix(color[:, hit], lit, fade)
    return color


def shade(scene: Scene, p: Array, ray: Array, t: Array, u: Array, bounces: int) -> Array:
    which = distances(scene, p).argmin(0)
    n = normals(scene, p, which, t)
    n = np.where(dot(n, ray) > 0, -n, n)
    albedo, glow = np.empty_like(p), np.empty_like(p)
    shine, gloss, through = (np.empty(p.shape[1], dtype=np.float32) for _ in range(3))
    for k, thing in enumerate(scene.things):
        mine = which == k
        if mine.any():
            look = thing.look(p[:, mine])
            albedo[:, mine], glow[:, mine] = look.albedo, look.glow
            shine[mine], gloss[mine], through[mine] = look.shine, look.gloss, look.through
    mirrored = np.where(shine > 0, shine + (1 - shine) * (1 - np.clip(-dot(n, ray), 0, 1)) ** 5, 0)
    off = n * (2e-3 * (1 + 0.3 * t))

    sun = around(np.broadcast_to(unit(rgb(*scene.sun)), p.shape), u[:2], scene.sun_size)
    facing = dot(n, sun)
    sunlit = np.where(facing > 0, facing, -facing * through)
    need = sunlit > 0
    side = np.where(facing > 0, 1, -1)
    _, blocked = march(scene, (p + off * side)[:, need], sun[:, need], 60)
    sunlit[need] *= ~blocked
    light = rgb(*scene.sun_color) * sunlit
    half = np.clip(dot(n, unit(sun - ray)), 0, 1)
    spark = np.minimum(mirrored * 3, 1) * (gloss + 2) / 8 * half**gloss * (facing > 0)

    def arriving(way: Array, mine: Array) -> Array:
        out = np.zeros_like(p)
        if bounces and mine.any():
            again = radiance(scene, (p + off)[:, mine], way[:, mine], random(4, mine.sum()), bounces - 1)
            out[:, mine] = np.minimum(again, 6)
        return out if bounces else out + scene.ambient * mine

    mirror, scatter = ray - 2 * dot(ray, n) * n, around(n, u[2:], np.float32(1))
    color = glow + albedo * light * (1 - mirrored) + light * spark
    if bounces == scene.bounces:  # what the eye sees first is worth both rays, later one is drawn
        everywhere = np.ones(p.shape[1], dtype=bool)
        color += mirrored * arriving(mirror, mirrored > 0.01)
        return color + (1 - mirrored) * albedo * arriving(scatter, everywhere)
    choose = random(1, p.shape[1])[0] < mirrored
    return color + np.where(choose, 1, albedo) * arriving(np.where(choose, mirror, scatter), choose | ~choose)


_random = np.random.RandomState(0)


def random(k: int, n: int) -> Array:
    return _random.rand(k, n).astype(np.float32)


def render(scene: Scene, size: int) -> Array:
    """The picture as uint8 (size, size, 3)."""
    _random.seed(0)
    eye, target = rgb(*scene.eye), rgb(*scene.target)
    front = unit(target - eye)
    right = unit(np.cross(front, rgb(0, 1, 0), axis=0))
    up = np.cross(right, front, axis=0)
    focus = scene.focus or float(length(target - eye)[0])
    zoom = np.float32(np.tan(np.radians(scene.fov) / 2))
    row, column = np.divmod(np.arange(size * size, dtype=np.float32), size)
    base, total = random(8, size * size), np.zeros((3, size * size), dtype=np.float32)
    golden = 1.0851  # the root of g**9 = g + 1: its powers fill eight dimensions evenly
    for s in range(scene.rays):
        u = (base + ((s + 1) * golden ** -np.arange(1, 9)).astype(np.float32)[:, None]) % 1
        x, y = (column + u[0]) / size * 2 - 1, 1 - (row + u[1]) / size * 2
        ray = front + right * x * zoom + up * y * zoom
        r, a = scene.aperture * np.sqrt(u[2]), 2 * np.pi * u[3]
        lens = right * (r * np.cos(a)) + up * (r * np.sin(a))
        light = radiance(scene, eye + lens, unit(ray * focus - lens), u[4:], scene.bounces)
        total += np.minimum(light, 12)
    x = total / scene.rays * scene.exposure
    film = x * (2.51 * x + 0.03) / (x * (2.43 * x + 0.59) + 0.14)  # a film curve: soft shoulders, no clipped lights
    picture = np.clip(film, 0, 1).T.reshape(size, size, 3) ** (1 / 2.2)
    if scene.finish:
        picture = np.clip(scene.finish(picture), 0, 1)
    return (picture * 255 + 0.5).astype(np.uint8)
