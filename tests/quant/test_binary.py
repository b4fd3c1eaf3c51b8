"""Binary numbers: each scale is the best there is, a dot product of packed bits is exact, and gradients pass."""

from __future__ import annotations

import pytest
import torch

from labkit.errors import LabkitError
from labkit.quant.binary import (
    binarize_weight,
    kept_dot,
    pack,
    popcount,
    sign,
    softmax_aware_binarize,
    xnor_popcount_dot,
)
from labkit.quant.grids import Binary
from tests import checks
from tests.weights import normal

ATTN = normal(2, 3, 10, 50).mul(2).softmax(dim=-1)


def signs(*shape: int) -> torch.Tensor:
    return torch.where(normal(*shape) < 0, -1.0, 1.0)


@pytest.mark.paper("S389")
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.25, 0.7, 1.0])
def test_the_mean_of_the_kept_is_the_best_scale(threshold):
    kept, scale = softmax_aware_binarize(ATTN, threshold)

    def error(s):
        return (ATTN - s * kept).square().sum(dim=-1)

    assert kept.dtype == torch.bool and scale.shape == (2, 3, 10, 1)
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert (error(scale) < error(factor * scale)).all()
    best = (ATTN * kept).sum(dim=-1, keepdim=True) / kept.sum(dim=-1, keepdim=True)  # where the derivative is 0
    checks.equal(scale, best, 1e-15)
    checks.equal(kept, ATTN.amax(dim=-1, keepdim=True) * threshold <= ATTN)


@pytest.mark.paper("S389")
def test_it_beats_zeros_and_ones_and_signs():
    """Signs: attention is positive, so that all signs are +1, with the best scale, the mean, nothing is told apart."""
    kept, scale = softmax_aware_binarize(ATTN)
    error = (ATTN - scale * kept).square().sum(dim=-1)
    assert (error < (ATTN - (ATTN >= 0.5).double()).square().sum(dim=-1)).all()
    assert (error < (ATTN - kept.double()).square().sum(dim=-1)).all()
    assert (error < (ATTN - ATTN.mean(dim=-1, keepdim=True)).square().sum(dim=-1)).all()
    assert (error < (ATTN - 1).square().sum(dim=-1)).all()


@pytest.mark.paper("S389")
def test_a_quarter_is_near_the_best_threshold():
    """The best of all thresholds keeps the k largest that have the largest (their sum)² / k: tried out, row by row."""
    rising = ATTN.sort(dim=-1, descending=True).values.cumsum(dim=-1).square() / torch.arange(1, 51)
    best = ATTN.square().sum(dim=-1) - rising.amax(dim=-1)
    kept, scale = softmax_aware_binarize(ATTN)
    error = (ATTN - scale * kept).square().sum(dim=-1)
    assert (error >= best - 1e-15).all() and error.sum() < 1.35 * best.sum()


def test_rows_that_are_already_binary_are_exact():
    for row in (torch.eye(5), torch.full((2, 8), 0.125), torch.tensor([[0.0, 0.5, 0.5, 0.0]])):
        kept, scale = softmax_aware_binarize(row)
        checks.equal(kept * scale, row)
    assert softmax_aware_binarize(torch.zeros(1, 4))[1].item() == 0


@pytest.mark.paper("S389")
@pytest.mark.parametrize("shape", [(6, 40), (6, 3, 4, 4)])
def test_the_mean_size_of_a_channel_is_its_best_scale(shape):
    weight = normal(*shape) * torch.logspace(-2, 1, 6).reshape(-1, *[1] * (len(shape) - 1))
    code, scale = binarize_weight(weight)
    rest = tuple(range(1, len(shape)))
    assert scale.shape == (6, *[1] * len(rest))

    def error(s):
        return (weight - s * code).square().sum(dim=rest)

    for factor in (0.9, 0.99, 1.01, 1.1):
        assert (error(scale) < error(factor * scale)).all()
    checks.equal(scale, (weight * code).sum(dim=rest, keepdim=True) / weight[0].numel(), 1e-12)
    flips = code.clone().view(6, -1)
    flips[:, 0] *= -1  # the signs are the best ones, too: any other one is worse
    assert (error(scale) < (weight - scale * flips.view(weight.shape)).square().sum(dim=rest)).all()
    checks.equal(scale * code, Binary.of(weight, rest).round(weight))


