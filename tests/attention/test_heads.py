"""Shared keys and values are multi-head attention whose heads hold copies, and cost what their few heads cost."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from labkit.attention import heads as mine
from labkit.attention.dense import MultiHead
from labkit.attention.heads import GroupedQuery
from labkit.errors import LabkitError
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

DIM, HEADS, GRID = 24, 4, (3, 4)
N, D = GRID[0] * GRID[1], DIM // HEADS


def at(mixer: nn.Module):
    return lambda x: mixer(x, GRID)


@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


def test_as_many_keys_as_queries_is_multi_head_attention():
    ours, plain = randomized(GroupedQuery(DIM, HEADS, kv_heads=HEADS)), MultiHead(DIM, HEADS).double()
    plain.load_state_dict(ours.state_dict())
    x = normal(2, N, DIM)
    checks.exact_limit(at(ours), at(plain), x, tol=1e-12)
    checks.equal_gradients(at(ours), at(plain), x, tol=1e-12)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_it_is_the_grouped_attention_of_torch(kv_heads):
    mixer, x = randomized(GroupedQuery(DIM, HEADS, kv_heads)), normal(2, N, DIM)
    q = mixer.project(x, GRID)[0]
    out = F.scaled_dot_product_attention(q, *mixer.keys_values(x), enable_gqa=True)
    theirs = mixer.proj(out.transpose(1, 2).flatten(2))
    checks.exact_limit(at(mixer), lambda x: theirs, x, tol=1e-12)
    fast = GroupedQuery(DIM, HEADS, kv_heads, impl="fast").double()
    fast.load_state_dict(mixer.state_dict())
    checks.exact_limit(at(fast), at(mixer), x, tol=1e-12)
    checks.equal_gradients(at(fast), at(mixer), x, tol=1e-11)


def test_what_is_kept_of_a_token_shrinks_with_the_heads_that_are_shared():
    x, full = normal(2, N, DIM).float(), MultiHead(DIM, HEADS)
    for kv_heads in (1, 2, 4):
        mixer = GroupedQuery(DIM, HEADS, kv_heads)
        kept = mixer.keys_values(x)
        assert [t.shape for t in kept] == [(2, kv_heads, N, D)] * 2
        saved = full.qkv.weight.numel() - mixer.qkv.weight.numel()
        assert saved == 2 * (HEADS - kv_heads) * D * DIM
        assert full.cost(GRID).macs - mixer.cost(GRID).macs == N * saved


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_heads_that_agree_are_merged_without_a_loss(kv_heads):
    """The mean of equal heads is each of them; heads that differ lose their difference."""
    full, x = randomized(MultiHead(DIM, HEADS)), normal(2, N, DIM)
    with torch.no_grad():
        for value in full.qkv.parameters():
            kv = value[DIM:].unflatten(0, (2, kv_heads, HEADS // kv_heads, D))
            kv.copy_(kv[:, :, :1].expand_as(kv).clone())
    checks.exact_limit(at(GroupedQuery.of(full, kv_heads)), at(full), x, tol=1e-12)
    apart = randomized(MultiHead(DIM, HEADS))
    merged = GroupedQuery.of(apart, kv_heads)
    _, k, _ = apart.project(x, GRID)
    checks.equal(merged.keys_values(x)[0], k.unflatten(1, (kv_heads, -1)).mean(dim=2), 1e-12, "the mean of the keys")


def test_it_compiles():
    mixer, x = randomized(GroupedQuery(DIM, HEADS, 2)), normal(2, N, DIM)
    checks.compiles(mixer, x, GRID)


@pytest.mark.parametrize("kv_heads", [0, 3])
def test_heads_that_cannot_be_shared_are_refused(kv_heads):
    with pytest.raises(LabkitError, match=rf"4 heads of queries cannot share {kv_heads} of keys .* a divisor of 4\."):
        GroupedQuery(DIM, HEADS, kv_heads)
