"""Maps of low rank: at full rank they are dense attention, and below it their rank is what was promised."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from labkit.attention import lowrank as mine
from labkit.attention.lowrank import LinformerAttention, NystromAttention
from labkit.attention.matrix import effective_matrix
from labkit.attention.mixer import Mixer
from labkit.errors import LabkitError
from labkit.operations import operations
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

DIM, HEADS, GRID = 24, 3, (4, 8)
N = math.prod(GRID)
ENOUGH = 40  # iterations, for the small matrices of these tests


def qkv(size: float = 1.0) -> torch.Tensor:
    """q, k and v (2, 3, 32, 8); q and k of that size."""
    q, k, v = normal(3, 2, HEADS, N, 8)
    return torch.stack([size * q, size * k, v])


def rank(matrix: torch.Tensor) -> int:
    values = torch.linalg.svdvals(matrix)
    return int((values > 1e-9 * values[..., :1]).sum(dim=-1).max())


@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


def test_linformer_that_keeps_every_token_is_dense_attention():
    mixer, dense, x = randomized(LinformerAttention(DIM, HEADS, N, N)), Mixer(DIM, HEADS).double(), normal(2, N, DIM)
    with torch.no_grad():
        mixer.e.copy_(torch.eye(N))
        mixer.f.copy_(torch.eye(N))
    dense.load_state_dict(mixer.state_dict(), strict=False)
    checks.exact_limit(lambda x: mixer(x, GRID), lambda x: dense(x, GRID), x, tol=1e-10)


def test_linformer_is_attention_to_weighted_sums_of_tokens():
    q, k, v = qkv()
    mixer = randomized(LinformerAttention(DIM, HEADS, N, 5))
    e, f = mixer.e, mixer.f
    expected = F.scaled_dot_product_attention(
        q, torch.einsum("rn,bhnd->bhrd", e, k), torch.einsum("rn,bhnd->bhrd", f, v)
    )
    checks.equal(mine.linformer_attention(q, k, v, e, f), expected, tol=1e-10)
    checks.equal(mixer.mix(q, k, v, GRID), expected, tol=1e-10)


def test_nystrom_with_a_landmark_for_every_token_is_dense_attention():
    """S S⁺ S = S; peaked rows, on different tokens, make S well-conditioned, so that no digits are lost."""
    q, _, v = qkv(size=2.0)
    k = q.roll(1, dims=2)
    dense = F.scaled_dot_product_attention(q, k, v)
    checks.equal(mine.nystrom_attention(q, k, v, N, iterations=ENOUGH), dense, tol=1e-10)
    coarse = mine.nystrom_attention(q, k, v, N // 4, iterations=ENOUGH)
    assert (coarse - dense).abs().max() > 0.1


def test_nystrom_is_three_thin_maps_around_a_pseudo_inverse():
    q, k, v = qkv()
    m = 8
    q_marks, k_marks = (torch.stack([t[:, :, i * 4 : i * 4 + 4].mean(2) for i in range(m)], 2) for t in (q, k))

    def attn(a, b):
        return (a @ b.mT / math.sqrt(8)).softmax(-1)

    expected = attn(q, k_marks) @ torch.linalg.pinv(attn(q_marks, k_marks)) @ attn(q_marks, k) @ v
    checks.equal(mine.nystrom_attention(q, k, v, m, iterations=ENOUGH), expected, tol=1e-8)


def test_the_pseudo_inverse_converges_with_the_third_power_of_the_error():
    a = (3 * normal(2, 3, 6, 6)).softmax(-1)
    one, errors = torch.eye(6).double(), []
    for iterations in range(30):
        z = mine.pseudo_inverse(a, iterations)
        errors.append(torch.linalg.matrix_norm(one - a @ z, 2).max())
    checks.equal(z, torch.linalg.inv(a), tol=1e-8)
    assert errors[0] < 1  # from here it cannot fail
    small = [(now, then) for now, then in itertools.pairwise(errors) if 1e-4 < now < 0.3]
    assert small and all(then < 4 * now**3 for now, then in small)


def test_the_pseudo_inverse_of_a_matrix_without_an_inverse():
    """Rounding errors in the directions that it does not have grow with every step: more steps would be worse."""
    a = normal(4, 6, 2) @ normal(4, 2, 6)
    checks.equal(mine.pseudo_inverse(a, 14), torch.linalg.pinv(a), tol=1e-7)


@pytest.mark.parametrize("thin", [2, 4, 8])
def test_the_rank_of_the_map_is_what_was_asked_for(thin):
    x = normal(2, N, DIM)
    for mixer in (LinformerAttention(DIM, HEADS, N, thin), NystromAttention(DIM, HEADS, thin, ENOUGH)):
        assert rank(effective_matrix(randomized(mixer), x, GRID)) == thin


def test_the_rows_of_nystrom_sum_to_one_when_the_inverse_has_converged():
    x = normal(2, N, DIM)
    matrix = effective_matrix(randomized(NystromAttention(DIM, HEADS, 4, ENOUGH)), x, GRID)
    checks.equal(matrix.sum(-1), torch.ones(2, HEADS, N), tol=1e-8)
    assert matrix.min() < 0  # they are no probabilities


def test_the_cost_is_linear_in_the_tokens():
    for make in (
        lambda n: LinformerAttention(DIM, HEADS, n, 4),
        lambda n: NystromAttention(DIM, HEADS, 4),
    ):
        counts = [
            sum(step.macs for step in operations(make(n), torch.zeros(1, n, DIM), (4, n // 4))) for n in (32, 64, 128)
        ]
        assert counts[2] - counts[1] == 2 * (counts[1] - counts[0])


def test_it_compiles():
    mixer, x = randomized(NystromAttention(DIM, HEADS, 4)), normal(1, N, DIM)
    with torch.no_grad():
        checks.compiles(mixer, x, GRID)


def test_what_does_not_fit_is_refused():
    with pytest.raises(LabkitError, match="rank=33 is not between 1 and the 32 tokens"):
        LinformerAttention(DIM, HEADS, N, 33)
    with pytest.raises(LabkitError, match="The grid 4x4 does not have the 32 tokens that these weights sum up"):
        LinformerAttention(DIM, HEADS, N, 4)(torch.zeros(1, 16, DIM), (4, 4))
    with pytest.raises(LabkitError, match="32 tokens do not divide into 5 landmarks"):
        NystromAttention(DIM, HEADS, 5)(torch.zeros(1, N, DIM), GRID)
