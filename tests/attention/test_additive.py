"""Fastformer by its formulas and in its limits, SwiftFormer's attention as timm has it."""

from __future__ import annotations

import math

import pytest
import torch
from timm.models.swiftformer import EfficientAdditiveAttention
from torch import nn

from labkit.attention import additive as mine
from labkit.attention.additive import AdditiveAttention, SwiftAttention, pooled
from labkit.attention.matrix import effective_matrix, receptive_field
from labkit.errors import LabkitError
from labkit.operations import operations
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

DIM, HEADS, GRID = 24, 3, (4, 7)
N, D = math.prod(GRID), 8


@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


def fastformer(mixer: AdditiveAttention, x: torch.Tensor) -> torch.Tensor:
    """The formulas of the paper, image by image, head by head and token by token."""
    out = torch.empty_like(x)
    for b, tokens in enumerate(x):
        q, k, v = (part.unflatten(1, (HEADS, D)) for part in mixer.qkv(tokens).chunk(3, dim=1))
        u = torch.empty(N, HEADS, D, dtype=x.dtype)
        for h in range(HEADS):
            alpha = torch.stack([q[i, h].dot(mixer.for_queries[h]) / math.sqrt(D) for i in range(N)]).exp()
            global_q = sum(alpha[i] / alpha.sum() * q[i, h] for i in range(N))
            p = torch.stack([global_q * k[i, h] for i in range(N)])
            beta = torch.stack([p[i].dot(mixer.for_keys[h]) / math.sqrt(D) for i in range(N)]).exp()
            global_k = sum(beta[i] / beta.sum() * p[i] for i in range(N))
            u[:, h] = global_k * v[:, h]
        out[b] = mixer.proj(u.flatten(1)) + q.flatten(1)
    return out


def test_it_is_fastformer_as_the_paper_writes_it():
    mixer = randomized(AdditiveAttention(DIM, HEADS), std=0.5)
    checks.equal(mixer(normal(2, N, DIM), GRID), fastformer(mixer, normal(2, N, DIM)), tol=1e-10)


def test_without_a_preference_the_summary_is_the_mean_and_with_a_strong_one_the_best_token():
    x = normal(2, HEADS, N, D)
    checks.equal(pooled(x, torch.zeros(HEADS, D).double()), x.mean(dim=-2, keepdim=True), tol=1e-12)
    query = normal(HEADS, D)
    best = (x @ query[..., None]).argmax(dim=-2, keepdim=True)
    expected = torch.take_along_dim(x, best, dim=-2)
    checks.equal(pooled(x, 1e5 * query), expected, tol=1e-10)


def test_it_is_the_efficient_additive_attention_of_timm():
    ours, theirs = randomized(SwiftAttention(DIM)), EfficientAdditiveAttention(DIM, DIM).double()
    theirs.load_state_dict(ours.state_dict())
    x = normal(2, N, DIM)

    def of_timm(x: torch.Tensor) -> torch.Tensor:
        return theirs(x.transpose(1, 2).unflatten(2, GRID)).flatten(2).transpose(1, 2)

    checks.exact_limit(lambda x: ours(x, GRID), of_timm, x, tol=1e-12)
    checks.equal_gradients(lambda x: ours(x, GRID), of_timm, x, tol=1e-12)


MIXERS = [lambda: AdditiveAttention(DIM, HEADS), lambda: SwiftAttention(DIM)]


@pytest.mark.parametrize("make", MIXERS, ids=["long", "short"])
def test_every_token_reaches_every_other_whatever_their_order(make):
    mixer, x = randomized(make()), normal(2, N, DIM)
    checks.permutation_equivariant(lambda x: mixer(x, GRID), x, tol=1e-12)
    assert receptive_field(mixer, x, GRID).min() > 1e-6


@pytest.mark.parametrize("make", MIXERS, ids=["long", "short"])
def test_its_cost_is_linear_in_the_tokens(make):
    mixer, counts = make(), []
    for grid in [(4, 4), (8, 8)]:
        counts.append(sum(step.macs for step in operations(mixer, torch.zeros(1, math.prod(grid), DIM), grid)))
        assert mixer.cost(grid).macs == counts[-1]
    assert counts[1] == 4 * counts[0]
    assert mixer.cost((8, 8)).bytes == 4 * mixer.cost((4, 4)).bytes


@pytest.mark.parametrize("make", MIXERS, ids=["long", "short"])
def test_it_has_no_matrix_and_says_what_to_draw_instead(make):
    with pytest.raises(LabkitError, match="is not linear in its values; draw its `receptive_field` instead"):
        effective_matrix(make(), torch.zeros(1, N, DIM), GRID)


def test_only_the_queries_are_left_when_nothing_is_projected():
    mixer = randomized(AdditiveAttention(DIM, HEADS))
    nn.init.zeros_(mixer.proj.weight)
    nn.init.zeros_(mixer.proj.bias)
    x = normal(2, N, DIM)
    checks.equal(mixer(x, GRID), mixer.qkv(x)[..., :DIM], tol=1e-12)


def test_what_does_not_fit_is_refused():
    with pytest.raises(LabkitError, match="Width 24 does not divide into 5 heads"):
        AdditiveAttention(DIM, 5)
    for make in MIXERS:
        with pytest.raises(LabkitError, match=r"expected \(batch, 16, width\) for the grid 4x4"):
            make()(torch.zeros(1, N, DIM), (4, 4))


def test_it_compiles():
    mixer, x = randomized(AdditiveAttention(DIM, HEADS)), normal(1, N, DIM)
    checks.compiles(mixer, x, GRID)
