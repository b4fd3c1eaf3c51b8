"""Rotary positions: turn each pair of channels of q and k by an angle proportional to the place.

A product of two turned vectors depends on the difference of their angles, so a score sees only the displacement
between query and key, and no table has a size. "RoFormer: Enhanced Transformer with Rotary Position Embedding",
2021, for one axis; "Rotary Position Embedding for Vision Transformer", 2024, for two: axial gives half of the
pairs to the row and half to the column; mixed learns for each pair a frequency along both, so that diagonal
directions can be told apart. The pairs are channels (0, 1), (2, 3), …, as timm's `RotaryEmbeddingCat`.

    vit = labkit.ViT(64, 8, 10, 64, 6, 4, position=RoPEAxial(16))
    vit = labkit.ViT(64, 8, 10, 64, 6, 4, position=[RoPEMixed(16, heads=4) for _ in range(6)])
    turned = rotate(q, RoPEAxial(16).angles((8, 8), q))
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Grid
from labkit.positions.grid import coordinates
from labkit.positions.scores import check_heads, check_tokens
from labkit.positions.sinusoidal import frequencies


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the pairs of channels of x (..., n, d) by `angles` (..., n, d / 2)."""
    cos, sin, a, b = angles.cos(), angles.sin(), x[..., ::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)


class Rotary(nn.Module):
    """Turns the patches' q and k by `angles(grid, q)`; tokens before the patches are turned by zero."""

    place = "scores"

    def __init__(self, d_head: int, base: float, multiple: int) -> None:
        super().__init__()
        if d_head % multiple:
            raise LabkitError(f"A head of {d_head} channels cannot be turned; choose a multiple of {multiple}.")
        self.d_head, self.base = d_head, base

    def angles(self, grid: Grid, like: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(
        self, q: Tensor, k: Tensor, bias: Tensor | None, grid: Grid, prefix: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        check_tokens(k.shape[2], grid, prefix)
        if q.shape[-1] != self.d_head:
            raise LabkitError(f"The heads have {q.shape[-1]} channels; make the position with d_head={q.shape[-1]}.")
        angles = F.pad(self.angles(grid, q), (0, 0, prefix, 0))
        return rotate(q, angles[..., : q.shape[2], :]), rotate(k, angles), bias


class RoPE(Rotary):
    """One axis: the angle grows with the place in the sequence, row by row; a row's end is next to the next row."""

    def __init__(self, d_head: int, base: float = 10_000.0) -> None:
        super().__init__(d_head, base, multiple=2)

    def angles(self, grid: Grid, like: Tensor) -> Tensor:
        places = torch.arange(grid[0] * grid[1], device=like.device).to(_precise(like))
        return places[:, None] * frequencies(self.d_head // 2, self.base, places)


class RoPEAxial(Rotary):
    """Two axes: the first half of the pairs turns with the row, the second with the column."""

    def __init__(self, d_head: int, base: float = 100.0) -> None:
        super().__init__(d_head, base, multiple=4)

    def angles(self, grid: Grid, like: Tensor) -> Tensor:
        places = coordinates(grid, like.device).to(_precise(like))
        return (places[..., None] * frequencies(self.d_head // 4, self.base, places)).flatten(1)


class RoPEMixed(Rotary):
    """Every pair of every head turns by f_row row + f_column column, with both frequencies learned."""

    def __init__(self, d_head: int, heads: int, base: float = 10.0) -> None:
        super().__init__(d_head, base, multiple=4)
        self.heads = heads
        sizes = frequencies(d_head // 4, base, torch.empty(0))
        directions = 2 * math.pi * torch.rand(heads, 1) + torch.tensor([0, math.pi / 2])
        along_rows, along_columns = (
            (turn[..., None] * sizes).flatten(1) for turn in (directions.cos(), directions.sin())
        )
        self.freqs = nn.Parameter(torch.stack([along_rows, along_columns]))  # (2, heads, d_head / 2)

    def angles(self, grid: Grid, like: Tensor) -> Tensor:
        check_heads(like.shape[1], self.heads)
        places = coordinates(grid, like.device).to(_precise(like))
        return torch.einsum("na,ahf->hnf", places, self.freqs.to(places))


def _precise(like: Tensor) -> torch.dtype:
    """Angles of far patches are large: half precision would lose them."""
    return torch.promote_types(like.dtype, torch.float32)
