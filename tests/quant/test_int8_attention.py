"""Scores from 8-bit integers: exact as integers, near as numbers, and the float ones when the codes are fine."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from labkit.errors import LabkitError
from labkit.quant.fold import centre_keys
from labkit.quant.int8_attention import block_codes, int8_attention, int8_scores, integer_scores
from tests import checks
from tests.weights import normal

Q, K, V = normal(3, 2, 3, 70, 16)  # one whole block of 64 tokens and a part of another
OFFSET = 30 * normal(2, 3, 1, 16)  # the same for all tokens


@pytest.mark.paper("S243")
def test_taking_the_mean_off_the_keys_leaves_attention_as_it_is():
    for k in (K, K + OFFSET):
        plain = (Q @ k.transpose(-2, -1)).softmax(dim=-1)
        checks.equal((Q @ centre_keys(k).transpose(-2, -1)).softmax(dim=-1), plain, 1e-12)


@pytest.mark.paper("S243")
@pytest.mark.parametrize("block", [1, 16, 64, 1000])
def test_codes_are_within_127_and_a_block_shares_its_scale(block):
    codes, scale = block_codes(Q, block)
    assert codes.dtype == torch.int8 and codes.shape == Q.shape and scale.shape == (2, 3, 70, 1)
    checks.equal(codes * scale, Q, scale.max().item() / 2 * (1 + 1e-9))
    for start in range(0, 70, block):
        part = codes[:, :, start : start + block].int()
        assert part.abs().amax(dim=(2, 3)).eq(127).all()
        expected = Q[:, :, start : start + block].abs().amax(dim=(2, 3)) / 127
        checks.equal(scale[:, :, start : start + block, 0], expected[..., None].expand(-1, -1, part.shape[2]))
    checks.equal(block_codes(codes * scale, block)[0], codes)


@pytest.mark.paper("S243")
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 70, 16), (1, 2, 197, 64), (2, 1, 5, 33)])
def test_integer_products_are_exact(shape):
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randint(-127, 128, shape, generator=draw, dtype=torch.int8) for _ in range(2))
    scores = integer_scores(q, k)
    assert scores.dtype == torch.int32
    checks.equal(scores, q.double() @ k.double().transpose(-2, -1))
    assert scores.float().equal(q.float() @ k.float().transpose(-2, -1))  # below 2²⁴ float32 counts as well
    ends = torch.full(shape, 127, dtype=torch.int8)
    assert (integer_scores(ends, -ends) == -(127**2) * shape[-1]).all()
    finer = torch.randint(-(2**22), 2**22, shape, generator=draw, dtype=torch.int32)
    checks.equal(integer_scores(finer, finer), (finer.long() @ finer.long().transpose(-2, -1)))


@pytest.mark.paper("S243")
@pytest.mark.parametrize("smooth", [True, False])
def test_scores_are_within_the_bound(smooth):
    """|S − Ŝ| ≤ (s_q |k|₁ + s_k |q|₁) / 2 + d s_q s_k / 4, for every pair of tokens."""
    for k in (K, K + OFFSET, K**5):
        keys = centre_keys(k) if smooth else k
        s_q, s_k = block_codes(Q)[1], block_codes(keys)[1].transpose(-2, -1)
        k_sum, q_sum = keys.abs().sum(-1)[..., None, :], Q.abs().sum(-1)[..., None]
        bound = (s_q * k_sum + s_k * q_sum) / 2 + 16 * s_q * s_k / 4
        error = (int8_scores(Q, k, smooth) - Q @ keys.transpose(-2, -1)).abs()
        assert (error <= bound).all() and error.max() > 0.05 * bound.min()


@pytest.mark.paper("S243")
def test_an_offset_of_all_keys_costs_nothing_once_it_is_taken_off():
    """Without, the scale grows by the outlier's factor, and the error with it."""

    def error(k, smooth):
        q = torch.zeros_like(Q)
        q[..., 1:] = Q[..., 1:]  # who does not ask the outlier's channel, sees only its price
        exact = q @ centre_keys(k).transpose(-2, -1)
        off = int8_scores(q, k, smooth) - exact
        return (off - off.mean(dim=-1, keepdim=True)).norm().item()  # what moves a row as a whole is not seen

    outlier = torch.zeros(16, dtype=torch.float64)
    outlier[0] = 100
    factor = (K + outlier).abs().max().item() / centre_keys(K).abs().max().item()
    assert error(K + outlier, True) == pytest.approx(error(K, True), rel=1e-6)
    gain = error(K + outlier, False) / error(K + outlier, True)
    assert factor > 20 and 0.4 * factor < gain < 2 * factor
    exact = F.scaled_dot_product_attention(Q, K + OFFSET, V)
    errors = [(int8_attention(Q, K + OFFSET, V, smooth=s) - exact).norm() for s in (True, False)]
    assert errors[0] < 0.1 * errors[1] and errors[0] < 0.02 * exact.norm()


@pytest.mark.paper("S243")
def test_keys_of_zero_mean_are_left_alone():
    k = torch.cat([K[:, :, :32], -K[:, :, :32]], dim=2)
    assert k.mean(dim=2).abs().max() < 1e-15
    assert block_codes(centre_keys(k))[0].equal(block_codes(k)[0])
    checks.equal(int8_scores(Q, k, True), int8_scores(Q, k, False), 1e-12)


@pytest.mark.paper("S243")
@pytest.mark.parametrize("bias", [None, normal(70), normal(2, 3, 70, 70)], ids=["none", "row", "all"])
def test_with_many_bits_it_is_float_attention(bias):
    mask = None if bias is None else bias.expand(2, 3, 70, 70)
    exact = F.scaled_dot_product_attention(Q, K + OFFSET, V, attn_mask=mask)
    errors = [(int8_attention(Q, K + OFFSET, V, bias, bits=b) - exact).abs().max().item() for b in (4, 8, 12, 16, 24)]
    assert all(b < a / 4 for a, b in pairwise(errors))
    assert errors[1] < 0.1 and errors[-1] < 1e-5


def test_zeros_nothing_and_what_is_not_finite():
    codes, scale = block_codes(torch.zeros(1, 2, 5, 4))
    assert not codes.any() and scale.eq(1).all()
    checks.equal(int8_attention(Q * 0, K, V), V.mean(dim=2, keepdim=True).expand_as(V), 1e-12)
    assert int8_attention(Q[:, :, :0], K, V).shape == (2, 3, 0, 16)
    assert not int8_attention(Q, K[:, :, :0], V[:, :, :0]).any()
    assert int8_attention(Q[:0], K[:0], V[:0]).shape == (0, 3, 70, 16)
    for value in (math.nan, math.inf):
        q = Q.clone()
        q[0, 0, 66, 3] = value
        out = int8_attention(q, K, V)
        assert out[0, 0, 64:].isnan().all() and out[0, 0, :64].isfinite().all() and out[1].isfinite().all()
    for bad in ({"block": 0}, {"bits": 1}, {"bits": 25}):
        with pytest.raises(LabkitError, match="at least one token, and from 2 to 24 bits"):
            int8_attention(Q, K, V, **bad)


def test_precisions_and_company():
    checks.follows_dtype_and_device(lambda x: int8_attention(x, x, x), Q)
    checks.batch_independent(lambda x: int8_attention(x, x.flip(2), x), Q, 1e-12)
    few = int8_attention(Q[:, :, :1], K, V)
    assert few.shape == (2, 3, 1, 16)
