"""Looks for floats where there should be none: a walk over every operation that torch executes.

    with FloatWalk() as walk:
        codes = block(codes)
    assert not walk.floating and walk.all.total() > 100      # a walk that saw nothing proves nothing

What is counted are torch's operations, also those inside a module; Python's own numbers are not seen.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from labkit.dispatch import Watch


class FloatWalk(Watch):
    """Counts operations by their name, and apart those that read or write a floating-point number."""

    def __init__(self) -> None:
        super().__init__()
        self.all: Counter[str] = Counter()
        self.floating: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = operation(*args, **(kwargs or {}))
        name = operation.overloadpacket.__name__
        self.all[name] += 1
        if any(is_float(value) for value in tree_leaves((args, kwargs, out))):
            self.floating[name] += 1
        return out


def is_float(value: Any) -> bool:
    return value.is_floating_point() if isinstance(value, torch.Tensor) else isinstance(value, float)
