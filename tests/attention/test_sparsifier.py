"""Guessed links are masked attention, exactly; with nothing reduced the guess is the truth."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from labkit.attention import sparsifier as mine
from labkit.attention.matrix import effective_matrix
from labkit.errors import LabkitError
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

DIM, HEADS, GRID, N = 12, 3, (4, 5), 20
sdpa = F.scaled_dot_product_attention


def qkv() -> torch.Tensor:
    return normal(3, 2, HEADS, N, DIM // HEADS)


@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


@pytest.mark.paper("S307")
@pytest.mark.parametrize("factors", [(1, 1), (4, 2)])
def test_with_all_links_it_is_dense_attention(factors):
    mixer = randomized(mine.SparseLinks(DIM, HEADS, 1.0, *factors))
    q, k, v = mixer.project(normal(2, N, DIM), GRID)
    checks.exact_limit(lambda *qkv: mixer.mix(*qkv, GRID), sdpa, q, k, v, tol=1e-12)
    mask = mine.connectivity_predictor(q, k, *factors, 1.0)
    checks.exact_limit(lambda *qkv: mine.sparse_attention(*qkv, mask), sdpa, q, k, v, tol=1e-12)


@pytest.mark.paper("S307")
def test_it_is_masked_attention_for_any_mask():
    q, k, v = qkv()
    mask = (normal(2, HEADS, N, N) > 0.5) | torch.eye(N, dtype=torch.bool)
    checks.equal(mine.sparse_attention(q, k, v, mask), sdpa(q, k, v, mask), tol=1e-12)


@pytest.mark.paper("S307")
@pytest.mark.parametrize("keep", [0.05, 0.25, 0.3, 0.51, 1.0])
def test_every_query_keeps_exactly_its_links_and_no_weight_elsewhere(keep):
    mixer, x = randomized(mine.SparseLinks(DIM, HEADS, keep)), normal(2, N, DIM)
    q, k, v = mixer.project(x, GRID)
    mask = mine.connectivity_predictor(q, k, 4, 2, keep)
    assert (mask.sum(dim=-1) == math.ceil(round(keep * N, 6))).all()
    attn = effective_matrix(mixer, x, GRID)
    assert torch.equal(attn != 0, mask), "a weight that was not chosen is not zero."
    checks.rows_sum_to_one(attn, tol=1e-12)
    checks.equal(mixer.mix(q, k, v, GRID), sdpa(q, k, v, mask), tol=1e-12, what="gathered and masked attention")


@pytest.mark.paper("S307")
def test_the_gradients_are_those_of_the_masked_attention():
    mixer, x = randomized(mine.SparseLinks(DIM, HEADS)), normal(2, N, DIM)
    q, k, _ = mixer.project(x, GRID)
    mask = mine.connectivity_predictor(q, k, 4, 2, 0.25)

    def masked(x):
        out = mine.sparse_attention(*mixer.project(x, GRID), mask)
        return mixer.proj(out.transpose(1, 2).flatten(2))

    checks.equal_gradients(lambda x: mixer(x, GRID), masked, x, tol=1e-10)


@pytest.mark.paper("S307")
def test_with_nothing_reduced_the_guess_is_the_true_best():
    q, k, _ = qkv()
    true = (q @ k.mT).topk(5, dim=-1).indices
    checks.equal(mine.predict_links(q, k, 1, 1, 0.25).sort().values, true.sort().values, what="guessed and true links")
    missed = mine.predict_links(q, k, 4, 2, 0.25).sort().values != true.sort().values
    assert missed.any(), "a coarse guess that never misses is none."


@pytest.mark.paper("S307")
def test_the_guess_scores_means_of_neighbouring_keys_and_channels():
    q, k, _ = qkv()
    means_q = (q[..., ::2] + q[..., 1::2]) / 2
    means_k = (k[..., ::2] + k[..., 1::2]) / 2
    for i in range(N):
        scores = [sum(means_q[0, 0, i] @ means_k[0, 0, 4 * g + j] for j in range(4)) for g in range(N // 4)]
        best = int(torch.stack(scores).argmax())
        links = mine.predict_links(q, k, 4, 2, 0.2)[0, 0, i]
        assert sorted(links.tolist()) == [4 * best + j for j in range(4)]


@pytest.mark.paper("S307")
@pytest.mark.parametrize(("keep", "f", "c"), [(0.25, 4, 2), (0.5, 1, 1), (0.1, 20, 4)])
def test_the_law_of_cost(keep, f, c):
    """The catalogue's keep·N²·d is the scores' part; the values cost as much again."""
    mixer = mine.SparseLinks(DIM, HEADS, keep, f, c)
    law = 4 * N * DIM**2 + 2 * keep * N**2 * DIM + N * (N / f) * (DIM / c)
    checks.equal(torch.tensor(mixer.cost(GRID).macs), torch.tensor(law), tol=1e-6)
    checks.cost_law(law, lambda x: mixer(x, GRID), torch.zeros(1, N, DIM))


def test_what_cannot_work_is_said():
    x = torch.zeros(1, N, DIM)
    with pytest.raises(LabkitError, match="keep=0 is no fraction of the links"):
        mine.SparseLinks(DIM, HEADS, keep=0)(x, GRID)
    with pytest.raises(LabkitError, match="20 tokens and 4 channels of a head are not divisible by n_factor=3"):
        mine.SparseLinks(DIM, HEADS, n_factor=3)(x, GRID)


def test_it_compiles():
    mixer, x = randomized(mine.SparseLinks(DIM, HEADS)), normal(1, N, DIM)
    checks.compiles(mixer, x, GRID)
