"""A point of a model where a tensor is rounded on its way, and where it can be watched.

Before it has a grid a point lets numbers pass, so that the first run of a model, with `seen` a list, is the
calibration: what would be rounded is noted and nothing changes. The same list shows later what a grid does.

    for name, point in points(model).items(): ...       # "blocks.3.mlp.fc1.input", "blocks.3.attn.softmax", ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from labkit.quant.grids import Grid, Uniform


class Point(nn.Module):
    """Rounds what passes to `grid`; with `token_bits`, each token to a symmetric grid of its own, made on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.grid: Grid | None = None
        self.token_bits: int | None = None
        self.seen: list[Tensor] | None = None

    def grid_for(self, x: Tensor) -> Grid | None:
        """The grid that x is rounded to; None leaves it as it is."""
        if self.token_bits is None:
            return self.grid
        return Uniform.of(*x.aminmax(dim=-1, keepdim=True), bits=self.token_bits, symmetric=True)

    def watch(self, x: Tensor) -> None:
        if self.seen is not None:
            self.seen.append(x.detach())

    def forward(self, x: Tensor) -> Tensor:
        self.watch(x)
        grid = self.grid_for(x)
        return x if grid is None else grid.round(x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Point:
        """A grid is no parameter, but it moves with the model."""
        super()._apply(fn, recurse)
        self.grid = moved(self.grid, fn)
        return self


def moved(grid: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """The grid with its tensors on another device; a change of precision does not reach it."""
    if grid is None or isinstance(grid, nn.Module):  # a grid that learns is a module and has moved by itself
        return grid
    changed: dict[str, Any] = {}
    for field in fields(grid):
        value = getattr(grid, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = value.to(fn(torch.zeros(0, device=value.device)).device)
        elif isinstance(value, Uniform):
            changed[field.name] = moved(value, fn)
    return replace(grid, **changed)


def points(model: nn.Module) -> dict[str, Point]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Point)}


@contextmanager
def watched(model: nn.Module) -> Iterator[Mapping[str, list[Tensor]]]:
    """While this lasts, every point notes what reaches it, before rounding: {name: tensors}.

    A ViT computes all rows of its last block meanwhile, and not only those that its head reads.
    """
    notes: dict[str, list[Tensor]] = {}
    last = getattr(model, "last", None)
    for name, point in points(model).items():
        point.seen = notes[name] = []
    try:
        if last is not None:
            model.last = "full"  # type: ignore[assignment]
        yield notes
    finally:
        for point in points(model).values():
            point.seen = None
        if last is not None:
            model.last = last
