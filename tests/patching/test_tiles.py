"""Tiles and a thumbnail: the grid is the best of all, cutting is undone exactly, tokens are counted."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from labkit.errors import LabkitError
from labkit.patching.tiles import Tiles, dynamic_partition, fit, resize, tile, untile
from labkit.vit import PatchEmbed, ViT
from tests import checks
from tests.weights import normal, randomized

SIZES = [(64, 64), (64, 96), (31, 97), (5, 64), (1, 300)]
DIM, PATCH, TILE = 16, 4, (8, 12)


def best_grid(h: int, w: int, budget: int) -> tuple[int, int]:
    """Try every number of columns; the rows follow from the proportions."""
    grids = [(math.ceil(columns * h / w), columns) for columns in range(1, budget + 1)]
    return max((grid for grid in grids if grid[0] * grid[1] <= budget), key=lambda grid: grid[1])


@pytest.mark.paper("S046")
@pytest.mark.parametrize(("h", "w"), SIZES)
def test_the_grid_is_the_largest_within_the_budget_and_keeps_the_proportions(h, w):
    for budget in range(1, 40):
        rows, columns = dynamic_partition(h, w, 32, budget)
        assert (rows, columns) == best_grid(h, w, budget) and rows * columns <= budget
        assert 0 <= rows - columns * h / w < 1  # in tiles
        assert dynamic_partition(w, h, 32, budget) == (columns, rows)


def test_proportions_are_those_in_tiles():
    assert dynamic_partition(16, 24, TILE, 4) == (2, 2)  # 2 tiles by 2
    assert dynamic_partition(16, 36, TILE, 6) == (2, 3)
    assert dynamic_partition(24, 12, TILE, 4) == (3, 1)


def test_the_rule_needs_the_long_side_along_the_columns():
    """The check states the rule rows = ⌈columns h / w⌉ for every image; for tall ones it may leave no grid at all.

    h = 3 w gives at least three rows, so a budget of 2 tiles admits none; the mirrored rule always has one.
    """
    with pytest.raises(ValueError, match="empty"):
        best_grid(96, 32, 2)
    assert dynamic_partition(96, 32, 8, 2) == (2, 1)


@pytest.mark.paper("S046")
@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (4, 1)])
def test_untile_gives_the_very_image_back(grid):
    images = normal(2, 3, grid[0] * TILE[0], grid[1] * TILE[1])
    tiles = tile(images, TILE)
    assert tiles.shape == (2, grid[0] * grid[1], 3, *TILE)
    assert torch.equal(tiles[:, -1], images[..., -TILE[0] :, -TILE[1] :])
    assert torch.equal(untile(tiles, grid), images)


@pytest.mark.parametrize(("h", "w", "grid", "filled"), [(20, 50, (2, 4), (13, 32)), (50, 20, (4, 2), (32, 13))])
def test_the_image_fills_one_side_of_the_grid_and_the_rest_is_black(h, w, grid, filled):
    out = fit(torch.ones(1, 3, h, w), 8, grid)
    assert out.shape[-2:] == (8 * grid[0], 8 * grid[1])
    assert torch.allclose(out[..., : filled[0], : filled[1]], torch.ones(()))
    assert out.sum().round() == 3 * filled[0] * filled[1]


@pytest.mark.paper("S046")
def test_a_budget_of_one_is_a_plain_resize():
    images = normal(2, 3, 40, 40)
    resized = F.interpolate(images, (8, 8), mode="bilinear", antialias=True)
    checks.equal(fit(images, 8, dynamic_partition(40, 40, 8, 1)), resized)
    patching = randomized(Tiles(PatchEmbed(PATCH, 3, DIM), 8, 1, DIM))
    thumbnail, whole = (x.unflatten(1, (2, 3))[:, :, :-1].flatten(1, 2) for x in _parts(patching, images, 2 * 3))
    checks.equal(thumbnail, patching.encode(resized)[0])
    checks.equal(whole, thumbnail)


@pytest.mark.paper("S046")
@pytest.mark.parametrize(("h", "w", "budget"), [(16, 36, 1), (16, 36, 7), (60, 20, 12)])
def test_tokens_are_those_of_the_tiles_and_the_thumbnail_and_the_separators(h, w, budget):
    rows, columns = dynamic_partition(h, w, TILE, budget)
    patching = Tiles(PatchEmbed(PATCH, 3, DIM), TILE, budget, DIM)
    x, grid = patching(normal(2, 3, h, w).float())
    a, b = TILE[0] // PATCH, TILE[1] // PATCH
    assert x.shape == (2, (rows * columns + 1) * a * b + (rows + 1) * a + 1, DIM) and grid == (1, x.shape[1])


def test_rows_are_read_across_the_tiles_and_end_with_a_mark():
    patching = randomized(Tiles(PatchEmbed(PATCH, 3, DIM), TILE, 4, DIM))
    images = normal(2, 3, 2 * TILE[0], 2 * TILE[1])
    thumbnail, whole = _parts(patching, images, 2 * 4)
    for tokens, image in ((thumbnail, resize(images, TILE)), (whole, images)):  # a patch sees nothing of its tile
        x, (h, w) = patching.encode(image)
        lines = tokens.unflatten(1, (h, w + 1))
        checks.equal(lines[:, :, :-1].flatten(1, 2), x, 1e-12)
        checks.equal(lines[:, :, -1], patching.newline.expand(2, h, DIM))
    checks.equal(patching(images)[0][:, 2 * 4], patching.between.expand(2, DIM))


def test_the_encoder_works_once_for_each_tile_and_the_thumbnail():
    patching = Tiles(PatchEmbed(PATCH, 3, DIM), TILE, 7, DIM)
    rows, columns = dynamic_partition(16, 36, TILE, 7)
    one_tile = TILE[0] * TILE[1] * 3 * DIM
    checks.cost_law((rows * columns + 1) * one_tile, patching, torch.zeros(1, 3, 16, 36))


def test_a_vit_takes_it_in_place_of_its_patch_embedding():
    patching = Tiles(PatchEmbed(PATCH, 3, DIM), TILE, 4, DIM)
    vit = ViT((20, 30), classes=5, dim=DIM, depth=1, heads=2, patching=patching)
    assert vit(torch.zeros(2, 3, 40, 25)).shape == (2, 5)  # another size, another number of tiles
    checks.gradients_flow(vit, normal(2, 3, 20, 30).float())
    checks.follows_dtype_and_device(patching, normal(2, 3, 20, 30).float())
    checks.batch_independent(lambda images: patching(images)[0], normal(2, 3, 20, 30).float())


def test_an_image_of_the_right_size_is_not_touched():
    images = normal(1, 3, 8, 12)
    assert resize(images, (8, 12)) is images and fit(torch.ones(1, 1, 1, 1000), 8, (1, 1)).shape == (1, 1, 8, 8)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: dynamic_partition(8, 8, 8, 0), "8x8 pixels in 0 tiles is impossible"),
        (lambda: tile(torch.zeros(1, 3, 10, 16), 8), "10x16 is not divisible"),
        (lambda: untile(torch.zeros(1, 5, 3, 8, 8), (2, 2)), "are no 2x2 patches"),
    ],
)
def test_what_does_not_fit_is_a_sentence(make, sentence):
    with pytest.raises(LabkitError, match=sentence):
        make()


def _parts(patching: Tiles, images: torch.Tensor, thumbnail: int) -> list[torch.Tensor]:
    """The thumbnail's tokens and the tiles' tokens, ends of rows included."""
    x = patching(images)[0]
    return [x[:, :thumbnail], x[:, thumbnail + 1 :]]
