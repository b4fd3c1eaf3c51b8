"""Softmax attention with any relative bias cannot say where it is; a gain on each displacement after it can.

"Your Transformer May Not be as Powerful as You Expect", 2022 (S101). A row of probabilities sums to one, so equal
tokens mix to the same token at every place, whatever the bias: (softmax(q kᵀ / √d_head + B) ∘ C) v does not, where C
is a learned gain for each displacement and head. Near an edge other displacements occur than in the middle, so the
rows of C sum to other numbers.

    vit = labkit.ViT(64, 8, 10, 64, 6, 4, pool="avg", position=[RelativeBias((8, 8), 4) for _ in range(6)])
    vit = replace_attention(vit, lambda dim, heads: URPEAttention(dim, heads, (8, 8)))
    vit.blocks[0].attn.gain((8, 8))            # (heads, 64, 64), ones at first
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.evidence import Grid
from labkit.positions.grid import for_each_pair
from labkit.positions.mixer import OpenAttention


class URPEAttention(OpenAttention):
    """With all gains at one it is the attention that it repairs; a relative bias goes to `position`, as usual."""

    def __init__(self, dim: int, heads: int, grid: Grid) -> None:
        super().__init__(dim, heads)
        self.grid = grid
        self.gains = nn.Parameter(torch.ones((2 * grid[0] - 1) * (2 * grid[1] - 1), heads))

    def gain(self, grid: Grid) -> Tensor:
        """C (heads, n, n), constant along each displacement."""
        return for_each_pair(self.gains, grid, self.grid)

    def mix(self, attn: Tensor, v: Tensor, grid: Grid, prefix: int) -> Tensor:
        return attn * F.pad(self.gain(grid), (prefix, 0, prefix, 0), value=1.0)[:, : attn.shape[2]] @ v
