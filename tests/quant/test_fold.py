"""Folding: the float function stays what it was, and one grid for all channels gives the codes of one for each."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from labkit.errors import LabkitError
from labkit.layers import Attention
from labkit.quant.dual_clip import fit_clip
from labkit.quant.fold import centre_keys, channel_grid, fold, smooth, to_layer_wise
from labkit.quant.grids import Uniform
from tests import checks
from tests.weights import normal, randomized

DIM = 24
SPREAD = torch.logspace(-1, 1, DIM, dtype=torch.float64)  # the channels' sizes, over two powers of ten
X = normal(6, 50, DIM)


def pair(bias: bool = True, affine: bool = True) -> tuple[nn.LayerNorm, nn.Linear]:
    norm = randomized(nn.LayerNorm(DIM, elementwise_affine=affine))
    if affine:
        norm.weight.data.mul_(SPREAD)
        norm.bias.data.mul_(SPREAD.flip(0))
    return norm, randomized(nn.Linear(DIM, 7, bias=bias))


def extremes(y):
    return y.flatten(0, -2).amin(dim=0), y.flatten(0, -2).amax(dim=0)


def through(linear, grid, y):
    """What the layer makes of the numbers that the codes stand for."""
    return linear(grid.decode(grid.encode(y)))


@pytest.mark.paper("S028", "S070", "S289", "S320")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_the_float_function_is_unchanged_and_so_are_the_originals(bias, affine):
    norm, linear = pair(bias, affine)
    before = [p.clone() for p in (*norm.parameters(), *linear.parameters())]
    low, high = extremes(norm(X))
    folds = [
        fold(norm, linear, normal(DIM).exp(), normal(DIM)),
        to_layer_wise(norm, linear, channel_grid(low, high, 4))[:2],
        *(smooth(norm, linear, low, high, alpha, centre) for alpha in (0, 0.5, 1) for centre in (False, True)),
    ]
    for new_norm, new_linear in folds:
        checks.equal(new_linear(new_norm(X)), linear(norm(X)), 1e-12)
        assert not torch.allclose(new_norm(X), norm(X), atol=1e-3)
    checks.equal([*norm.parameters(), *linear.parameters()], before)


def test_what_the_folded_norm_puts_out_is_shifted_and_scaled():
    norm, linear = pair()
    scale, shift = normal(DIM).exp(), normal(2, DIM)[1]
    checks.equal(fold(norm, linear, scale, shift)[0](X), (norm(X) - shift) / scale, 1e-12)


@pytest.mark.paper("S028", "S289", "S320")
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("part", [1.0, 0.7])
def test_one_grid_gives_the_codes_of_one_per_channel(bits, part):
    """Also where the calibration was narrower than the data, so that values are clipped; and the same error."""
    norm, linear = pair()
    y = norm(X)
    low, high = extremes(y)
    own = channel_grid(part * low, part * high, bits)
    folded, reader, one = to_layer_wise(norm, linear, own)
    assert one.scale.ndim == one.zero.ndim == 0 and one.zero.dtype == torch.int32 and one.bits == bits
    assert one.zero == own.zero.double().mean().round() and one.scale == own.scale.mean()
    codes = one.encode(folded(X))
    assert codes.equal(own.encode(y)) and codes.min() == 0 and codes.max() == 2**bits - 1
    ours, channel_wise = through(reader, one, folded(X)), through(linear, own, y)
    checks.equal(ours, channel_wise, 1e-12)
    error = (ours - linear(y)).norm().item()
    assert error == pytest.approx((channel_wise - linear(y)).norm().item(), rel=1e-12) and error > 0


@pytest.mark.paper("S320")
def test_a_mean_zero_point_that_is_not_rounded_changes_the_error():
    """As published code has it: codes are no integers then, and what is rounded is another number."""
    norm, linear = pair()
    y = norm(X)
    own = channel_grid(*extremes(y), 4)
    scale, zero = own.scale.mean(), own.zero.double().mean()
    assert zero != zero.round()
    folded, reader = fold(norm, linear, own.scale / scale, own.scale * (zero - own.zero))
    checks.equal(reader(folded(X)), linear(y), 1e-12)
    codes = ((folded(X) / scale).round() + zero).clamp(0, 15)
    assert (codes != codes.round()).any()
    assert (reader(scale * (codes - zero)) - through(linear, own, y)).abs().max() > 0.01


@pytest.mark.paper("S289", "S320")
def test_equal_scales_are_the_plain_grid_for_all():
    norm, linear = pair()
    own = Uniform(torch.full((DIM,), 0.25, dtype=torch.float64), torch.full((DIM,), 7, dtype=torch.int32), 4)
    folded, reader, one = to_layer_wise(norm, linear, own)
    checks.equal([folded.weight, folded.bias, reader.weight, reader.bias], [*norm.parameters(), *linear.parameters()])
    assert one.scale == 0.25 and one.zero == 7


@pytest.mark.paper("S320")
def test_without_folding_one_grid_errs_more_the_more_the_channels_differ():
    own, shared = [], []
    for spread in (0.0, 0.25, 0.5, 1.0):
        size = SPREAD**spread
        y = X * size
        for errors, grid in ((own, channel_grid(*extremes(y), 4)), (shared, channel_grid(y.min(), y.max(), 4))):
            errors.append(((grid.round(y) - y) / size).norm().item())
    assert max(own) < 1.01 * min(own)
    assert all(b > 1.2 * a for a, b in pairwise(shared)) and shared[-1] > 5 * own[-1]


@pytest.mark.paper("S289")
def test_clipped_channels_fold_as_well():
    norm, linear = pair()
    linear.requires_grad_(False)
    y = norm(X)
    own = channel_grid(*fit_clip(y, 2), 2)
    folded, reader, one = to_layer_wise(norm, linear, own)
    assert one.encode(folded(X)).equal(own.encode(y))
    ours = through(reader, one, folded(X))
    checks.equal(ours, through(linear, own, y), 1e-12)
    assert (ours - linear(y)).norm() < 0.8 * (through(linear, channel_grid(*extremes(y), 2), y) - linear(y)).norm()


@pytest.mark.parametrize("channel", ["zero", "constant"])
def test_an_idle_channel_is_no_trouble(channel):
    norm, linear = pair()
    norm.weight.data[3], norm.bias.data[3] = 0, 0 if channel == "zero" else -2.5
    low, high = extremes(norm(X))
    own = channel_grid(low, high, 4)
    folded, reader, one = to_layer_wise(norm, linear, own)
    checks.equal(reader(folded(X)), linear(norm(X)), 1e-12)
    assert one.encode(folded(X)).equal(own.encode(norm(X)))
    checks.equal(own.round(norm(X))[..., 3], norm(X)[..., 3], 1e-12)
    for centre in (False, True):
        folded, reader = smooth(norm, linear, low, high, 0.5, centre)
        checks.equal(reader(folded(X)), linear(norm(X)), 1e-12)
    linear.weight.data[:, 3] = 0
    folded, reader = smooth(norm, linear, low, high)
    checks.equal(reader(folded(X)), linear(norm(X)), 1e-12)


def test_smoothing_shares_the_outliers_between_activations_and_weights():
    norm, linear = pair()
    y = norm(X)
    low, high = extremes(y)

    def reach(alpha: float):
        folded, reader = smooth(norm, linear, low, high, alpha)
        return folded(X).abs().flatten(0, -2).amax(dim=0), reader.weight.abs().amax(dim=0)

    checks.equal(reach(0)[1], torch.ones(DIM), 1e-12)
    checks.equal(reach(1)[0], torch.ones(DIM), 1e-12)
    activations, weights = reach(0.5)
    checks.equal(activations, weights, 1e-12)
    checks.equal(activations, (y.abs().flatten(0, -2).amax(dim=0) * linear.weight.abs().amax(dim=0)).sqrt(), 1e-12)
    assert activations.max() / activations.min() < 0.3 * y.abs().flatten(0, -2).amax(dim=0).max()


@pytest.mark.paper("S070")
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_centred_channels_reach_as_far_down_as_up(alpha):
    norm, linear = pair()
    low, high = extremes(norm(X))
    assert ((low + high).abs() > 0.5).any()
    new_low, new_high = extremes(smooth(norm, linear, low, high, alpha, centre=True)[0](X))
    checks.equal(new_high, -new_low, 1e-10)
    new_low, new_high = extremes(smooth(norm, linear, low, high, alpha)[0](X))
    assert ((new_high + new_low).abs() > 0.1).any()


@pytest.mark.paper("S070")
def test_without_a_shift_centring_is_plain_smoothing():
    norm, linear = pair()
    reach = normal(DIM).abs() + 0.1
    plain, centred = (smooth(norm, linear, -reach, reach, 0.4, centre) for centre in (False, True))
    for ours, theirs in zip(centred, plain, strict=True):
        checks.equal([*ours.parameters()], [*theirs.parameters()], 1e-13)


@pytest.mark.paper("S070")
def test_centring_saves_levels_of_a_symmetric_grid():
    norm, linear = pair()
    norm.bias.data.add_(4 * SPREAD)
    low, high = extremes(norm(X))
    errors = []
    for centre in (False, True):
        folded, reader = smooth(norm, linear, low, high, 1.0, centre)
        y, step = folded(X), folded(X).abs().max() / 7
        errors.append((reader((y / step).round() * step) - linear(norm(X))).norm())
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.paper("S243")
def test_the_mean_of_the_keys_does_not_matter():
    q, k = normal(2, 3, 9, 8), normal(2, 3, 9, 8) + 5 * normal(8)
    bias = normal(9)
    for extra in (0, bias):
        ours, plain = (q @ keys.transpose(-2, -1) + extra for keys in (centre_keys(k), k))
        checks.equal(ours.softmax(dim=-1), plain.softmax(dim=-1), 1e-12)
    checks.equal(centre_keys(k).mean(dim=-2), torch.zeros(2, 3, 8), 1e-14)
    attention = randomized(Attention(24, 3))
    plain = attention(X)
    attention.qkv.bias.data[24:48] = 0
    checks.equal(attention(X), plain, 1e-12)


def test_precisions():
    norm, linear = (part.float() for part in pair())
    low, high = extremes(norm(X.float()))
    new_norm, new_linear = to_layer_wise(norm, linear, channel_grid(low, high, 4))[:2]
    checks.equal(new_linear(new_norm(X.float())), linear(norm(X.float())), 1e-4)
    assert new_linear.weight.dtype == torch.float32 and new_norm.eps == norm.eps


def test_what_cannot_be_folded_is_a_sentence():
    norm, linear = pair()
    ones, zeros = torch.ones(DIM), torch.zeros(DIM)
    for call, sentence in (
        (lambda: fold(nn.RMSNorm(DIM), linear, ones), "this norm is RMSNorm"),
        (lambda: fold(nn.LayerNorm(DIM + 1), linear, ones), r"the layer reads 24; expected \(24,\)"),
        (lambda: fold(norm, linear, torch.ones(3)), r"scale has shape \(3,\)"),
        (lambda: fold(norm, linear, ones, torch.ones(3)), r"shift has shape \(3,\)"),
        (lambda: fold(norm, linear, zeros), "zero, negative or not finite"),
        (lambda: fold(norm, linear, ones * torch.nan), "zero, negative or not finite"),
        (lambda: fold(norm, linear, ones.double() * 1e-308), "not finite"),
        (lambda: to_layer_wise(norm, linear, Uniform(ones, ones / 2, 4)), "not a whole number"),
        (lambda: to_layer_wise(norm, linear, Uniform(ones[:0], zeros[:0], 4)), "expected one of each per channel"),
        (lambda: to_layer_wise(norm, linear, Uniform(ones, zeros[:3], 4)), "expected one of each per channel"),
        (lambda: channel_grid(ones, zeros, 4), "low <= high"),
        (lambda: channel_grid(ones * torch.nan, ones, 4), "NaN"),
        (lambda: smooth(norm, linear, -ones, ones, 1.5), "alpha=1.5 is outside"),
        (lambda: smooth(norm, linear, ones, -ones), "low end is above"),
    ):
        with pytest.raises(LabkitError, match=sentence):
            call()
