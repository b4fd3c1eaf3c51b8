"""What the schemes at the scores share: a bias for each head and displacement, and none for other tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Grid
from labkit.positions.grid import for_each_pair


def check_tokens(n: int, grid: Grid, prefix: int) -> None:
    """A scheme that asks where the patches are needs all of them, in their places."""
    h, w = grid
    if n != prefix + h * w:
        raise LabkitError(
            f"{n} tokens are not the {prefix} before the patches and the {h}x{w} patches of the grid; this position "
            "needs every patch in its place, so do not prune or merge tokens before it."
        )


def check_heads(found: int, expected: int) -> None:
    if found != expected:
        raise LabkitError(f"The position was made for {expected} heads and the attention has {found}; use {found}.")


class ScoreBias(nn.Module):
    """Adds `bias(grid)` to the scores of patches; the tokens before the patches get zero."""

    place = "scores"

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def known(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """(displacements, heads), in the order of `labkit.positions.grid.displacements`."""
        raise NotImplementedError

    def bias(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """(heads, n, n): the number that each pair of patches gets."""
        return for_each_pair(self.known(grid, device), grid)

    def forward(
        self, q: Tensor, k: Tensor, bias: Tensor | None, grid: Grid, prefix: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        check_heads(q.shape[1], self.heads)
        check_tokens(k.shape[2], grid, prefix)
        own = F.pad(self.bias(grid, q.device).to(q), (prefix, 0, prefix, 0))[None, :, : q.shape[2]]
        return q, k, own if bias is None else bias + own
