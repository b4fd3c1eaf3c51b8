"""Buckets and what meets in them: the index function, the maps of buckets, and both sides of every product."""

from __future__ import annotations

import math

import pytest
import torch
from timm.layers.pos_embed_rel import gen_relative_position_index

from labkit.errors import LabkitError
from labkit.positions.contextual import (
    SPREAD,
    BucketBias,
    ContextualAttention,
    ContextualRPE,
    bucket_count,
    irpe_buckets,
    piecewise_index,
)
from labkit.vit import Attention
from tests import checks
from tests.positions.schemes import crop, depends_on_displacement
from tests.weights import normal, randomized

GRID, HEADS, D = (3, 5), 2, 4
METHODS = ["euclidean", "quantization", "cross", "product"]
WIDE = (16.0, 16.0, 32.0)  # nothing on a small grid is far


@pytest.mark.paper("S208")
@pytest.mark.parametrize("spread", [(2, 6, 20), (3.0, 3.0, 8.0), SPREAD])
def test_the_index_is_odd_monotone_the_identity_when_near_and_bounded_when_far(spread):
    x = torch.arange(-400, 401)
    index = piecewise_index(x, *spread)
    checks.equal(index, -index.flip(0), what="g(x) and -g(-x)")
    assert (index.diff() >= 0).all()
    near = x.abs() <= spread[0]
    checks.equal(index[near], x[near], what="g(x) and x, near")
    assert index.max() == int(spread[1]) and index.min() == -int(spread[1])
    assert piecewise_index(torch.tensor([spread[2]]), *spread) == int(spread[1]), "at γ the last bucket is reached"


@pytest.mark.paper("S208")
def test_far_displacements_follow_the_papers_logarithm():
    alpha, beta, gamma = 2, 8, 32
    for x in (3, 5, 9, 17, 30):
        expected = round(alpha + math.log(x / alpha) / math.log(gamma / alpha) * (beta - alpha))
        assert piecewise_index(torch.tensor(-x), alpha, beta, gamma) == -expected


@pytest.mark.paper("S208")
@pytest.mark.parametrize("method", METHODS)
def test_buckets_depend_only_on_the_displacement_on_every_grid(method):
    for index in irpe_buckets((6, 7), method):
        assert depends_on_displacement(index, (6, 7)) and index.min() >= 0
    for grid in (GRID, (1, 7), (4, 4)):
        for small, large in zip(irpe_buckets(grid, method, WIDE), irpe_buckets((6, 7), method, WIDE), strict=True):
            checks.equal(crop(large, (6, 7), grid, (1, 0)), small, what=f"the buckets of {grid} and a crop")


@pytest.mark.paper("S208")
@pytest.mark.parametrize("spread", [SPREAD, WIDE])
@pytest.mark.parametrize("method", METHODS)
def test_every_bucket_is_in_the_table_and_directions_are_told_apart_by_two_methods(method, spread):
    maps = irpe_buckets((20, 20), method, spread)
    assert max(int(index.max()) for index in maps) == bucket_count(method, spread) - 1
    undirected = method in ("euclidean", "quantization")
    assert all(torch.equal(index, index.T) for index in maps) == undirected


@pytest.mark.paper("S208")
def test_euclidean_rounds_the_distance():
    from_the_corner = irpe_buckets((4, 4), "euclidean", WIDE)[0][0].reshape(4, 4)
    assert from_the_corner.tolist() == [[0, 1, 2, 3], [1, 1, 2, 3], [2, 2, 3, 4], [3, 3, 4, 4]]


@pytest.mark.paper("S208")
def test_quantization_counts_the_distances_in_order():
    from_the_corner = irpe_buckets((5, 5), "quantization", WIDE)[0][0].reshape(5, 5)
    assert from_the_corner[0].tolist() == [0, 1, 3, 6, 9], "0, 1, 2, 3, 4 among 0, 1, √2, 2, √5, √8, 3, √10, √13, 4"
    assert from_the_corner.diagonal().tolist()[:4] == [0, 2, 5, 11], "√18 comes after √17, on every grid"
    assert irpe_buckets((4, 4), "quantization", WIDE)[0].max() == 11


@pytest.mark.paper("S208")
def test_products_of_near_displacements_are_the_table_of_swin_with_other_names():
    (ours,), theirs = irpe_buckets(GRID, "product", WIDE), gen_relative_position_index(GRID)
    pairs = torch.stack([ours.flatten(), theirs.flatten()], dim=1).unique(dim=0)
    assert len(pairs) == len(ours.unique()) == len(theirs.unique()) == (2 * 3 - 1) * (2 * 5 - 1)
    bias = randomized(BucketBias(HEADS, "product", WIDE))
    names = pairs[theirs, 0]
    checks.equal(bias.bias(GRID), bias.table[:, names], what="our bias and Swin's from the renamed table")


