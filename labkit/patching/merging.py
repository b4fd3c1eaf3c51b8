"""Merge patches two by two: four neighbours are laid side by side and projected, as a hierarchy goes up a floor.

"Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", 2021 (S083). Each merging leaves a quarter
of the tokens and doubles their width: a linear layer on four tokens is a convolution of kernel and stride 2.

    x, grid = PatchMerging(32)(x, (16, 16))    # (b, 256, 32) → (b, 64, 64), (8, 8)
    vit = labkit.ViT(64, 8, 10, 64, 4, 4, patching=Pyramid(64, patch=2, depths=(1, 1), heads=2))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Grid
from labkit.vit import Block, PatchEmbed


class PatchMerging(nn.Module):
    """(x, grid) → (x, grid) with half the rows and columns; parameters carry the names of timm's Swin.

    A row or column without a neighbour gets zeros for one. n tokens of width d become n / 4 of width `out`
    for n d out MACs.
    """

    def __init__(self, dim: int, out: int | None = None, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim if out is None else out, bias=False)

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        h, w = grid
        if x.shape[1] != h * w:
            raise LabkitError(f"{x.shape[1]} tokens do not fill a grid of {h}x{w}; merge before tokens are dropped.")
        maps = F.pad(rearrange(x, "b (h w) d -> b h w d", h=h), (0, 0, 0, w % 2, 0, h % 2))
        four = rearrange(maps, "b (h p) (w q) d -> b (h w) (q p d)", p=2, q=2)
        return self.reduction(self.norm(four)), ((h + 1) // 2, (w + 1) // 2)


class Pyramid(nn.Module):
    """Images → (x, grid): small patches, and before each merging `depths[i]` blocks on the many narrow tokens.

    Without blocks and norms it is a PatchEmbed of `patch` · 2^len(depths) pixels with a factored kernel.
    """

    def __init__(
        self,
        dim: int,
        patch: int = 4,
        depths: Sequence[int] = (1, 1),
        heads: int = 2,
        channels: int = 3,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        width = dim // 2 ** len(depths)
        if width * 2 ** len(depths) != dim:
            raise LabkitError(
                f"{len(depths)} mergings cannot end at a width of {dim}; it is no multiple of {2 ** len(depths)}."
            )
        self.embed = PatchEmbed(patch, channels, width)
        self.stages: Any = nn.ModuleList()
        self.mergings = nn.ModuleList()
        for depth in depths:
            self.stages.append(nn.ModuleList(Block(width, heads) for _ in range(depth)))
            self.mergings.append(PatchMerging(width, norm=norm))
            width *= 2

    def forward(self, images: Tensor) -> tuple[Tensor, Grid]:
        x, grid = self.embed(images)
        for blocks, merging in zip(self.stages, self.mergings, strict=True):
            for block in blocks:
                x = block(x, grid).x
            x, grid = merging(x, grid)
        return x, grid
