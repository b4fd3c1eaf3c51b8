"""One position for the whole image that stretches with it, one for the neighbourhood that does not; many sizes.

"ResFormer: Scaling ViTs with Multi-Resolution Training", 2022 (S089). Global: waves of the place as a share of the
image, smoothed by a depthwise convolution, added to the patches. Local: a depthwise convolution of the values,
added to what attention mixes. Each image is trained on at several sizes, and the answer at a low one is pulled
towards the answer at a high one.

    vit = labkit.ViT(64, 8, 10, 64, 6, 4, position=GlobalPosition(64))
    vit = replace_attention(vit, LocalAttention)
    loss = scale_consistency_loss(vit(images_at_64), vit(the_same_at_48))     # beside the usual one at both sizes
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Grid
from labkit.positions.grid import coordinates
from labkit.positions.mixer import OpenAttention
from labkit.positions.sinusoidal import encode


class GlobalPosition(nn.Module):
    """x + conv(waves); (3 x 3 + 1) d parameters for every grid."""

    place = "tokens"

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % 4:
            raise LabkitError(f"Width {dim} does not hold sines and cosines of two axes; choose a multiple of 4.")
        self.dim = dim
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def waves(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """(h*w, dim) float32: the last row and column are always at 2π, and the first at their share of it."""
        size = torch.tensor(grid, device=device)
        return encode(2 * math.pi * (coordinates(grid, device) + 1) / size, self.dim)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        waves = rearrange(self.waves(grid, x.device).to(x), "(h w) d -> 1 d h w", h=grid[0])
        return x + rearrange(self.conv(waves), "1 d h w -> 1 (h w) d")


class LocalAttention(OpenAttention):
    """Attention + a depthwise convolution of the values, the same for all heads; it begins at zero."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        d = dim // heads
        self.local_weight, self.local_bias = nn.Parameter(torch.zeros(d, 1, 3, 3)), nn.Parameter(torch.zeros(d))

    def mix(self, attn: Tensor, v: Tensor, grid: Grid, prefix: int) -> Tensor:
        image = rearrange(v[:, :, prefix:], "b heads (h w) d -> (b heads) d h w", h=grid[0])
        near = F.conv2d(image, self.local_weight, self.local_bias, padding=1, groups=len(self.local_bias))
        near = F.pad(rearrange(near, "(b heads) d h w -> b heads (h w) d", b=len(v)), (0, 0, prefix, 0))
        return attn @ v + near[:, :, : attn.shape[2]]


def scale_consistency_loss(logits_hi: Tensor, logits_lo: Tensor) -> Tensor:
    """KL(high || low) between the predictions at two sizes of an image; the high one teaches and is not moved."""
    if logits_hi.shape != logits_lo.shape:
        raise LabkitError(
            f"The logits at the two sizes have shapes {tuple(logits_hi.shape)} and {tuple(logits_lo.shape)}; "
            "both need (batch, classes) of the same images."
        )
    high, low = logits_hi.detach().log_softmax(dim=-1), logits_lo.log_softmax(dim=-1)
    return F.kl_div(low, high, reduction="batchmean", log_target=True)
