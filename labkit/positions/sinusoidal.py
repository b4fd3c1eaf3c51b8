"""Fixed waves: each place is written as sines and cosines of its coordinate, from fast waves to slow ones.

"Attention Is All You Need", 2017, for one axis; "Masked Autoencoders Are Scalable Vision Learners", 2021, gives
half of the channels to the row and half to the column. The channels of an axis are [sin(p f), cos(p f)] with
f = base^(-i/m), i < m. Per axis the order is timm's `build_sincos2d_pos_embed(interleave_sin_cos=True)`; its
default is [sin row, sin column, cos row, cos column], and MAE has the column first.

    vit = labkit.ViT(64, 8, 10, 64, 6, 4, position=Sinusoidal(64))            # row and column
    vit = labkit.ViT(64, 8, 10, 64, 6, 4, position=Sinusoidal(64, axes=1))    # the place in the sequence
    table = encode(coordinates((8, 8)).float(), 64)                           # (64 patches, 64 channels)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Grid
from labkit.positions.grid import coordinates


def frequencies(m: int, base: float, like: Tensor) -> Tensor:
    """(m,): from 1 down to nearly 1 / base, in equal ratios."""
    return base ** (-torch.arange(m, device=like.device, dtype=like.dtype) / m)


def encode(places: Tensor, dim: int, base: float = 10_000.0) -> Tensor:
    """Places (n, axes), of floats, → waves (n, dim)."""
    waves = places[..., None] * frequencies(dim // (2 * places.shape[-1]), base, places)
    return torch.cat([waves.sin(), waves.cos()], dim=-1).flatten(1)


class Sinusoidal(nn.Module):
    """x + waves; no parameters, any grid."""

    place = "tokens"

    def __init__(self, dim: int, axes: int = 2, base: float = 10_000.0) -> None:
        super().__init__()
        if axes not in (1, 2) or dim % (2 * axes):
            raise LabkitError(
                f"Width {dim} does not hold sines and cosines of {axes} axes; choose axes=1 or 2 and a width that is "
                "a multiple of 2 or 4."
            )
        self.dim, self.axes, self.base = dim, axes, base

    def waves(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        """(h*w, dim) float32."""
        places = coordinates(grid, device).float()
        if self.axes == 1:
            places = torch.arange(len(places), device=device).float()[:, None]
        return encode(places, self.dim, self.base)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        return x + self.waves(grid, x.device).to(x)
