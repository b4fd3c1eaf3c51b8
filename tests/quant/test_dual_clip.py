"""Two learned ends per channel: nothing happens at the extremes, and the ends' gradients are the true ones."""

from __future__ import annotations

import pytest
import torch

from labkit.errors import LabkitError
from labkit.quant.dual_clip import dual_clip, fit_clip, rounding_error
from labkit.quant.fold import channel_grid
from tests import checks
from tests.weights import normal

X = normal(200, 5) * torch.tensor([0.1, 1, 3, 10, 0.5], dtype=torch.float64) + torch.tensor([0.0, 2, 0, -40, 0])
LOW, HIGH = X.amin(dim=0), X.amax(dim=0)


@pytest.mark.paper("S289")
def test_at_the_extremes_clipping_does_nothing():
    assert dual_clip(X, LOW, HIGH).equal(X)
    assert not dual_clip(X, LOW, HIGH * 0.9).equal(X)


@pytest.mark.paper("S289")
def test_the_ends_receive_the_gradient_of_what_they_hold():
    low, high = (end.clone().requires_grad_() for end in (X.quantile(0.1, dim=0), X.quantile(0.8, dim=0)))
    x = X.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda *ends: dual_clip(X, *ends).square().sum(), (low, high))
    dual_clip(x, low, high).sum().backward()
    assert low.grad.tolist() == 5 * [20] and high.grad.tolist() == 5 * [40] and x.grad.sum() == 5 * 140


@pytest.mark.paper("S289")
def test_the_gradients_that_are_learned_from_are_those_of_the_error_with_the_rounding_as_given():
    """What each value rounds off, in steps, is held; then finite differences and the gradient agree."""
    bits, ends = 3, torch.stack([X.quantile(0.1, dim=0), X.quantile(0.9, dim=0)]).requires_grad_()
    ratio = dual_clip(X, *ends.detach()) / channel_grid(*ends.detach(), bits).scale
    rounded_off = ratio.round() - ratio

    def frozen(pair):
        step = (pair[1] - pair[0]) / (2**bits - 1)
        return ((dual_clip(X, *pair) + rounded_off * step - X).square().mean(dim=0)).sum()

    (ours,) = torch.autograd.grad(rounding_error(X, *ends, bits).sum(), ends)
    for place in ((0, 0), (1, 1), (0, 3), (1, 4)):
        nudge = torch.zeros_like(ends).index_put_(tuple(map(torch.tensor, place)), torch.tensor(1e-6).double())
        difference = (frozen(ends.detach() + nudge) - frozen(ends.detach() - nudge)) / 2e-6
        assert ours[place].item() == pytest.approx(difference.item(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_error_is_that_of_a_real_grid(bits):
    grid = channel_grid(LOW, HIGH, bits)
    values = grid.round(X)
    checks.equal(rounding_error(X, LOW, HIGH, bits), (values - X).square().mean(dim=0), 1e-12)
    inside = dual_clip(X, LOW + grid.scale, HIGH - grid.scale) == X
    assert ((values - X).abs() <= grid.scale / 2 * (1 + 1e-9))[inside].all()
    assert grid.round(values).equal(values) and grid.encode(X).min() == 0 and grid.encode(X).max() == 2**bits - 1


@pytest.mark.paper("S289")
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_learned_ends_never_err_more_than_the_extremes_and_few_bits_profit(bits):
    before, after = rounding_error(X, LOW, HIGH, bits), rounding_error(X, *fit_clip(X, bits), bits)
    assert (after <= before).all()
    if bits == 2:
        assert (after < 0.7 * before).all()


@pytest.mark.paper("S289")
def test_an_outlier_is_cut_off_on_its_own_side_and_in_its_own_channel():
    data = normal(3000, 3)
    x = data.clone()
    x[7, 1] = 14
    low, high = fit_clip(x, 4)
    assert high[1] < 6 and low[1] < -2
    checks.equal([low[::2], high[::2]], [end[::2] for end in fit_clip(data, 4)])
    extremes = x.amin(dim=0), x.amax(dim=0)
    assert rounding_error(x, low, high, 4)[1] < 0.7 * rounding_error(x, *extremes, 4)[1]
    assert rounding_error(data, low, high, 4)[1] < 0.3 * rounding_error(data, *extremes, 4)[1]


@pytest.mark.parametrize("value", [0.0, 5.0, -0.3])
def test_a_constant_channel_is_exact(value):
    x = torch.full((9, 2), value, dtype=torch.float64)
    low, high = fit_clip(x, 4)
    checks.equal(rounding_error(x, low, high, 4), torch.zeros(2))


def test_half_precision_is_fitted_in_single_and_bad_input_is_a_sentence():
    assert fit_clip(X.bfloat16(), 4)[0].dtype == torch.float32
    for x in (X[:0], X * torch.nan, X / 0):
        with pytest.raises(LabkitError, match="finite activations"):
            fit_clip(x, 4)
