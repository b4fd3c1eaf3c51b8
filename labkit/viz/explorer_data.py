"""One image of a trace as the explorer needs it: in Python as numbers, for the browser as one piece of bytes.

Both sides read the same bytes, so that the sentence in Python is the sentence on the page.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from labkit.evidence import Grid
from labkit.viz.explorer_film import film
from labkit.viz.explorer_maps import (
    LayerMaps,
    can_roll,
    compact,
    drawable,
    habits,
    layer_maps,
    quantise,
    rollouts,
    size,
)

if TYPE_CHECKING:
    from labkit.tracing.trace import Trace

LIMIT = 16 * 2**20  # bytes of maps that travel at once; above it, large layers send only the rows that are looked at
SORTS = ("entropy", "distance")

Query = str | tuple[int, int]  # "class", or (row, column) of a patch on the finest grid


class Look(NamedTuple):
    """One map: shares for each cell of a grid, and for each token that is no patch."""

    cells: np.ndarray
    grid: Grid
    extra: np.ndarray
    names: tuple[str, ...]


@dataclass
class ImageMaps:
    """Everything the explorer shows of one image of a trace; maps are made when they are asked for."""

    trace: Trace
    image: int
    picture: np.ndarray  # uint8 (h, w, 3)
    mask: np.ndarray | None = None  # bool (h, w)
    name: str = ""
    caption: str = ""
    limit: int = LIMIT
    cache: dict[int, LayerMaps] = field(default_factory=dict)

    @cached_property
    def rolls(self) -> bool:
        return can_roll(self.trace)

    @cached_property
    def rollouts(self) -> list[np.ndarray] | None:
        return rollouts(self.trace, self.image) if self.rolls else None

    @cached_property
    def film(self) -> np.ndarray | None:
        return film(self.trace, self.image)

    @cached_property
    def habits(self) -> list[np.ndarray]:
        """For each layer (2, heads): entropy in nats, distance in pixels."""
        return [
            habits(self.trace, i, self.image) if drawable(layer) else np.zeros((2, layer.heads), np.float32)
            for i, layer in enumerate(self.trace.layers)
        ]

    def order(self, layer: int, sort: str) -> np.ndarray:
        """int32: the heads of a layer, the most focused or the nearest first."""
        return self.habits[layer][SORTS.index(sort)].argsort(kind="stable").astype(np.int32)

    @cached_property
    def served(self) -> list[bool]:
        """Which layers are too large to travel at once."""
        sizes = [size(layer, self.rolls) for layer in self.trace.layers]
        large = self.limit / len(sizes) if sum(sizes) > self.limit else math.inf
        return [bytes_ > large and not compact(layer) for bytes_, layer in zip(sizes, self.trace.layers, strict=True)]

    @property
    def nbytes(self) -> int:
        return sum(size(layer, self.rolls) for layer in self.trace.layers)

    def names(self) -> tuple[str, ...]:
        """Of the tokens that are no patches, in any layer."""
        return max((layer.prefix_names for layer in self.trace.layers), key=len, default=())

    def maps(self, layer: int) -> LayerMaps:
        if layer not in self.cache:
            self.cache[layer] = self.measure(layer)
        return self.cache[layer]

    def measure(self, layer: int, **queries: Any) -> LayerMaps:
        return layer_maps(self.trace, layer, self.image, self.rollouts[layer] if self.rollouts else None, **queries)

    def number(self, layer: int, query: Query, of_keys: bool) -> int | None:
        """The number of the query's token among the layer's queries or keys; None when it has no such token."""
        info = self.trace.layers[layer]
        prefix, grid = (info.key_prefix, info.key_grid) if of_keys else (info.prefix, info.grid)
        if isinstance(query, str):
            names = info.prefix_names[:prefix]
            return names.index(query) if query in names else None
        if not math.prod(grid):
            return None
        row, column = (cell(at, patches, n) for at, patches, n in zip(query, self.trace.patches, grid, strict=True))
        return prefix + row * grid[1] + column

    def heads(self, layer: int, query: Query, direction: str) -> Look | None:
        """The maps of all heads, and of the rollout behind them: cells (heads, cells), extra (heads, prefix)."""
        info, back = self.trace.layers[layer], direction == "looked at by"
        number = self.number(layer, query, back) if drawable(info) else None
        if number is None:
            return None
        if back:
            cells, extra = self.maps(layer).column(number, info.prefix, info.key_prefix, math.prod(info.grid))
            grid, names = info.grid, info.prefix_names[: info.prefix]
        else:
            one = self.served[layer] and layer not in self.cache
            maps = self.measure(layer, queries=[number]) if one else self.maps(layer)
            cells, extra = maps.row(0 if one else number, math.prod(info.key_grid))
            grid, names = info.key_grid, info.prefix_names[: info.key_prefix]
        if self.served[layer]:  # what the browser is sent has one byte for each cell
            shares, scales = quantise(cells)
            cells, extra = shares * scales[:, None].astype(float) / 255, extra.astype(np.float32).astype(float)
        return Look(cells, grid, extra, names)

    def look(self, layer: int, head: int | str, query: Query, direction: str) -> Look | None:
        """One map; `head` is a number (the last head when there are fewer), "mean", "max" or "rollout"."""
        seen, count = self.heads(layer, query, direction), self.trace.layers[layer].heads
        if seen is None or (head == "rollout" and not self.rolls):
            return None
        if isinstance(head, int) or head == "rollout":
            row = count if isinstance(head, str) else min(head, count - 1)
            return seen._replace(cells=seen.cells[row], extra=seen.extra[row])
        join = joined_mean if head == "mean" else np.max
        return seen._replace(cells=join(seen.cells[:count], axis=0), extra=join(seen.extra[:count], axis=0))


def joined_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean, added up head by head as the browser does: the last bit decides how a tie is told."""
    assert axis == 0
    total = np.zeros(values.shape[1:])
    for head in values:
        total = total + head
    return total / len(values)


def cell(at: int, fine: int, coarse: int) -> int:
    """The cell of a coarse axis that holds the middle of cell `at` of a fine one."""
    return min(coarse - 1, (2 * at + 1) * coarse // (2 * fine))
