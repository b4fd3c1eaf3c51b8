"""Tokens are channels, not places: each map that a small convolutional network computes is one token, seen whole.

The grid is turned around: a hybrid ViT reads the k maps of n places as n tokens of width k, this one as k tokens
of width n. "Patch Is Not All You Need", 2023 (S180).

    vit = ViT(64, dim=64, depth=4, heads=4, patching=PatternTokens(stem, (16, 16), dim=64))  # stem: images → maps

The same turn on a series, with variates in the role of channels: "iTransformer: Inverted Transformers Are
Effective for Time Series Forecasting", 2023 (S134).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Grid
from labkit.vit import Block


class PatternTokens(nn.Module):
    """Images → (x (b, k, dim), (1, k)): the k maps of `cnn`, averaged to `size` when they are larger, projected."""

    def __init__(self, cnn: nn.Module, size: Grid, dim: int) -> None:
        super().__init__()
        self.cnn, self.size = cnn, size
        self.proj = nn.Linear(size[0] * size[1], dim)

    def forward(self, images: Tensor) -> tuple[Tensor, Grid]:
        maps = self.cnn(images)
        h, w = maps.shape[-2:]
        if h < self.size[0] or w < self.size[1]:
            raise LabkitError(
                f"The maps are {h}x{w}, smaller than the {self.size[0]}x{self.size[1]} that a pattern is read at; "
                "give larger images or a smaller size."
            )
        x = self.proj(F.adaptive_avg_pool2d(maps, self.size).flatten(2))
        return x, (1, x.shape[1])


class InvertedEncoder(nn.Module):
    """Series (b, length, variates) → forecasts (b, horizon, variates): blocks attend across any number of variates.

    The attention of v variates costs 2 v² dim a block, whatever the length.
    """

    def __init__(self, length: int, dim: int, depth: int, heads: int, horizon: int | None = None) -> None:
        super().__init__()
        self.embed = PatternTokens(nn.Identity(), (length, 1), dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, length if horizon is None else horizon)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 3 or x.shape[1] != self.embed.size[0]:
            raise LabkitError(
                f"The series have shape {tuple(x.shape)}; expected (batch, {self.embed.size[0]}, variates)."
            )
        x, grid = self.embed(x.transpose(1, 2)[..., None])
        for block in self.blocks:
            x = block(x, grid).x
        return self.head(self.norm(x)).transpose(1, 2)
