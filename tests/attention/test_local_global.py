"""Aggregated attention: a window and a pool in one softmax, and each alone is what it should be."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.attention import local_global as mine
from labkit.attention.local_global import AggregatedAttention, ConvGLU, aggregated_attention, neighbours
from labkit.attention.matrix import effective_matrix
from labkit.errors import LabkitError
from labkit.mlp import GatedMLP
from labkit.operations import operations
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

DIM, HEADS, GRID, D = 24, 3, (4, 6), 8
N = math.prod(GRID)


def inputs(m: int = 5) -> tuple[Tensor, ...]:
    """q, k, v, pool_k and pool_v; a q as it comes, which sdpa would scale."""
    return tuple(normal(3, 2, HEADS, N, D)) + tuple(normal(2, 2, HEADS, m, D) + 0.1)


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, bias, scale=1.0)


@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


@pytest.mark.paper("S348")
def test_a_window_over_the_whole_image_without_a_pool_is_dense_attention():
    q, k, v, pool_k, pool_v = inputs(m=0)
    out = aggregated_attention(q, k, v, GRID, 2 * max(GRID) - 1, pool_k, pool_v)
    checks.equal(out, sdpa(q, k, v), tol=1e-10)


@pytest.mark.paper("S348")
def test_without_a_window_it_is_pooled_attention():
    q, k, v, pool_k, pool_v = inputs()
    checks.equal(aggregated_attention(q, k, v, GRID, 0, pool_k, pool_v), sdpa(q, pool_k, pool_v), tol=1e-10)


@pytest.mark.paper("S348")
@pytest.mark.parametrize("window", [1, 3, 5])
def test_it_is_attention_over_the_keys_of_each_query(window):
    """Token by token, with the keys written out: its neighbours row by row, then the pool."""
    q, k, v, pool_k, pool_v = inputs()
    bias = normal(HEADS, 1, window**2 + 5)
    out = aggregated_attention(q, k, v, GRID, window, pool_k, pool_v, bias)
    reach = range(-(window // 2), window // 2 + 1)
    for i in range(N):
        row, column = divmod(i, GRID[1])
        around = [(row + dy, column + dx) for dy in reach for dx in reach]
        there = [0 <= y < GRID[0] and 0 <= x < GRID[1] for y, x in around]
        near = [y * GRID[1] + x for (y, x), ok in zip(around, there, strict=True) if ok]
        keys, values = (torch.cat([t[:, :, near], pool], 2) for t, pool in ((k, pool_k), (v, pool_v)))
        mask = bias[..., torch.tensor(there + [True] * 5)]
        checks.equal(out[:, :, i : i + 1], sdpa(q[:, :, i : i + 1], keys, values, mask), tol=1e-10)


@pytest.mark.paper("S348")
def test_the_window_and_the_pool_compete():
    """Of values that are one near and zero far, and the other way round, the parts of each query sum to one."""
    q, k, v, pool_k, pool_v = inputs()

    def share(pool_k: Tensor, near: float, far: float) -> Tensor:
        return aggregated_attention(q, k, torch.full_like(v, near), GRID, 3, pool_k, torch.full_like(pool_v, far))

    near, far = share(pool_k, 1.0, 0.0), share(pool_k, 0.0, 1.0)
    checks.equal(near + far, torch.ones_like(near), tol=1e-12)
    assert near.min() > 0 and far.min() > 0
    louder = torch.einsum("bhnd,bhmd->bhnm", q, pool_k).mean((-1, -2), keepdim=True).sign() * pool_k * 3
    assert (share(louder, 1.0, 0.0) - near).abs().max() > 0.1  # a change of the pool is a change of the window


@pytest.mark.paper("S348")
def test_its_matrix_counts_a_pooled_cell_for_the_tokens_under_it():
    mixer, x = randomized(AggregatedAttention(DIM, HEADS, window=3, pool=(2, 3))), normal(2, N, DIM)
    footprint = mixer.footprint(GRID)
    checks.rows_sum_to_one(footprint)
    checks.equal((footprint[N:] > 0).sum(-1), torch.full((6,), 4.0))
    checks.rows_sum_to_one(effective_matrix(mixer, x, GRID), tol=1e-6)


@pytest.mark.paper("S348")
@pytest.mark.parametrize("window, pool", [(3, (4, 4)), (5, (2, 2)), (3, (1, 2))])
def test_it_costs_its_keys_and_is_linear_in_the_tokens(window, pool):
    mixer, keys, counts = AggregatedAttention(DIM, HEADS, window, pool), window**2 + math.prod(pool), []
    for grid in ((8, 8), (8, 16), (16, 16)):
        n = math.prod(grid)
        steps = operations(mixer, torch.zeros(1, n, DIM), grid)
        assert sum(step.macs for step in steps if step.weight_bytes == 0) == 2 * n * keys * DIM
        counts.append(sum(step.macs for step in steps))
        assert counts[-1] == mixer.cost(grid).macs
    assert counts[2] - counts[1] == 2 * (counts[1] - counts[0])


@pytest.mark.paper("S348")
def test_a_conv_glu_that_only_looks_at_the_centre_is_a_plain_glu():
    conv, plain, x = randomized(ConvGLU(DIM, 10)), GatedMLP(DIM, 10, act=nn.GELU).double(), normal(2, N, DIM)
    assert (conv(x, GRID) - conv(x.flip(1), GRID).flip(1)).abs().max() > 1e-3  # as it is, it sees neighbours
    with torch.no_grad():
        nn.init.dirac_(conv.conv.weight, groups=10)
        conv.conv.bias.zero_()
    plain.load_state_dict(conv.state_dict(), strict=False)
    checks.exact_limit(lambda x: conv(x, GRID), plain, x, tol=1e-12)


@pytest.mark.paper("S348")
def test_the_gate_of_a_conv_glu_sees_the_neighbours_and_nothing_else():
    conv, x, at = randomized(ConvGLU(DIM, 10)), normal(1, N, DIM).requires_grad_(), 8  # row 1, column 2
    reached = torch.autograd.grad(conv(x, GRID)[0, at].sum(), x)[0][0].any(-1)
    index, inside = neighbours(GRID, 3)
    assert inside[at].all() and sorted(index[at].tolist()) == reached.nonzero()[:, 0].tolist()


def test_queries_keep_their_length_and_grow_sharper_with_the_number_of_keys():
    mixer, x = randomized(AggregatedAttention(DIM, HEADS)), normal(2, N, DIM)
    with torch.no_grad():
        mixer.query.zero_()
    q, k, _ = mixer.project(x, GRID)
    corner, edge, middle = 16 + 4, 16 + 6, 16 + 9
    expected = F.softplus(mixer.temperature)[:, 0] * torch.tensor([corner, edge, middle]).double().log()
    checks.equal(q.norm(dim=-1)[:, :, [0, 1, 7]], expected.expand(2, -1, -1), tol=1e-10)
    checks.equal(k.norm(dim=-1), torch.ones(2, HEADS, N + 16), tol=1e-10)


def test_the_learned_bias_is_that_of_the_window():
    mixer, x = randomized(AggregatedAttention(DIM, HEADS)), normal(2, N, DIM)
    with torch.no_grad():
        mixer.bias[:, :, 4] = 60.0  # the centre: everybody looks at itself
    checks.equal(effective_matrix(mixer, x, GRID), torch.eye(N).double().expand(2, HEADS, N, N), tol=1e-10)


def test_it_compiles():
    mixer, x = randomized(AggregatedAttention(DIM, HEADS)), normal(1, N, DIM)
    with torch.no_grad():
        checks.compiles(mixer, x, GRID)


def test_a_window_without_a_centre_is_refused():
    with pytest.raises(LabkitError, match="A window of 4 has no centre; choose an odd one, or 0 for none"):
        AggregatedAttention(DIM, HEADS, window=4)
