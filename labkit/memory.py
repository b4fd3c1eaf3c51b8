"""What a call holds in memory, counted and not sampled: every tensor that is made and dies, on any device.

A dispatch mode sees each storage when an operator returns it, and hears when the last tensor lets go of it. What a
fused kernel uses inside is its own affair and is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from labkit.dispatch import Watch


@dataclass(frozen=True)
class Memory:
    """Bytes beyond what there was before the call."""

    peak: int  # the most that lived at one time
    largest: int  # the largest single tensor


def measure(fn: Callable, *inputs: Any) -> Memory:
    """The memory of `fn(*inputs)`; its result counts, its inputs and what it closes over do not.

    memory.measure(lambda q: q @ q.T, q).peak
    """
    watch = _Watch()
    with watch:
        kept = fn(*inputs)
    del kept
    return Memory(watch.peak, watch.largest)


class _Watch(Watch):
    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.now = self.peak = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {_key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and _key(tensor) not in known | self.alive.keys():
                self.born(tensor)
        return out

    def born(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.alive[storage._cdata] = storage.nbytes()
        weakref.finalize(storage, self.gone, storage._cdata)
        self.now += storage.nbytes()
        self.peak, self.largest = max(self.peak, self.now), max(self.largest, storage.nbytes())

    def gone(self, key: int) -> None:
        self.now -= self.alive.pop(key)


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
