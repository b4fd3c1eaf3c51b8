"""A learned bias for each displacement: one entry of a table, or a small network asked about the displacement.

"Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", 2021 (S083), has a table of (2h-1)(2w-1)
entries a head: it knows no displacement that the training grid did not have. "Swin Transformer V2: Scaling Up
Capacity and Resolution", 2021, asks an MLP about log-spaced coordinates, so a larger grid extrapolates by little.
Parameters carry the names of timm's `RelPosBias` and `RelPosMlp(mode="swin")`.

    vit = labkit.ViT(64, 8, 10, 64, 6, 4, position=[RelativeBias((8, 8), heads=4) for _ in range(6)])
    vit = labkit.ViT(64, 8, 10, 64, 6, 4, position=[ContinuousBias((8, 8), heads=4) for _ in range(6)])
    vit(images_at_128)                         # the second one only
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from labkit.evidence import Grid
from labkit.positions.grid import displacements, for_each_pair
from labkit.positions.scores import ScoreBias


class RelativeBias(ScoreBias):
    """bias[query, key] = table[displacement]; (2h-1)(2w-1) parameters a head, for grids up to its own."""

    def __init__(self, grid: Grid, heads: int) -> None:
        super().__init__(heads)
        self.grid = grid
        entries = (2 * grid[0] - 1) * (2 * grid[1] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.randn(entries, heads) * 0.02)

    def bias(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        return for_each_pair(self.relative_position_bias_table, grid, self.grid)


class LogMLP(nn.Module):
    """Two coordinates → a number for each head."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2, hidden)
        self.fc2 = nn.Linear(hidden, heads, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x).relu())


class ContinuousBias(ScoreBias):
    """bias = 8 tanh(mlp(sign(u) log(1 + |u|) / log 8) / 2), u = 8 at the training grid's longest displacement.

    That is 16 sigmoid(mlp) - 8. The paper has no - 8: the softmax does not see it among patches, but a class
    token, which has no displacement, would start e^8 behind them.
    """

    def __init__(self, grid: Grid, heads: int, hidden: int = 512) -> None:
        super().__init__(heads)
        self.grid = grid
        self.mlp = LogMLP(hidden, heads)

    def known(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        longest = torch.tensor([max(side - 1, 1) for side in self.grid], device=device)
        u = 8 * displacements(grid, device) / longest
        log_spaced = u.sign() * (1 + u.abs()).log2() / math.log2(8)
        return 8 * (self.mlp(log_spaced.to(self.mlp.fc1.weight)) / 2).tanh()
