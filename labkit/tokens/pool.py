"""Pool the patch tokens between two stages, as a CNN does: nobody decides anything, the grid (or the row) is halved.

"Scalable Vision Transformers with Hierarchical Pooling", 2021 (HVT, S204) takes the maximum over windows of the token
sequence and reads the mean of the last tokens in place of a class token. The mean and the first patch of every square
of the grid are the plain poolings to compare with:

    stages = tokens.attach(ViT(pool="avg"), MaxPool(kernel=3, stride=2), layers=[4, 8])
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from labkit.errors import LabkitError
from labkit.evidence import Evidence, Grid, Groups, taken


def on_grid(x: Tensor, grid: Grid, prefix: int) -> Tensor:
    """The patch tokens of (b, prefix + h*w, d) as (b, h, w, d)."""
    patches = x.shape[1] - prefix
    if grid[0] * grid[1] != patches:
        raise LabkitError(
            f"A grid of {grid[0]}x{grid[1]} has {grid[0] * grid[1]} patches, but {patches} arrived; "
            "give the reducer the grid that its block sees, with no patch dropped or merged before."
        )
    return rearrange(x[:, prefix:], "b (h w) d -> b h w d", h=grid[0])


def cells(rows: Tensor, columns: Tensor, x: Tensor, sizes: Tensor | None, prefix: int) -> Groups:
    """Patch (i, j) goes into the cell (rows[i], columns[j]) of a smaller grid; prefix tokens stay alone."""
    height, width = int(rows[-1]) + 1, int(columns[-1]) + 1
    home = (rows[:, None] * width + columns).flatten() + prefix
    home = torch.cat([torch.arange(prefix), home]).to(x.device).expand(x.shape[:2])
    count = prefix + height * width
    return Groups(home, count, sizes, joins=count < x.shape[1])


def chosen(patches: Tensor, x: Tensor, prefix: int) -> tuple[Tensor, Groups]:
    """The prefix tokens and the patch tokens with these numbers, the same in every image."""
    kept = torch.cat([torch.arange(prefix), patches + prefix]).to(x.device).expand(len(x), -1)
    return taken(x, kept), Groups.choice(kept, x.shape[1])


def squares(side: int, stride: int) -> Tensor:
    """In which square each row (or column) lies; the last square may hold fewer."""
    if stride < 1:
        raise LabkitError(f"stride={stride} does not move; expected a whole number from 1 on.")
    return torch.arange(side) // stride


@dataclass
class AveragePool:
    """A reducer: the mean of every stride x stride square of the grid. `stride=1` is the identity."""

    grid: Grid
    stride: int = 2

    def reduce(self, x: Tensor, evidence: Evidence, sizes: Tensor | None, prefix: int) -> tuple[Tensor, Groups]:
        h, w = on_grid(x, self.grid, prefix).shape[1:3]
        groups = cells(squares(h, self.stride), squares(w, self.stride), x, sizes, prefix)
        return groups.mean(x), groups


@dataclass
class StridedPool:
    """A reducer: the first patch of every stride x stride square, the rest dropped. `stride=1` is the identity."""

    grid: Grid
    stride: int = 2

    def reduce(self, x: Tensor, evidence: Evidence, sizes: Tensor | None, prefix: int) -> tuple[Tensor, Groups]:
        h, w = on_grid(x, self.grid, prefix).shape[1:3]
        rows, columns = (squares(side, self.stride).unique() * self.stride for side in (h, w))
        return chosen((rows[:, None] * w + columns).flatten(), x, prefix)


def token_max_pool(x: Tensor, kernel: int = 3, stride: int = 2) -> tuple[Tensor, Tensor]:
    """(b, n, d) → (b, m, d) and (b, m, n), m = (n - kernel) // stride + 1: the maximum in every channel of a window.

    The map says which share of a token's channels came from which old token: what a maximum is made of.
    """
    b, n, d = x.shape
    pooled, winner = F.max_pool1d(x.transpose(1, 2), kernel, stride, return_indices=True)
    votes = torch.zeros(b, pooled.shape[2], n, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    votes = votes.scatter_add(2, winner.transpose(1, 2), votes.new_ones(1).expand(b, pooled.shape[2], d))
    return pooled.transpose(1, 2), votes / d


@dataclass
class MaxPool:
    """A reducer: the maximum over windows of the patch sequence (HVT). `kernel=1, stride=1` is the identity.

    `position` (1, m, d) is added to the pooled tokens; it is no part of the model, so its optimiser has to be told.
    Windows may overlap, so the tokens share the patches evenly, and attention weighs them alike, as in the paper.
    """

    kernel: int = 3
    stride: int = 2
    position: Tensor | None = None

    def reduce(
        self, x: Tensor, evidence: Evidence, sizes: Tensor | None, prefix: int
    ) -> tuple[Tensor, Tensor | Groups]:
        n = x.shape[1] - prefix
        if not 1 <= self.kernel <= n or self.stride < 1:
            raise LabkitError(
                f"kernel={self.kernel}, stride={self.stride} cannot pool {n} patch tokens; "
                "expected a kernel of 1 to as many as there are, and a stride from 1 on."
            )
        how: Tensor | Groups
        if self.kernel == 1:  # each new token is one old token: say so, and later attention needs no bias
            x, how = chosen(torch.arange(0, n, self.stride), x, prefix)
        else:
            pooled, share = token_max_pool(x[:, prefix:], self.kernel, self.stride)
            x = torch.cat([x[:, :prefix], pooled], dim=1)
            itself = torch.eye(prefix, device=x.device).expand(len(x), -1, -1)
            how = F.pad(share, (prefix, 0, prefix, 0))
            how[:, :prefix, :prefix] = itself
        if self.position is not None:
            x = torch.cat([x[:, :prefix], x[:, prefix:] + self.position], dim=1)
        return x, how
