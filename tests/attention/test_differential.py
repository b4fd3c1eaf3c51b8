"""Two maps and their difference: timm's module, and plain attention when nothing is subtracted."""

from __future__ import annotations

import math

import pytest
import torch
from timm.layers.diff_attention import DiffAttention

from labkit.attention import differential as mine
from labkit.attention.dense import scaled_dot_product
from labkit.attention.differential import Differential, differential
from labkit.attention.matrix import effective_matrix
from labkit.errors import LabkitError
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

DIM, HEADS, GRID = 24, 3, (3, 4)
N = GRID[0] * GRID[1]
QKV = normal(3, 2, HEADS, N, 8)


@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


@pytest.mark.parametrize("depth", [0, 5])
def test_it_is_differential_attention_in_timm(depth):
    ours = randomized(Differential(DIM, HEADS, depth))
    theirs = DiffAttention(DIM, HEADS, qkv_bias=True, depth=depth).double()
    theirs.load_state_dict(ours.state_dict())
    theirs.fused_attn = False
    # timm takes the exponential in single precision.
    checks.exact_limit(lambda x: ours(x, GRID), theirs, normal(2, N, DIM), tol=1e-6)


def test_without_lambda_it_is_plain_attention_of_the_first_halves():
    q, k, v = QKV
    plain = scaled_dot_product(q[..., :4], k[..., :4], v)
    checks.exact_limit(lambda *qkv: differential(*qkv, 0.0), lambda *_: plain, *QKV, tol=1e-12)
    mixer = Differential(DIM, HEADS).double()
    with torch.no_grad():  # λ = exp(0) − exp(log(1 + λ_init)) + λ_init
        mixer.lambda_q1.zero_()
        mixer.lambda_q2.copy_(torch.tensor([1.0, 0, 0, 0]))
        mixer.lambda_k2[0] = math.log1p(mixer.lambda_init)
    checks.exact_limit(lambda *qkv: mixer.mix(*qkv, GRID), lambda *_: plain, *QKV, tol=1e-12)


def test_what_both_maps_look_at_cancels():
    q, k, v = QKV
    same = [torch.cat([t[..., :4], t[..., :4]], dim=-1) for t in (q, k)]
    checks.equal(differential(*same, v, 1.0), torch.zeros_like(v), 1e-12, "the difference of equal maps and zero")
    half = differential(*same, v, 0.5)
    checks.equal(half, 0.5 * scaled_dot_product(q[..., :4], k[..., :4], v), 1e-12, "half of a map")


def test_rows_sum_to_what_is_left_and_entries_may_be_negative():
    mixer, x = randomized(Differential(DIM, HEADS)), normal(2, N, DIM)
    matrix = effective_matrix(mixer, x, GRID)
    checks.equal(matrix.sum(dim=-1), (1 - mixer.lam).expand(2, HEADS, N), 1e-12, "the row sums and 1 - λ")
    with torch.no_grad():
        mixer.lambda_q1.fill_(1.0)
        mixer.lambda_k1.fill_(0.2)
    assert effective_matrix(mixer, x, GRID).min() < 0


def test_deeper_layers_start_with_a_larger_lambda():
    starts = [Differential(DIM, HEADS, depth).lambda_init for depth in range(12)]
    assert starts == sorted(starts) and starts[0] == pytest.approx(0.2) and 0.75 < starts[-1] < 0.8


def test_the_fast_path_is_the_plain_one_forward_and_backward():
    plain, x = randomized(Differential(DIM, HEADS)), normal(2, N, DIM)
    fast = Differential(DIM, HEADS, impl="fast").double()
    fast.load_state_dict(plain.state_dict())
    checks.exact_limit(lambda x: fast(x, GRID), lambda x: plain(x, GRID), x, tol=1e-12)
    gradients = [
        torch.autograd.grad(mixer(x, GRID).square().sum(), list(mixer.parameters())) for mixer in (fast, plain)
    ]
    checks.equal(*gradients, 1e-10, "the gradients of the weights")


def test_it_compiles():
    mixer, x = randomized(Differential(DIM, HEADS)), normal(2, N, DIM)
    checks.compiles(mixer, x, GRID)


def test_heads_without_two_halves_are_refused():
    with pytest.raises(LabkitError, match=r"Heads of 3 channels have no two halves; .* a multiple of 6\."):
        Differential(9, 3)
