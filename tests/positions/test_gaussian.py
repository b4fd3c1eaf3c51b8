"""A mixture of Gaussians over the scores: its shape, its plain limit, and what a zero in it does."""

from __future__ import annotations

import math

import pytest
import torch

from labkit.positions.gaussian import GaussianAttention
from labkit.vit import Attention
from tests import checks
from tests.positions.schemes import depends_on_displacement
from tests.weights import normal, randomized

GRID, DIM, HEADS = (4, 5), 16, 4


def with_mask(amplitude, sigma):
    attn = randomized(GaussianAttention(DIM, HEADS, kernels=len(amplitude)))
    with torch.no_grad():
        attn.amplitude.copy_(torch.tensor(amplitude))
        attn.log2_sigma.copy_(torch.tensor([math.log2(s) for s in sigma]))
    return attn


@pytest.mark.paper("S105")
def test_the_mask_is_a_symmetric_function_of_the_displacement():
    mask = with_mask([0.7, -0.2], [1.5, 3.0]).mask(GRID)
    checks.symmetric(mask)
    assert depends_on_displacement(mask, GRID, 1e-12)
    d2 = 3**2 + 4**2
    expected = 0.7 * math.exp(-d2 / (2 * 1.5**2)) - 0.2 * math.exp(-d2 / (2 * 3.0**2))
    assert mask[0, 19].item() == pytest.approx(expected, abs=1e-6), "3 rows down, 4 columns right"
    checks.equal(mask.diagonal(), torch.full((20,), 0.5), 1e-7, "the mask at distance zero and the sum of amplitudes")


@pytest.mark.paper("S105")
@pytest.mark.parametrize("prefix", [0, 2])
def test_infinitely_wide_gaussians_that_sum_to_one_are_plain_attention(prefix):
    ours, plain = with_mask([0.5, 0.5], [math.inf, math.inf]), randomized(Attention(DIM, HEADS, impl="plain"))
    plain.load_state_dict({k: v for k, v in ours.state_dict().items() if k in plain.state_dict()})
    x = normal(2, prefix + 20, DIM)
    checks.equal(ours.attend(x, grid=GRID, prefix=prefix)[0], plain(x), what="our attention and the plain one")


@pytest.mark.paper("S105")
def test_two_parameters_for_each_gaussian_of_a_layer():
    def count(module):
        return sum(p.numel() for p in module.parameters())

    for kernels in (1, 5):
        assert count(GaussianAttention(DIM, HEADS, kernels)) - count(Attention(DIM, HEADS)) == 2 * kernels


@pytest.mark.paper("S105")
def test_a_score_masked_to_zero_is_an_average_share_and_not_none():
    """The mask multiplies scores, not probabilities: a zero in it makes a key as good as any score of zero."""
    x = normal(2, 20, DIM)
    uniform = with_mask([0.0], [1.0]).attend(x, grid=GRID)[1].attn
    checks.equal(uniform, torch.full_like(uniform, 1 / 20), 1e-12, "under a mask of zeros, the attention and 1 / n")
    narrow = with_mask([1.0], [0.1]).attend(x, grid=GRID)[1].attn
    far = narrow[:, :, 0, 1:]
    checks.equal(far, far[..., :1].expand_as(far), 1e-12, "the shares of all other patches")
    assert (far > 0.01).all()


def test_tokens_before_the_patches_keep_their_scores():
    attn, x = with_mask([0.0], [1.0]), normal(2, 21, DIM)
    q, k, _ = attn.project(x)
    scores = q @ k.transpose(-2, -1) / 2
    scores[:, :, 1:, 1:] = 0
    checks.equal(attn.attend(x, grid=GRID, prefix=1)[1].attn, scores.softmax(dim=-1), 1e-12)
