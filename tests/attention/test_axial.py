"""Axial attention is a row-wise matrix and then a column-wise one; with one row it is plain attention."""

from __future__ import annotations

import pytest
import torch

from labkit.attention import axial as mine
from labkit.attention.matrix import effective_matrix
from labkit.attention.mixer import FLOAT, Mixer
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

GRID, N = (8, 16), 128
DIM, HEADS = 32, 4


def along(q, k, same, bias=0.0):
    """The dense matrix of attention among tokens whose `same` agrees."""
    scores = q @ k.mT * q.shape[-1] ** -0.5 + bias
    return scores.masked_fill(same[:, None] != same, -torch.inf).softmax(dim=-1)


@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


@pytest.mark.parametrize("impl", ["plain", "fast"])
def test_it_is_a_matrix_of_the_columns_times_one_of_the_rows(impl):
    q, k, v = qkv = normal(3, 2, HEADS, N, 6)
    row, column = torch.arange(N) // GRID[1], torch.arange(N) % GRID[1]
    in_row, in_column = normal(HEADS, 16, 16), normal(HEADS, 8, 8)
    rows = along(q, k, row, in_row.repeat(1, 8, 8))
    columns = along(q, k, column, in_column.repeat_interleave(16, 1).repeat_interleave(16, 2))
    ours = mine.axial_attention(*qkv, GRID, in_row, in_column, impl)
    checks.equal(ours, columns @ (rows @ v), 1e-12, "axial attention and the product of two")


def test_plain_and_fast_send_the_same_gradients_back():
    plain, fast = (randomized(mine.AxialAttention(DIM, HEADS, impl=impl)) for impl in ("plain", "fast"))
    checks.equal_gradients(lambda x: plain(x, GRID), lambda x: fast(x, GRID), normal(2, N, DIM), 1e-10)


@pytest.mark.parametrize("grid", [(1, N), (N, 1)])
def test_a_single_line_is_dense_attention(grid):
    ours, dense = randomized(mine.AxialAttention(DIM, HEADS)), randomized(Mixer(DIM, HEADS))
    checks.exact_limit(lambda x: ours(x, grid), lambda x: dense(x, grid), normal(2, N, DIM), tol=1e-12)


def test_every_token_hears_from_every_other():
    matrix = effective_matrix(randomized(mine.AxialAttention(DIM, HEADS)), normal(2, N, DIM), GRID)
    assert matrix.min() > 0
    checks.rows_sum_to_one(matrix, 1e-12)


@pytest.mark.parametrize(("grid", "dim"), [((8, 16), 32), ((16, 4), 64), ((3, 5), 8)])
def test_its_cost_is_that_of_two_lines_a_token(grid, dim):
    h, w = grid
    mixer = mine.AxialAttention(dim, HEADS)
    law = 4 * h * w * dim**2 + 2 * h * w * (h + w) * dim
    assert mixer.cost(grid).macs == law
    checks.cost_law(law, lambda x: mixer(x, grid), torch.zeros(1, h * w, dim))


def test_a_long_axis_needs_the_memory_of_its_scores():
    mixer = mine.AxialAttention(DIM, HEADS)
    assert mixer.cost((2, 64)).bytes == laws.largest_bytes(mixer, (2, 64)) == FLOAT * HEADS * 2 * 64 * 64


def test_it_compiles():
    mixer, x = randomized(mine.AxialAttention(DIM, HEADS)), normal(2, N, DIM)
    checks.compiles(mixer, x, GRID)
