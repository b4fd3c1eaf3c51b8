"""Multiresolution attention: exact where it looks closely, a lower bound from afar, and dense when it looks at all."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from labkit.attention import multires as mine
from labkit.attention.matrix import effective_matrix
from labkit.attention.mixer import Mixer
from labkit.attention.multires import MRAAttention, mra_attention, mra_matrix, mra_scores
from labkit.errors import LabkitError
from labkit.operations import operations
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

DIM, HEADS, GRID, D, N, BLOCK = 24, 3, (4, 8), 8, 32, 4
PAIRS = (N // BLOCK) ** 2


def qkv() -> tuple[Tensor, ...]:
    return tuple(normal(3, 2, HEADS, N, D))


def exact(q: Tensor, k: Tensor) -> Tensor:
    """The map that is approximated, before its rows are divided by their sums."""
    return (q @ k.mT / math.sqrt(D)).exp()


def blocks(matrix: Tensor) -> Tensor:
    return reduce(matrix, "b h (s t) (r u) -> b h s r", "mean", t=BLOCK, u=BLOCK)


@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


@pytest.mark.paper("S200")
def test_all_blocks_refined_are_dense_attention():
    q, k, v = qkv()
    checks.equal(mra_attention(q, k, v, BLOCK, PAIRS), F.scaled_dot_product_attention(q, k, v), tol=1e-12)
    mixer, dense = randomized(MRAAttention(DIM, HEADS, side=2, refine=1.0)), randomized(Mixer(DIM, HEADS))
    checks.exact_limit(lambda x: mixer(x, GRID), lambda x: dense(x, GRID), normal(2, N, DIM), tol=1e-10)


@pytest.mark.paper("S200")
def test_queries_and_keys_that_are_constant_in_blocks_need_no_refining():
    q, k, v = qkv()
    q, k = (t[:, :, ::BLOCK].repeat_interleave(BLOCK, dim=2) for t in (q, k))
    checks.equal(mra_attention(q, k, v, BLOCK, 0), F.scaled_dot_product_attention(q, k, v), tol=1e-12)


@pytest.mark.paper("S200")
def test_a_coarse_entry_is_at_most_the_mean_of_its_block():
    q, k, _ = qkv()
    coarse, true = blocks(mra_scores(q, k, BLOCK, 0).exp()), blocks(exact(q, k))
    assert bool((coarse <= true + 1e-12).all()) and (true / coarse).max() > 1.1


@pytest.mark.paper("S200")
def test_refining_makes_no_error_and_takes_the_blocks_of_the_largest_energy():
    q, k, _ = qkv()
    true, coarse = exact(q, k), mra_scores(q, k, BLOCK, 0).exp()
    errors = [torch.linalg.matrix_norm(true - mra_scores(q, k, BLOCK, m).exp()) for m in range(PAIRS + 1)]
    for before, after in itertools.pairwise(errors):
        assert bool((after <= before + 1e-12).all())
    checks.equal(errors[-1], torch.zeros(2, HEADS), tol=1e-10)
    for m in (0, 5, 20, PAIRS):
        seen = mra_scores(q, k, BLOCK, m).exp()
        is_exact = blocks(((seen - true).abs() < 1e-12).double()) == 1
        assert bool((is_exact.sum((-2, -1)) == m).all())
        best = blocks(coarse).flatten(2).argsort(-1, descending=True)[..., :m]
        assert is_exact.flatten(2).gather(2, best).all()
        checks.equal(torch.where(is_exact, 0, blocks(seen)), torch.where(is_exact, 0, blocks(coarse)), tol=1e-12)


@pytest.mark.paper("S200")
@pytest.mark.parametrize("n_refine", [0, 1, 7, 30, PAIRS])
def test_it_applies_its_matrix_whose_rows_sum_to_one(n_refine):
    q, k, v = qkv()
    matrix = mra_matrix(q, k, BLOCK, n_refine)
    checks.rows_sum_to_one(matrix, tol=1e-12)
    checks.equal(mra_attention(q, k, v, BLOCK, n_refine), matrix @ v, tol=1e-12)


@pytest.mark.paper("S200")
@pytest.mark.parametrize("side, refine", [(2, 0.25), (4, 0.5), (4, 0.0), (1, 0.1)])
def test_it_costs_the_blocks_and_what_is_refined(side, refine):
    mixer, grid, n = MRAAttention(DIM, HEADS, side, refine), (8, 16), 128
    steps = operations(mixer, torch.zeros(1, n, DIM), grid)
    refined = round(refine * (n / side**2) ** 2)
    scores = (n / side**2) ** 2 + refined * side**4
    if side > 1:  # the products of single tokens are seen as element-wise work
        assert sum(step.macs for step in steps if step.weight_bytes == 0) == 2 * scores * DIM
    assert mixer.cost(grid).macs == 4 * n * DIM**2 + 2 * scores * DIM


@pytest.mark.paper("S200")
def test_its_blocks_are_squares_of_the_image():
    mixer, x = randomized(MRAAttention(DIM, HEADS, side=2, refine=0.0)), normal(2, N, DIM)
    matrix = effective_matrix(mixer, x, GRID)
    squares = rearrange(matrix, "b e (h x w y) (i u j v) -> b e h w i j (x y u v)", h=2, x=2, y=2, i=2, u=2, v=2)
    checks.equal(squares, squares[..., :1].expand_as(squares), tol=1e-12)
    assert squares[..., 0].std() > 0.001


def test_its_gradients_are_those_of_its_matrix():
    q, k, v = qkv()
    for i, given in enumerate((q, k, v)):

        def inputs(t: Tensor, i: int = i) -> list[Tensor]:
            return [t if j == i else other for j, other in enumerate((q, k, v))]

        def ours(t: Tensor) -> Tensor:
            return mra_attention(*inputs(t), BLOCK, 9)

        def plain(t: Tensor) -> Tensor:
            q, k, v = inputs(t)
            return mra_matrix(q, k, BLOCK, 9) @ v

        checks.equal_gradients(ours, plain, given, tol=1e-10)


def test_large_scores_do_not_overflow():
    q, k, v = (t.float() for t in qkv())
    for n_refine in (0, 9, PAIRS):
        out = mra_attention(60 * q, 60 * k, v, BLOCK, n_refine)
        checks.equal(out, mra_matrix(60 * q, 60 * k, BLOCK, n_refine) @ v, tol=1e-3)


def test_it_compiles():
    mixer, x = randomized(MRAAttention(DIM, HEADS, side=2)), normal(1, N, DIM)
    with torch.no_grad():
        checks.compiles(mixer, x, GRID)


def test_what_does_not_fit_is_refused():
    q, k, v = qkv()
    with pytest.raises(LabkitError, match="32 tokens do not divide into blocks of 5"):
        mra_attention(q, k, v, 5, 0)
    with pytest.raises(LabkitError, match="n_refine=65 is not between 0 and the 64 pairs"):
        mra_matrix(q, k, BLOCK, 65)
    with pytest.raises(LabkitError, match="The grid 4x8 does not divide into squares of 3x3 tokens"):
        MRAAttention(DIM, HEADS, side=3)(torch.zeros(1, N, DIM), GRID)
    with pytest.raises(LabkitError, match="refine=2 is no fraction"):
        MRAAttention(DIM, HEADS, refine=2)
