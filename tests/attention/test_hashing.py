"""Hashing attention is dense attention under the mask of its buckets, and plain attention with one bucket."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from labkit.attention import hashing as mine
from labkit.attention.matrix import effective_matrix
from labkit.errors import LabkitError
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

DIM, HEADS, GRID, N = 12, 3, (4, 6), 24


def meetings(buckets: torch.Tensor, chunk: int) -> torch.Tensor:
    """(b, heads, n, n): in how many rounds two tokens meet, from every token's place in the sorted order."""
    place = buckets.argsort(dim=-1, stable=True).argsort(dim=-1) // chunk
    behind = (place[..., :, None] - place[..., None, :]) % (N // chunk)
    alike = buckets[..., :, None] == buckets[..., None, :]
    return (alike & (behind <= 1)).sum(dim=2)


def masked(q, k, v, count):
    """Dense attention in which a pair counts as often as it met."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=count.double().log())


@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


@pytest.mark.parametrize("rounds", [1, 3])
def test_with_one_bucket_it_is_dense_attention(rounds):
    mixer, x = randomized(mine.HashingAttention(DIM, HEADS, buckets=1, chunk=N, rounds=rounds)), normal(2, N, DIM)
    q, k, v = mixer.project(x, GRID)
    checks.exact_limit(lambda *qkv: mixer.mix(*qkv, GRID), F.scaled_dot_product_attention, q, k, v, tol=1e-12)


@pytest.mark.parametrize("rounds", [1, 4])
@pytest.mark.parametrize(("buckets", "chunk"), [(4, 4), (2, 8), (4, 12), (8, 24)])
def test_it_is_dense_attention_under_the_mask_of_its_buckets(buckets, chunk, rounds):
    mixer = randomized(mine.HashingAttention(DIM, HEADS, buckets, chunk, rounds))
    x = normal(2, N, DIM)
    q, k, v = mixer.project(x, GRID)
    count = meetings(mine.lsh_buckets(q, mixer.rotations), chunk)
    assert 0 < float((count == 0).double().mean()) < 1 and int(count.max()) == rounds
    checks.equal(mixer.mix(q, k, v, GRID), masked(q, k, v, count), tol=1e-12)
    assert torch.equal(effective_matrix(mixer, x, GRID) != 0, count > 0)

    def oracle(x):
        return mixer.proj(masked(*mixer.project(x, GRID), count).transpose(1, 2).flatten(2))

    checks.equal_gradients(lambda x: mixer(x, GRID), oracle, x, tol=1e-10)


def test_a_bucket_is_the_direction_that_is_nearest():
    rotations = torch.eye(4, dtype=torch.float64)[None, :, :3]  # directions ±1, ±2, ±3
    x = torch.tensor([[5, 1, 1, 9], [1, 5, 0, 9], [0, 1, -2, 9], [-3, 1, 2, 9]], dtype=torch.float64)
    assert mine.lsh_buckets(x[None, None], rotations).flatten().tolist() == [0, 1, 5, 3]
    checks.equal(mine.lsh_buckets(7 * x[None, None], rotations), mine.lsh_buckets(x[None, None], rotations))


def test_queries_are_their_own_keys_at_length_one():
    q, k, _ = randomized(mine.HashingAttention(DIM, HEADS)).project(normal(2, N, DIM), GRID)
    checks.equal(k * q.norm(dim=-1, keepdim=True), q, tol=1e-12, what="keys at the queries' length and the queries")
    checks.equal(k.norm(dim=-1), torch.ones(2, HEADS, N), tol=1e-12, what="the keys' length and 1")


def test_more_rounds_let_more_pairs_meet_and_similar_ones_first():
    x = normal(1, 1, N, 8)
    rotations = normal(32, 8, 4)
    together = mine.lsh_buckets(x, rotations)
    meet = (together[..., :, None] == together[..., None, :])[0, 0].double()  # (rounds, n, n)
    supports = [float((meet[:rounds].sum(dim=0) > 0).double().mean()) for rounds in (1, 2, 8, 32)]
    assert supports == sorted(set(supports))
    cosine = F.cosine_similarity(x[0, 0, :, None], x[0, 0, None], dim=-1)
    often, others = meet.mean(dim=0), ~torch.eye(N, dtype=torch.bool)
    near, far = cosine > 0.3, cosine < -0.3
    assert often[near & others].mean() > 3 * often[far].mean()


def test_its_rotations_come_from_the_seed_and_travel_with_the_weights():
    x = normal(1, N, DIM)
    one, same, other = (mine.HashingAttention(DIM, HEADS, 4, 4, seed=seed).double() for seed in (0, 0, 1))
    assert torch.equal(one.rotations, same.rotations) and not torch.equal(one.rotations, other.rotations)
    checks.deterministic(lambda x: one(x, GRID), x)
    other.load_state_dict(one.state_dict())
    checks.equal(other(x, GRID), one(x, GRID), what="the outputs after the weights were copied")


@pytest.mark.parametrize(("buckets", "chunk", "rounds"), [(1, 24, 1), (2, 12, 3), (8, 4, 2)])
def test_the_law_of_cost_holds_for_every_number_of_buckets_and_rounds(buckets, chunk, rounds):
    mixer = mine.HashingAttention(DIM, HEADS, buckets, chunk, rounds)
    checks.cost_law(mixer.cost(GRID).macs, lambda x: mixer(x, GRID), torch.zeros(1, N, DIM))


def test_what_cannot_work_is_said():
    with pytest.raises(LabkitError, match="24 tokens do not divide into chunks of 7; choose a divisor of 24"):
        mine.HashingAttention(DIM, HEADS, chunk=7)(torch.zeros(1, N, DIM), GRID)
    with pytest.raises(
        LabkitError, match="5 buckets are not pairs of opposite directions; choose an even number, or 1"
    ):
        mine.HashingAttention(DIM, HEADS, buckets=5)


def test_it_compiles():
    mixer, x = randomized(mine.HashingAttention(DIM, HEADS, 4, 4)), normal(1, N, DIM)
    checks.compiles(mixer, x, GRID)
