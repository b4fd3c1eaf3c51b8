"""A penalty that grows with distance, at another rate in every head: near-sighted heads beside far-sighted ones.

"Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation", 2021, in two dimensions:
score -= slope |p_query - p_key| with slopes 2^(-8 i / heads), i = 1 … heads. Nothing is learned.

    vit = labkit.ViT(64, 8, 10, 64, 6, 4, position=ALiBi(heads=4))
    ALiBi(4).bias((8, 8))                      # (heads, 64, 64)
    ALiBi(4, slopes=(0, 0, 0, 0))              # the plain attention
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from labkit.evidence import Grid
from labkit.positions.grid import displacements
from labkit.positions.scores import ScoreBias, check_heads


class ALiBi(ScoreBias):
    """-slope x Euclidean distance; the bias of a small grid is a crop of the bias of a large one."""

    def __init__(self, heads: int, slopes: Sequence[float] | None = None) -> None:
        super().__init__(heads)
        self.slopes = tuple(slopes or (2 ** (-8 * i / heads) for i in range(1, heads + 1)))
        check_heads(heads, len(self.slopes))

    def known(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        distance = displacements(grid, device).float().norm(dim=1, keepdim=True)
        return -distance * torch.tensor(self.slopes, device=device)