@pytest.mark.paper("S389")
def test_the_gradient_is_that_of_the_clipped_identity():
    x = torch.tensor([-3.0, -1.001, -1.0, -0.5, -0.0, 0.0, 0.7, 1.0, 1.001, 9.0], requires_grad=True)
    downstream = torch.arange(1.0, 11)
    (ours,) = torch.autograd.grad((sign(x) * downstream).sum(), x)
    assert sign(x).tolist() == [-1, -1, -1, -1, 1, 1, 1, 1, 1, 1]
    (clipped,) = torch.autograd.grad((x.clamp(-1, 1) * downstream).sum(), x)
    checks.equal(ours[x.abs() != 1], clipped[x.abs() != 1])  # at the kinks either side's gradient is one
    checks.equal(ours, downstream * torch.tensor([0, 0, 1, 1, 1, 1, 1, 1, 0, 0]))


@pytest.mark.paper("S389")
def test_weights_and_scales_learn():
    """A layer's outputs are fitted with signs and a learned scale per channel; the scale's gradient is a true one."""
    weight = normal(6, 40).mul(0.3).requires_grad_()
    code, begin = binarize_weight(weight)
    scale = begin.clone().requires_grad_()
    x, target = normal(64, 40), normal(64, 6)
    ((x @ (scale * code).mT - target).square().mean()).backward()
    assert weight.grad.any() and not begin.requires_grad
    step, one = 1e-6, torch.zeros_like(begin)
    one[2] = step
    up, down = ((x @ ((begin + d) * code.detach()).mT - target).square().mean() for d in (one, -one))
    assert scale.grad[2].item() == pytest.approx(((up - down) / 2 / step).item(), rel=1e-5)


@pytest.mark.paper("S389")
@pytest.mark.parametrize("d", [1, 7, 8, 9, 64, 197, 384])
def test_counting_bits_is_the_dot_product_of_signs(d):
    a, b = signs(2, 3, 5, d), signs(2, 3, 11, d).flip(-1)
    out = xnor_popcount_dot(pack(a), pack(b), d)
    assert out.dtype == torch.int32
    checks.equal(out, a @ b.mT)
    checks.equal(xnor_popcount_dot(pack(a), pack(b[0, 0]), d), a @ b[0, 0].mT)  # weights are shared by all


@pytest.mark.paper("S389")
@pytest.mark.parametrize("d", [5, 50, 197])
def test_kept_tokens_add_the_signs_of_their_values(d):
    kept, values = normal(2, 6, d) > 0.8, signs(2, 9, d).flip(-1)
    checks.equal(kept_dot(pack(kept), pack(values), d), kept.double() @ values.double().mT)


@pytest.mark.paper("S389")
def test_storage_is_one_thirty_second():
    weight = normal(64, 384).float()
    packed = pack(sign(weight))
    assert packed.dtype == torch.uint8 and packed.nbytes * 32 == weight.nbytes
    assert pack(torch.ones(3, 9)).tolist() == [[255, 1]] * 3


def test_every_byte_has_its_number_of_bits():
    every = torch.arange(256, dtype=torch.uint8)
    assert popcount(every[:, None]).tolist() == [bin(i).count("1") for i in range(256)]
    assert popcount(torch.full((1000,), 255, dtype=torch.uint8)).item() == 8000


def test_what_is_no_bit_is_refused_in_a_sentence():
    for use in (sign, pack, binarize_weight, softmax_aware_binarize):
        with pytest.raises(LabkitError, match="NaN has no sign"):
            use(torch.tensor([[1.0, torch.nan]]))
    with pytest.raises(LabkitError, match="no share of the largest"):
        softmax_aware_binarize(ATTN, 1.5)
    bits = pack(signs(3, 20))
    for a, b, d in ((bits, bits, 30), (bits, bits[:, :2], 20), (bits.int(), bits, 20)):
        with pytest.raises(LabkitError, match="packed bytes"):
            xnor_popcount_dot(a, b, d)
