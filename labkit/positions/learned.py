"""One learned vector for each place of the training grid; other grids read the table by interpolation.

"An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", 2020 (S207). The resampling is
bicubic and antialiased, as timm's `resample_abs_pos_embed`.

    vit = labkit.ViT(64, 8, 10, 64, 6, 4, position=LearnedTable((8, 8), 64))
    vit(images_at_64)     # the table itself
    vit(images_at_96)     # the table, stretched to 12x12
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labkit.evidence import Grid
from labkit.vit import resample_positions


class LearnedTable(nn.Module):
    """x + table, at the patches; h*w*d parameters."""

    place = "tokens"

    def __init__(self, grid: Grid, dim: int) -> None:
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(torch.randn(1, grid[0] * grid[1], dim) * 0.02)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        return x + resample_positions(self.table, self.grid, grid)
