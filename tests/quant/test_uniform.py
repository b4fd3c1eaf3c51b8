"""Uniform rounding: error at most half a step, zero exact, idempotent, and the float model at many bits."""

from __future__ import annotations

import pytest
import torch

from labkit import quant
from labkit.errors import LabkitError
from labkit.vit import ViT


@pytest.fixture
def x():
    return torch.randn(50, 40, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_error_is_at_most_half_a_step(x, bits):
    y = quant.round_to_grid(x, bits, x.min(), x.max())
    step = (x.max() - x.min()) / (2**bits - 1)
    # The zero point is rounded too, so one end of the range may lose up to half a step more.
    inside = (x > x.min() + step) & (x < x.max() - step)
    assert (y - x)[inside].abs().max() <= step / 2 * (1 + 1e-5)
    assert len(y.unique()) <= 2**bits


def test_rounding_is_idempotent_keeps_zero_and_clips(x):
    y = quant.round_to_grid(x, 4, x.min(), x.max())
    assert torch.allclose(quant.round_to_grid(y, 4, x.min(), x.max()), y, atol=1e-6)
    low, high = torch.tensor(0.5), torch.tensor(2.0)
    assert quant.round_to_grid(torch.zeros(1), 3, low, high).item() == 0
    assert quant.round_to_grid(torch.tensor([9.0]), 3, low, high).item() == pytest.approx(2.0)
    assert quant.round_to_grid(torch.zeros(4), 3, torch.tensor(0.0), torch.tensor(0.0)).abs().max() == 0


def test_at_many_bits_it_is_the_float_model():
    torch.manual_seed(0)
    model, images = ViT(32, 8, 5, dim=32, depth=2, heads=2).eval(), torch.rand(4, 3, 32, 32)
    errors = [
        (quant.simulate(model, b, b, calibration=images)(images) - model(images)).abs().max().item() for b in (4, 8, 16)
    ]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-4


def test_per_channel_never_has_a_longer_step(x):
    x = x * torch.logspace(-2, 0, 50)[:, None]
    layer = torch.nn.Linear(40, 50, bias=False)
    layer.weight.data.copy_(x)
    holder = torch.nn.Sequential(layer)
    errors = [(quant.simulate(holder, 3, per_channel=p)[0].weight - x).pow(2).mean() for p in (False, True)]
    assert errors[1] < errors[0] / 2


def test_the_model_itself_is_untouched_and_all_rows_are_rounded():
    torch.manual_seed(0)
    model, images = ViT(32, 8, 5, dim=32, depth=2, heads=2).eval(), torch.rand(4, 3, 32, 32)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    low = quant.simulate(model, 3, 3, calibration=images)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert low.last == "full"


def test_missing_calibration_is_a_sentence():
    with pytest.raises(LabkitError, match="calibration"):
        quant.simulate(ViT(32, 8, 5, dim=32, depth=1, heads=2), activations=4)
