"""Combiner: a full map from few scores, dense at both ends, and a product of two choices in between."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.attention import spans as mine
from labkit.attention.matrix import effective_matrix
from labkit.attention.spans import CombinerAttention, combiner_attention, combiner_matrix
from labkit.errors import LabkitError
from labkit.operations import operations
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

DIM, HEADS, GRID, D = 24, 3, (4, 6), 8
N = math.prod(GRID)


def qkv() -> tuple[Tensor, ...]:
    return tuple(normal(3, 2, HEADS, N, D))


def by_the_product_rule(q: Tensor, k: Tensor, spans: list[list[int]], causal: bool) -> Tensor:
    """The map of one head, one pair after the other; `spans` lists the tokens of each span."""
    q, matrix = q / math.sqrt(D), torch.zeros(N, N, dtype=q.dtype)
    means = [k[span].mean(0) for span in spans]
    for own, span in enumerate(spans):
        for i in span:
            tokens = [j for j in span if j <= i or not causal]
            others = [r for r in range(len(spans)) if (r < own if causal else r != own)]
            scores = torch.stack([q[i] @ k[j] for j in tokens] + [q[i] @ means[r] for r in others]).softmax(0)
            matrix[i, tokens] = scores[: len(tokens)]
            for r, of_span in zip(others, scores[len(tokens) :], strict=True):
                inside = torch.stack([q[spans[r]].mean(0) @ k[j] for j in spans[r]]).softmax(0)
                matrix[i, spans[r]] = of_span * inside
    return matrix


@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


@pytest.mark.paper("S276")
@pytest.mark.parametrize("pattern", ["fixed", "strided"])
@pytest.mark.parametrize("span", [1, N])
def test_spans_of_one_token_or_of_all_are_dense_attention(span, pattern):
    q, k, v = qkv()
    checks.equal(combiner_attention(q, k, v, span, pattern), F.scaled_dot_product_attention(q, k, v), tol=1e-12)


@pytest.mark.paper("S276")
@pytest.mark.parametrize("span", [1, N])
def test_causal_spans_of_one_token_or_of_all_are_causal_attention(span):
    q, k, v = qkv()
    dense = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    checks.equal(combiner_attention(q, k, v, span, causal=True), dense, tol=1e-12)


@pytest.mark.paper("S276")
@pytest.mark.parametrize("span", [2, 6, 12])
@pytest.mark.parametrize("pattern, causal", [("fixed", False), ("fixed", True), ("strided", False)])
def test_its_matrix_is_the_product_of_two_choices_and_what_it_applies(pattern, causal, span):
    q, k, v = qkv()
    matrix = combiner_matrix(q, k, span, pattern, causal)
    order = torch.arange(N).reshape(N // span, span) if pattern == "fixed" else torch.arange(N).reshape(span, -1).T
    checks.equal(matrix[1, 2], by_the_product_rule(q[1, 2], k[1, 2], order.tolist(), causal), tol=1e-12)
    checks.equal(combiner_attention(q, k, v, span, pattern, causal), matrix @ v, tol=1e-12)
    checks.rows_sum_to_one(matrix, tol=1e-12)


@pytest.mark.paper("S276")
def test_its_matrix_has_no_zero_and_a_causal_one_no_future():
    q, k, _ = qkv()
    assert combiner_matrix(q, k, 6).min() > 0
    assert combiner_matrix(q, k, 6, "strided").min() > 0
    causal = combiner_matrix(q, k, 6, causal=True)
    future = torch.ones(N, N, dtype=torch.bool).triu(1)
    assert not causal[..., future].any()
    assert causal[..., ~future].min() > 0


@pytest.mark.paper("S276")
def test_what_is_inside_a_span_does_not_depend_on_who_asks():
    q, k, _ = qkv()
    matrix = combiner_matrix(q, k, 6)
    asked, others = matrix[:, :, 6:, :6], matrix[:, :, 12:, 6:12]  # the first two spans, seen from those behind
    for seen in (asked, others):
        shares = seen / seen.sum(-1, keepdim=True)
        checks.equal(shares, shares[:, :, :1].expand_as(shares), tol=1e-12)
    own = matrix[:, :, :6, :6] / matrix[:, :, :6, :6].sum(-1, keepdim=True)
    assert own.std(dim=2).max() > 0.01  # unlike in the own span


@pytest.mark.paper("S276")
@pytest.mark.parametrize("side", [8, 16])
def test_it_computes_n_times_the_root_of_n_scores(side):
    n = side * side
    mixer = CombinerAttention(DIM, HEADS)
    steps = operations(mixer, torch.zeros(1, n, DIM), (side, side))
    scores = sum(step.macs for step in steps if step.weight_bytes == 0) / (2 * DIM)
    assert scores == n * (2 * math.sqrt(n) + 1)


@pytest.mark.paper("S276")
def test_the_columns_of_an_image_are_the_rows_of_its_transpose():
    rows = randomized(CombinerAttention(DIM, HEADS))
    columns = randomized(CombinerAttention(DIM, HEADS, pattern="strided"))
    x, turn = normal(2, N, DIM), torch.arange(N).reshape(GRID).T.flatten()
    checks.equal(columns(x, GRID)[:, turn], rows(x[:, turn], GRID[::-1]), tol=1e-12)
    q, k, _ = columns.project(x, GRID)
    checks.equal(effective_matrix(columns, x, GRID), combiner_matrix(q, k, GRID[0], "strided"), tol=1e-12)


def test_causal_tokens_do_not_change_with_their_future():
    mixer, x, cut = randomized(CombinerAttention(DIM, HEADS, span=4, causal=True)), normal(2, N, DIM), 9
    other = x.clone()
    other[:, cut:] = normal(2, N, DIM).flip(1)[:, cut:]
    checks.equal(mixer(x, GRID)[:, :cut], mixer(other, GRID)[:, :cut], tol=1e-12)


def test_it_compiles():
    mixer, x = randomized(CombinerAttention(DIM, HEADS, causal=True)), normal(1, N, DIM)
    with torch.no_grad():
        checks.compiles(mixer, x, GRID)


def test_what_does_not_fit_is_refused():
    q, k, v = qkv()
    with pytest.raises(LabkitError, match="24 tokens do not divide into spans of 5"):
        combiner_attention(q, k, v, 5)
    with pytest.raises(LabkitError, match="pattern='random' is unknown"):
        combiner_attention(q, k, v, 6, "random")
    with pytest.raises(LabkitError, match="reaches into the future"):
        combiner_attention(q, k, v, 6, "strided", causal=True)
