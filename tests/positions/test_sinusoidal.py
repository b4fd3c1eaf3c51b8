"""Waves: timm's and MAE's numbers in a stated order, a norm that is the same everywhere, shifts that are turns."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange
from timm.layers import build_sincos2d_pos_embed

from labkit.errors import LabkitError
from labkit.positions.sinusoidal import Sinusoidal
from tests import checks

GRID, DIM = (3, 5), 16


def test_two_axes_are_timms():
    ours = Sinusoidal(DIM).waves(GRID)
    checks.equal(ours, build_sincos2d_pos_embed(list(GRID), DIM, interleave_sin_cos=True), 1e-6, "ours and timm's")
    reordered = rearrange(ours, "n (place wave f) -> n (wave place f)", place=2, wave=2)
    checks.equal(reordered, build_sincos2d_pos_embed(list(GRID), DIM), 1e-6, "ours in timm's default order")


def test_two_axes_are_maes_with_the_halves_exchanged():
    """MAE: the first half of the channels is [sin, cos](column w), the second [sin, cos](row w), w = 10000^(-i/m)."""
    w = 1 / 10000 ** (torch.arange(DIM // 4, dtype=torch.float64) / (DIM / 4))
    places = [(row, column) for row in range(GRID[0]) for column in range(GRID[1])]
    halves = [[torch.cat([torch.sin(p * w), torch.cos(p * w)]) for p in (column, row)] for row, column in places]
    mae = torch.stack([torch.cat(half) for half in halves])
    ours = Sinusoidal(DIM).waves(GRID)
    checks.equal(torch.cat([ours[:, DIM // 2 :], ours[:, : DIM // 2]], dim=1), mae, 1e-6, "ours and MAE's")


def test_one_axis_counts_the_patches_row_by_row():
    ours = Sinusoidal(DIM, axes=1, base=100.0).waves(GRID)
    place, i = 7, 3  # row 1, column 2
    angle = torch.tensor(place * 100 ** (-i / 8))
    checks.equal(ours[place, [i, 8 + i]], torch.stack([angle.sin(), angle.cos()]), 1e-6)


@pytest.mark.parametrize("axes", [1, 2])
def test_every_place_has_the_same_norm_and_products_depend_on_the_displacement(axes):
    waves = Sinusoidal(DIM, axes).waves((6, 6)).double()
    checks.equal(waves.norm(dim=1), torch.full((36,), (DIM / 2) ** 0.5), 1e-6, "the norms")
    assert waves.unique(dim=0).shape[0] == 36
    products = waves @ waves.T
    checks.equal(products[0, 8], products[14, 22], 1e-5, "two products at the displacement (1, 2)")


def test_a_large_grid_holds_the_small_one_and_impossible_widths_are_refused():
    small, large = (Sinusoidal(DIM).waves(grid) for grid in ((3, 5), (6, 7)))
    checks.equal(large.reshape(6, 7, DIM)[:3, :5], small.reshape(3, 5, DIM))
    with pytest.raises(LabkitError, match="Width 18 does not hold sines and cosines of 2 axes"):
        Sinusoidal(18)
    with pytest.raises(LabkitError, match="choose axes=1 or 2"):
        Sinusoidal(24, axes=3)
