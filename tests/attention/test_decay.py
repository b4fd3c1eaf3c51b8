"""The decay of Manhattan distances is a Kronecker product; at gamma = 1 it is none, and at 0 everyone is alone."""

from __future__ import annotations

import math

import pytest
import torch

from labkit.attention import decay as mine
from labkit.attention.axial import AxialAttention
from labkit.attention.matrix import effective_matrix
from labkit.attention.mixer import Mixer, projections
from labkit.errors import LabkitError
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

GRID, N = (8, 16), 128
DIM, HEADS = 32, 4
GAMMAS = (0.5, 0.75, 0.9, 1.0)


def of_grid(mixer, grid=GRID):
    return lambda x: mixer(x, grid)


@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


@pytest.mark.paper("S094")
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.9, 1.0])
def test_the_decay_is_a_kronecker_product_of_one_for_each_axis(gamma):
    decay = mine.manhattan_decay(3, 5, gamma)
    checks.equal(
        decay, torch.kron(mine.manhattan_decay(3, 1, gamma), mine.manhattan_decay(1, 5, gamma)), 1e-15, "the two"
    )
    assert decay[1, 13] == pytest.approx(gamma ** (2 + 2)) and decay[4, 4] == 1.0  # (0, 1) to (2, 3)


@pytest.mark.paper("S094")
@pytest.mark.parametrize("impl", ["plain", "fast"])
def test_it_is_the_softmax_weighted_by_the_decay_and_normalised(impl):
    q, k, v = qkv = normal(3, 2, HEADS, N, 6)
    decay = torch.stack([mine.manhattan_decay(*GRID, gamma) for gamma in GAMMAS])

    def weighted(t):
        q, k, v = t
        attn = (q @ k.mT / 6**0.5).softmax(dim=-1) * decay
        return attn / attn.sum(dim=-1, keepdim=True) @ v

    def ours(t):
        return mine.manhattan_attention(*t, GRID, GAMMAS, impl=impl)

    checks.equal(ours((q, k, v)), weighted(qkv), 1e-12, "the attention, and the weighted softmax")
    checks.equal_gradients(ours, weighted, qkv, 1e-11)


@pytest.mark.paper("S094")
def test_along_the_axes_it_is_a_product_of_two_that_decay():
    """A row of the matrix of the rows is the decayed softmax inside that row; and so for the columns."""
    q, k, v = normal(3, 2, HEADS, N, 6)
    scores = q @ k.mT / 6**0.5
    decay = torch.stack([mine.manhattan_decay(*GRID, gamma) for gamma in GAMMAS])
    product = v
    for same in (torch.arange(N) // GRID[1], torch.arange(N) % GRID[1]):
        attn = scores.exp() * decay * (same[:, None] == same)
        product = attn / attn.sum(dim=-1, keepdim=True) @ product
    ours = mine.manhattan_attention(q, k, v, GRID, GAMMAS, decomposed=True)
    checks.equal(ours, product, 1e-12, "decomposed attention and the product")


@pytest.mark.paper("S094")
def test_without_content_the_axes_lose_nothing():
    """With scores of zero the full form and the decomposed one are the same, exactly."""
    silent, v = torch.zeros(2, HEADS, N, 6, dtype=torch.float64), normal(2, HEADS, N, 6)
    full, axes = (mine.manhattan_attention(silent, silent, v, GRID, GAMMAS, decomposed) for decomposed in (False, True))
    checks.equal(full, axes, 1e-14, "full and decomposed")


@pytest.mark.paper("S094")
@pytest.mark.parametrize(("decomposed", "plain"), [(False, Mixer), (True, AxialAttention)])
def test_with_gamma_one_it_is_plain_attention(decomposed, plain):
    ours = randomized(mine.ManhattanAttention(DIM, HEADS, [1.0] * HEADS, decomposed))
    checks.exact_limit(of_grid(ours), of_grid(randomized(plain(DIM, HEADS))), normal(2, N, DIM), tol=1e-12)


@pytest.mark.paper("S094")
@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize(("gamma", "tol"), [(0.0, 0.0), (1e-12, 1e-9)])
def test_with_gamma_zero_it_mixes_nothing(decomposed, gamma, tol):
    mixer = randomized(mine.ManhattanAttention(DIM, HEADS, [gamma] * HEADS, decomposed))
    matrix = effective_matrix(mixer, normal(2, N, DIM), GRID)
    checks.equal(matrix, torch.eye(N).expand_as(matrix), tol, "the matrix and the identity")


@pytest.mark.paper("S094")
@pytest.mark.parametrize(("grid", "dim"), [((8, 16), 32), ((16, 16), 64), ((3, 5), 8)])
def test_decomposed_the_scores_cost_a_row_and_a_column(grid, dim):
    n, x = math.prod(grid), torch.zeros(1, math.prod(grid), dim)
    full, axes = (mine.ManhattanAttention(dim, HEADS, decomposed=decomposed) for decomposed in (False, True))
    assert full.cost(grid).macs - projections(n, dim) == 2 * n * n * dim
    assert axes.cost(grid).macs - projections(n, dim) == 2 * n * sum(grid) * dim
    checks.cost_law(full.cost(grid).macs, of_grid(full, grid), x)
    checks.cost_law(axes.cost(grid).macs, of_grid(axes, grid), x)


def test_the_heads_reach_farther_one_after_the_other():
    gammas = mine.head_gammas(4)
    assert gammas == (0.75, 0.875, 0.9375, 0.96875)  # 1 - 2^-2 … 1 - 2^-5


def test_it_compiles():
    mixer, x = randomized(mine.ManhattanAttention(DIM, HEADS, decomposed=True)), normal(2, N, DIM)
    checks.compiles(mixer, x, GRID)


@pytest.mark.parametrize("gammas", [(0.5, 0.9), (0.5, 0.6, 0.7, 1.5)])
def test_what_cannot_work_is_refused(gammas):
    with pytest.raises(LabkitError, match=r"do not serve 4 heads; give 4 numbers from 0 to 1"):
        mine.ManhattanAttention(DIM, HEADS, gammas)
