"""Which cells of a map each window of attention holds: neighbours, perhaps shifted, or cells a stride apart.

How many windows there are must agree with the map that was seen; a model that says nothing about its windows, or
something that does not fit, has none that could be drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from labkit.evidence import Grid
from labkit.tracing.sightings import Seen

SIZES = ("window_size", "window_resolution", "partition_size", "ws")  # what modules call a window's size


@dataclass
class Cut:
    """Grids of the queries and the keys, and the cells (windows, members) that each window holds, -1 for padding."""

    grid: Grid
    windows: Tensor
    key_grid: Grid
    key_windows: Tensor

    @property
    def whole(self) -> bool:
        """One window that holds every cell."""
        return len(self.windows) == 1 and not (self.windows < 0).any()


def partition(chain: Iterable[Any], seen: Seen, count: int, members: int) -> Cut | None:
    """`count` windows of `members` cells, as the modules around the attention say and as the map allows."""
    if seen.now is None or seen.shift is None:
        return None
    window, strided = stated(chain, seen.now, count, members)
    if window is None or math.prod(padded(seen.now, window)) != count * members:
        return None
    cells = partitioned(seen.now, window, seen.shift, seen.rolled, strided)
    return Cut(seen.now, cells, seen.now, cells)


def stated(chain: Iterable[Any], grid: Grid, count: int, members: int) -> tuple[Grid | None, bool]:
    """The window's rows and columns, and whether its cells lie a stride apart."""
    for module in chain:
        if getattr(module, "patch_area", None) == count:  # each token of a patch meets those of the other patches
            stride = pair(module.patch_size)
            return (grid[0] // stride[0], grid[1] // stride[1]), True
        for name in SIZES:
            if math.prod(window := pair(getattr(module, name, 0))) == members:
                return window, getattr(module, "partition_block", True) is False
    return None, False


def partitioned(
    grid: Grid, window: Grid, shift: Grid = (0, 0), rolled: Grid | None = None, strided: bool = False
) -> Tensor:
    """(windows, members) → cell: the map is rolled and padded to whole windows, in the order seen, and cut."""
    cells, whole = torch.arange(math.prod(grid)).view(grid), padded(grid, window)
    if rolled in (None, grid):
        cells = cells.roll(shift, (0, 1))
    cells = F.pad(cells, (0, whole[1] - grid[1], 0, whole[0] - grid[0]), value=-1)
    if rolled not in (None, grid):
        cells = cells.roll(shift, (0, 1))
    pattern = "(a i) (b j) -> (i j) (a b)" if strided else "(i a) (j b) -> (i j) (a b)"
    return rearrange(cells, pattern, a=window[0], b=window[1])


def mask_units(unroll: Any, count: int, queries: int, keys: int) -> Cut | None:
    """The windows of a model that keeps its tokens unrolled: strides come first, units last."""
    parts = [unrolled(unroll, count, n) for n in (queries, keys)]
    if parts[0] is None or parts[1] is None:
        return None
    return Cut(*parts[0], *parts[1])


def unrolled(unroll: Any, count: int, members: int) -> tuple[Grid, Tensor] | None:
    """The grid that has count * members cells, and the cells of each unit."""
    h, w = unroll.size
    schedule = list(unroll.schedule)
    while h * w > count * members and schedule:
        a, b = schedule.pop(0)
        h, w = h // a, w // b
    if h * w != count * members:
        return None
    cells = torch.arange(h * w).view(1, h, w)
    for a, b in schedule:
        cells = rearrange(cells, "s (h a) (w b) -> (s a b) h w", a=a, b=b)
    return (h, w), rearrange(cells.flatten(), "(members units) -> units members", units=count)


def padded(grid: Grid, window: Grid) -> Grid:
    return math.ceil(grid[0] / window[0]) * window[0], math.ceil(grid[1] / window[1]) * window[1]


def pair(value: Any) -> Grid:
    if isinstance(value, int):
        return value, value
    if isinstance(value, tuple | list) and len(value) == 2:
        return int(value[0]), int(value[1])
    return 0, 0
