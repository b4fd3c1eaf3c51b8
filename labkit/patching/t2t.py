"""Tokens to token: cut softly, let the pieces talk a little, lay them out as an image, cut softly again.

"Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet", 2021 (S123). A soft split takes
overlapping k x k squares; each split makes tokens fewer and longer, and a light layer of attention between two
splits makes them short again. Without that layer and without overlap, the tokens hold the pixels of one big patch.

    vit = labkit.ViT(64, 16, 10, 64, 6, 4, patching=TokensToToken(64))
    vit = labkit.ViT(64, 8, 10, 64, 6, 4, patching=TokensToToken(64, ((7, 4, 2), (3, 2, 1))))
    tokens, grid = soft_split(images, kernel=7, stride=4, padding=2)
    soft_merge(tokens, (64, 64), 7, 4, 2)      # the images again
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Grid
from labkit.patching.overlap import token_grid
from labkit.vit import MLP, check_images

Split = tuple[int, int, int]  # kernel, stride, padding


def soft_split(x: Tensor, kernel: int, stride: int, padding: int = 0) -> tuple[Tensor, Grid]:
    """Maps (b, c, h, w) → the pixels of overlapping squares, (b, n, c k²), and their grid."""
    grid = token_grid((x.shape[-2], x.shape[-1]), kernel, stride, padding)
    return F.unfold(x, kernel, padding=padding, stride=stride).transpose(1, 2), grid


def soft_merge(tokens: Tensor, size: Grid, kernel: int, stride: int, padding: int = 0) -> Tensor:
    """Each square back in its place and, where several overlap, their mean: the least-squares inverse of the split.

    Pixels behind the last whole step of the stride are in no square, and stay zero.
    """
    grid = token_grid(size, kernel, stride, padding)
    if tokens.ndim != 3 or tokens.shape[1] != grid[0] * grid[1] or tokens.shape[2] % kernel**2:
        raise LabkitError(
            f"Tokens of shape {tuple(tokens.shape)} are no split of {size[0]}x{size[1]} pixels; "
            f"expected (batch, {grid[0] * grid[1]}, channels * {kernel**2})."
        )

    def fold(squares: Tensor) -> Tensor:
        return F.fold(squares.transpose(1, 2), size, kernel, padding=padding, stride=stride)

    return fold(tokens) / fold(torch.ones_like(tokens[:1])).clamp(min=1)


class LightAttention(nn.Module):
    """A transformer layer of one narrow head: tokens of any length in, of length `dim` out.

    The tokens change their length, so v stands in for them on the way around the attention.
    n tokens cost n dim (3 dim_in + 3 dim) + 2 n² dim MACs.
    """

    def __init__(self, dim_in: int, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim_in)
        self.qkv = nn.Linear(dim_in, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = v + self.proj(F.scaled_dot_product_attention(q, k, v))
        return x + self.mlp(self.norm2(x))


class TokensToToken(nn.Module):
    """Images → (x, grid): the three splits of the paper make a token of 16 x 16 pixels and what is around them."""

    def __init__(
        self,
        dim: int = 384,
        splits: Sequence[Split] = ((7, 4, 2), (3, 2, 1), (3, 2, 1)),
        width: int | None = 64,  # of the tokens between two splits; None: no attention, longer and longer tokens
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.splits, self.channels = tuple(splits), channels
        self.stages = nn.ModuleList()
        for kernel, _, _ in self.splits[:-1]:
            channels *= kernel**2
            self.stages.append(nn.Identity() if width is None else LightAttention(channels, width))
            channels = channels if width is None else width
        self.project = nn.Linear(channels * self.splits[-1][0] ** 2, dim)

    def forward(self, images: Tensor) -> tuple[Tensor, Grid]:
        check_images(images, self.channels, None)
        x, grid = soft_split(images, *self.splits[0])
        for stage, split in zip(self.stages, self.splits[1:], strict=True):
            x, grid = soft_split(rearrange(stage(x), "b (h w) d -> b d h w", h=grid[0]), *split)
        return self.project(x), grid
