"""Which rows and columns the feature maps of a model had while it ran: the evidence for where its tokens lie.

Convolutions, poolings, norms over maps and strided slices show a grid; a roll shows how far a map is shifted. What
was seen is believed before what a module says about itself, which may be meant for images of another size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from labkit.evidence import Grid

MAPS = {"conv2d", "avg_pool2d", "adaptive_avg_pool2d", "max_pool2d", "interpolate"}  # (b, c, h, w)
NORMS = {"layer_norm", "rms_norm"}  # over channels that come last: (b, h, w, c)


@dataclass(frozen=True)
class Seen:
    """What was seen until an attention ran."""

    now: Grid | None = None  # of the map that came to the module that attends
    grids: tuple[Grid, ...] = ()  # of all maps, the latest first
    shift: Grid | None = (0, 0)  # how far that map is rolled; None where a roll was not understood
    rolled: Grid | None = None  # the grid that was rolled last, which may have been padded before

    def of(self, size: Grid) -> Seen:
        """Without what has not about the proportions of the image: a column of tokens, or windows by members."""

        def fits(grid: Grid | None) -> bool:
            return grid is not None and 1 / 3 < grid[0] * size[1] / (grid[1] * size[0]) < 3

        now, grids = self.now if fits(self.now) else None, tuple(grid for grid in self.grids if fits(grid))
        return Seen(now, grids, self.shift, self.rolled)


class Sightings:
    """Takes notes of the calls of one forward pass."""

    def __init__(self) -> None:
        self.found: list[tuple[str, Grid]] = []  # (module, grid)
        self.owners: set[str] = set()
        self.shift: Grid | None = (0, 0)
        self.rolled: Grid | None = None

    def note(self, func: Any, args: tuple, kwargs: dict, out: Any, where: Callable[[], str]) -> None:
        name = getattr(func, "__name__", "")
        if not isinstance(out, Tensor) or out.ndim != 4:
            return
        if name == "roll":
            self.roll(out, *args[1:], **{key: value for key, value in kwargs.items() if key != "input"})
        elif (grid := grid_of(name, args, out)) is not None and math.prod(grid) > 1:
            self.found.append((where(), grid))

    def roll(self, x: Tensor, shifts: Any, dims: Any = None) -> None:
        """Add up what a map of grid (h, w) is rolled by; rolled back, it is where it was."""
        if not isinstance(dims, tuple | list) or len(dims) != 2 or self.shift is None:
            self.shift = None
            return
        (down, rows), (right, columns) = sorted(
            ((by, axis % x.ndim) for by, axis in zip(shifts, dims, strict=True)), key=lambda pair: pair[1]
        )
        h, w = x.shape[rows], x.shape[columns]
        self.shift, self.rolled = ((self.shift[0] + down) % h, (self.shift[1] + right) % w), (h, w)

    def until(self, owner: str) -> Seen:
        """What was seen before this module attends. What an attention does inside is no map of the model."""
        self.owners.add(owner)
        outside = [grid for module, grid in self.found if not self.inside(module)]
        latest_first = tuple(dict.fromkeys(grid for _, grid in reversed(self.found)))
        return Seen(outside[-1] if outside else None, latest_first, self.shift, self.rolled)

    def inside(self, module: str) -> bool:
        return any(module == owner or module.startswith(f"{owner}.") for owner in self.owners)


def grid_of(name: str, args: tuple, out: Tensor) -> Grid | None:
    """The rows and columns of what a function put out, where the function tells which axes they are."""
    if name in MAPS:
        return out.shape[2], out.shape[3]
    if name in NORMS:
        return out.shape[1], out.shape[2]
    if name == "__getitem__" and isinstance(args[1], tuple) and Ellipsis not in args[1]:
        strided = [i for i, part in enumerate(args[1]) if isinstance(part, slice) and part.step not in (None, 1)]
        if len(strided) == 2:
            return out.shape[strided[0]], out.shape[strided[1]]
    return None
