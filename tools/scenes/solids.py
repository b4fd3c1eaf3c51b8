"""Solids as signed distance functions, and the noise that makes them look used.

A point set is a float32 array of shape (3, n); a distance is positive outside, negative inside.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def rgb(r: float, g: float, b: float) -> Array:
    return np.array([[r], [g], [b]], dtype=np.float32)


def at(p: Array, x: float, y: float, z: float) -> Array:
    """The same points seen from (x, y, z)."""
    return p - rgb(x, y, z)


def turn(p: Array, axis: str, degrees: float) -> Array:
    a, b = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    c, s = np.float32(np.cos(np.radians(degrees))), np.float32(np.sin(np.radians(degrees)))
    q = p.copy()
    q[a], q[b] = c * p[a] + s * p[b], c * p[b] - s * p[a]
    return q


def length(p: Array) -> Array:
    return np.sqrt((p * p).sum(0))


def unit(p: Array) -> Array:
    return p / np.maximum(length(p), 1e-8)


def dot(a: Array, b: Array) -> Array:
    return (a * b).sum(0)


def mix(a: Array, b: Array, share: Array | float) -> Array:
    return a + (b - a) * share


def step(low: float, high: float, x: Array) -> Array:
    """0 below `low`, 1 above `high`, smooth between (either order)."""
    x = np.clip((x - low) / (high - low), 0, 1)
    return x * x * (3 - 2 * x)


TABLE = np.random.RandomState(7).rand(32, 32, 32).astype(np.float32)


def noise(p: Array) -> Array:
    """Smooth random values in [0, 1], one per unit of space."""
    floor = np.floor(p)
    f = p - floor
    f = f * f * (3 - 2 * f)
    i = floor.astype(np.int32) & 31
    j = (i + 1) & 31
    total = np.zeros(p.shape[1], dtype=np.float32)
    for a, wa in ((i[0], 1 - f[0]), (j[0], f[0])):
        for b, wb in ((i[1], 1 - f[1]), (j[1], f[1])):
            total += wa * wb * (TABLE[a, b, i[2]] * (1 - f[2]) + TABLE[a, b, j[2]] * f[2])
    return total


def fractal(p: Array, octaves: int = 4) -> Array:
    """Noise on noise, each twice as fine and half as strong; about 0.5 on average."""
    total, weight = np.zeros(p.shape[1], dtype=np.float32), 0.0
    for k in range(octaves):
        total += noise(p * 2.03**k + 11.7 * k) * 0.5**k
        weight += 0.5**k
    return total / weight


def ball(p: Array, r: float) -> Array:
    return length(p) - r


def egg(p: Array, x: float, y: float, z: float) -> Array:
    r = rgb(x, y, z)
    k = length(p / r)
    return k * (k - 1) / np.maximum(length(p / (r * r)), 1e-6)


def box(p: Array, x: float, y: float, z: float, edge: float = 0.0) -> Array:
    q = np.abs(p) - rgb(x - edge, y - edge, z - edge)
    return length(np.maximum(q, 0)) + np.minimum(q.max(0), 0) - edge


def drum(p: Array, r: float, half: float, edge: float = 0.0) -> Array:
    """An upright cylinder."""
    a, b = np.hypot(p[0], p[2]) - (r - edge), np.abs(p[1]) - (half - edge)
    return np.minimum(np.maximum(a, b), 0) + np.hypot(np.maximum(a, 0), np.maximum(b, 0)) - edge


def ring(p: Array, r: float, thick: float) -> Array:
    """A torus around the y axis."""
    return np.hypot(np.hypot(p[0], p[2]) - r, p[1]) - thick


def rod(p: Array, a: tuple, b: tuple, ra: float, rb: float | None = None) -> Array:
    """A round stick from a to b, thinning from ra to rb."""
    start, way = rgb(*a), rgb(*b) - rgb(*a)
    h = np.clip(((p - start) * way).sum(0) / (way * way).sum(), 0, 1)
    return length(p - start - way * h) - (ra + ((ra if rb is None else rb) - ra) * h)


def join(a: Array, b: Array, k: float) -> Array:
    """The union of two solids with the seam melted over a width of about k."""
    h = np.maximum(k - np.abs(a - b), 0) / k
    return np.minimum(a, b) - h * h * k / 4
