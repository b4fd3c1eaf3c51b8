"""Positions that the tokens make themselves: a depthwise convolution whose zero padding tells where the edge is.

"Conditional Positional Encodings for Vision Transformers", 2021 (S285): between two blocks, x + conv(x) on the
grid of patches. In the interior the convolution knows no place, at the border it multiplies zeros, and blocks
carry the news inwards. It is timm's `PosConv` of the Twins models.

    vit = labkit.ViT(64, 8, 10, 64, 6, 4, pool="avg", position=PEG(64))     # behind the first block
    vit(images_of_any_size)
    PEG(64, padding="circular")                # no edge, no position: the control
"""

from __future__ import annotations

from typing import Literal

from einops import rearrange
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Grid
from labkit.positions.scores import check_tokens


class PEG(nn.Module):
    """Position encoding generator: d k² + d parameters and n d k² MACs, for any grid."""

    place = "blocks"

    def __init__(self, dim: int, k: int = 3, padding: Literal["zeros", "circular"] = "zeros") -> None:
        super().__init__()
        if k % 2 == 0:
            raise LabkitError(f"A kernel of {k} has no centre to put a patch in; choose an odd one.")
        self.proj = nn.Conv2d(dim, dim, k, padding=k // 2, groups=dim, padding_mode=padding)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        check_tokens(x.shape[1], grid, 0)
        return x + rearrange(self.proj(rearrange(x, "b (h w) d -> b d h w", h=grid[0])), "b d h w -> b (h w) d")