def naive(x, table, method):
    """Σ over maps of x_i · table[bucket(i, j)], pair by pair: (b, heads, n, n)."""
    encodings = sum(table[:, index] for index in irpe_buckets(GRID, method))
    return torch.einsum("bhid,hijd->bhij", x, encodings)


@pytest.mark.paper("S208")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("on", ["k", "q", "qk"])
def test_bucket_then_gather_is_the_product_pair_by_pair(method, on):
    rpe, (q, k) = randomized(ContextualRPE(HEADS, D, method, on)), normal(2, 2, HEADS, 15, D)
    expected = torch.zeros(2, HEADS, 15, 15, dtype=torch.float64)
    if "k" in on:
        expected = expected + naive(q, rpe.on_k, method) / 2
    if "q" in on:
        encodings = sum(rpe.on_q[:, index] for index in irpe_buckets(GRID, method))
        expected = expected + torch.einsum("bhjd,hijd->bhij", k, encodings) / 2
    checks.equal(rpe(q, k, None, GRID, 0)[2], expected, 1e-12, "bucket by bucket and pair by pair")


@pytest.mark.paper("S208")
@pytest.mark.parametrize("method", METHODS)
def test_the_values_meet_their_encodings_too(method):
    attn, x = randomized(ContextualAttention(HEADS * D, HEADS, method)), normal(2, 15, HEADS * D)
    out, evidence = attn.attend(x, grid=GRID)
    encodings = sum(attn.on_v[:, index] for index in irpe_buckets(GRID, method))
    v = attn.project(x)[2]
    mixed = evidence.attn @ v + torch.einsum("bhij,hijd->bhid", evidence.attn, encodings)
    checks.equal(out, attn.proj(mixed.transpose(1, 2).flatten(2)), 1e-12, "bucket by bucket and pair by pair")


@pytest.mark.paper("S208")
@pytest.mark.parametrize("method", METHODS)
def test_zero_tables_leave_attention_as_it_was(method):
    plain, x = randomized(Attention(HEADS * D, HEADS, impl="plain")), normal(2, 17, HEADS * D)
    ours = ContextualAttention(HEADS * D, HEADS, method).double()
    ours.load_state_dict(plain.state_dict(), strict=False)
    for position in (ContextualRPE(HEADS, D, method, on="qk"), BucketBias(HEADS, method)):
        ours.position = position.double()
        checks.equal(ours.attend(x, grid=GRID, prefix=2)[0], plain(x), what="with zero tables and without tables")


@pytest.mark.parametrize("method", METHODS)
def test_the_class_token_meets_no_encoding(method):
    rpe, (q, k) = randomized(ContextualRPE(HEADS, D, method, "qk")), normal(2, 2, HEADS, 17, D)
    bias = rpe(q, k, None, GRID, 2)[2]
    assert (bias[:, :, :2] == 0).all() and (bias[..., :2] == 0).all()
    checks.equal(bias[:, :, 2:, 2:], rpe(q[:, :, 2:], k[:, :, 2:], None, GRID, 0)[2])
    for rows in (1, 2, 6):
        checks.equal(rpe(q[:, :, :rows], k, None, GRID, 2)[2], bias[:, :, :rows], 1e-12, f"the first {rows} rows")


@pytest.mark.paper("S208")
def test_it_costs_a_product_for_each_bucket_and_not_for_each_pair():
    for grid in ((3, 5), (6, 10)):
        rpe, n, buckets = ContextualRPE(HEADS, D, "product"), grid[0] * grid[1], bucket_count("product")
        q = torch.zeros(1, HEADS, n, D)
        checks.cost_law(n * HEADS * D * buckets, lambda q, rpe=rpe, grid=grid: rpe(q, q, None, grid, 0)[2], q)


def test_what_does_not_fit_is_a_sentence():
    with pytest.raises(LabkitError, match="choose one of euclidean, quantization, cross, product"):
        irpe_buckets(GRID, "manhattan")
    with pytest.raises(LabkitError, match="ContextualAttention for"):
        ContextualRPE(HEADS, D, on="v")
    with pytest.raises(LabkitError, match="expected 0 < α <= β and α < γ"):
        piecewise_index(torch.arange(3), 2, 1, 8)
