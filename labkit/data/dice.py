"""Random numbers that are the same on every machine and in every version of every library.

A number is a hash, SplitMix64 ("Fast splittable pseudorandom number generators", 2014), of its seed, split, index
and slot: image 7 of a series is the same whether it is drawn alone or in a batch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def _hash(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64: a bijection of 64-bit integers whose output passes as random."""
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Dice:
    """Uniform numbers for a batch of images; each call takes the next slots of every image's own stream."""

    def __init__(self, seed: int, split: int, index: NDArray[np.int64]) -> None:
        key = _hash(np.array([seed * 4 + split], np.uint64))
        self.streams, self.slot = _hash(key ^ index.astype(np.uint64)), 0

    def bits(self, count: int) -> NDArray[np.uint64]:
        slots = np.arange(self.slot, self.slot + count, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95)
        self.slot += count
        return _hash(self.streams[:, None] + slots)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> NDArray[np.float32]:
        u = (self.bits(int(np.prod(shape))) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
        return np.float32(low) + np.float32(high - low) * u.reshape(len(u), *shape)

    def bytes(self, count: int) -> NDArray[np.uint8]:
        return self.bits(-(-count // 8)).astype("<u8").view(np.uint8)[:, :count]
