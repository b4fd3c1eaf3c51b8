"""Who is inside whom, through depth: for each step and patch a label of its token that stays the same while it lives.

A merged token takes the label of its largest part, so that its colour stays when it grows; a dropped patch has none.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from labkit.tracing.trace import Trace

GONE = -1


def film(trace: Trace, image: int) -> np.ndarray | None:
    """int32 (steps, patches): before each block and after the last; None when no token was dropped or merged."""
    if trace.own is None or all(step is None for step in [trace.own.entry, *trace.step_maps]):
        return None
    patches = math.prod(trace.patches)
    labels: list[np.ndarray] = []
    for block in range(len(trace.step_maps) + 1):
        before = labels[-1] if labels else np.arange(patches)
        labels.append(relabel(trace.own.provenance(block, patches)[image].numpy(), before))
    return np.stack(labels).astype(np.int32)


def relabel(inside: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Labels after a step, from `inside` (tokens, patches) and the labels before it."""
    owner = np.where(inside.max(axis=0) > 0, inside.argmax(axis=0), GONE)
    after = np.full_like(before, GONE)
    for token in np.unique(owner[owner != GONE]):
        members = owner == token
        parts, sizes = np.unique(before[members], return_counts=True)
        after[members] = parts[sizes.argmax()]
    return after
