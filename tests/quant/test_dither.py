"""Fixed noise: nothing changes without rounding, and with it the error is step²/12 wherever the value lies."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from labkit.errors import LabkitError
from labkit.quant.dither import NoisyLinear, absorb, best_width, draw_noise, expected_error
from labkit.quant.grids import Uniform
from tests import checks
from tests.weights import normal, randomized

X = normal(5, 20, 16)
STEP = 0.25
GRID = Uniform(torch.tensor(STEP, dtype=torch.float64), torch.tensor(128), 8)
PLACES = torch.linspace(-0.6, 0.6, 97, dtype=torch.float64)  # also on the grid and half-way


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def all_draws(width: float, draws: int = 4000) -> torch.Tensor:
    """Equally spaced noise in the place of random noise: means over it are exact but for 1/draws²."""
    return (torch.arange(draws, dtype=torch.float64) + 0.5) / draws * width - width / 2


@pytest.mark.paper("S084")
@pytest.mark.parametrize("bias", [True, False])
def test_without_rounding_the_layer_is_unchanged(bias):
    linear = randomized(nn.Linear(16, 6, bias=bias))
    before = [p.clone() for p in linear.parameters()]
    noise = draw_noise(16, STEP, seeded())
    checks.equal(NoisyLinear(linear, lambda x: x, noise)(X), linear(X), 1e-13)
    checks.equal(absorb(linear, noise)(X + noise), linear(X), 1e-6)  # the noise is float32 outside of the layer
    checks.equal([*linear.parameters()], before)
    fine = Uniform.of(X.min() - 1, X.max() + 1, 16)
    checks.equal(NoisyLinear(linear, fine.round, noise)(X), linear(X), 1e-3)


@pytest.mark.paper("S084")
def test_zero_noise_is_the_plain_rounded_layer():
    linear = randomized(nn.Linear(16, 6))
    noisy = NoisyLinear(linear, GRID.round, torch.zeros(16))
    assert noisy(X).equal(linear(GRID.round(X)))
    assert not NoisyLinear(linear, GRID.round, draw_noise(16, STEP, seeded()))(X).allclose(noisy(X), atol=1e-3)


@pytest.mark.paper("S084")
def test_with_noise_of_one_step_the_error_is_the_same_at_every_value():
    noise = all_draws(STEP)[:, None]
    errors = (GRID.round(PLACES + noise) - noise - PLACES).square().mean(dim=0)
    checks.equal(errors, torch.full((97,), STEP**2 / 12), 1e-8)
    checks.equal(expected_error(PLACES, STEP, STEP), torch.full((97,), STEP**2 / 12, dtype=torch.float64), 1e-15)


@pytest.mark.paper("S084")
def test_the_error_drops_exactly_where_a_value_is_far_from_the_grid():
    distance = (PLACES - GRID.round(PLACES)).abs()
    drops = expected_error(PLACES, STEP, STEP) < (GRID.round(PLACES) - PLACES).square()
    assert drops.equal(distance > STEP / (2 * math.sqrt(3))) and 0.3 < drops.double().mean() < 0.5


@pytest.mark.paper("S084")
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 1, 1.7, 3])
def test_the_expected_error_is_the_mean_over_all_draws(share):
    noise = all_draws(share * STEP)[:, None]
    errors = (GRID.round(PLACES + noise) - noise - PLACES).square().mean(dim=0)
    checks.equal(expected_error(PLACES, STEP, share * STEP), errors, 1e-7)


@pytest.mark.paper("S084")
def test_drawn_noise_lies_in_its_width_and_has_its_mean_error():
    noise = draw_noise(40000, STEP, seeded())
    assert noise.abs().max() <= STEP / 2 and noise.abs().max() > 0.49 * STEP and abs(noise.mean()) < 0.01 * STEP
    assert noise.equal(draw_noise(40000, STEP, seeded())) and not noise.equal(draw_noise(40000, STEP, seeded(1)))
    for x in (0.0, 0.1, 0.125):
        errors = (GRID.round(x + noise.double()) - noise.double() - x).square()
        assert errors.mean().item() == pytest.approx(STEP**2 / 12, rel=0.03)
    widths = torch.tensor([0.0, 1.0, 2.0])
    assert (draw_noise(3, widths, seeded()).abs() <= widths / 2).all()


@pytest.mark.paper("S084")
def test_the_data_say_whether_noise_helps():
    """Values half-way between levels need it, values on levels must not have it, and evenly spread ones do not care."""
    half_way, on_grid = GRID.round(X) + STEP / 2, GRID.round(X)
    assert best_width(half_way, STEP) == STEP and best_width(on_grid, STEP) == 0
    tails = normal(200, 16) ** 3 / 40  # most are near zero, which is a level
    assert best_width(tails, STEP) == 0
    even = torch.linspace(-1, 1, 8001, dtype=torch.float64)[:-1]
    for width in (0, STEP / 3, STEP):
        assert expected_error(even, STEP, width).mean().item() == pytest.approx(STEP**2 / 12, rel=1e-3)
    linear = randomized(nn.Linear(16, 6))
    for x, better in ((half_way + 0.01, True), (on_grid + 0.01, False)):
        noisy = NoisyLinear(linear, GRID.round, draw_noise(16, STEP, seeded()))
        errors = [(out - linear(x)).norm() for out in (noisy(x), linear(GRID.round(x)))]
        assert (errors[0] < errors[1]) == better


def test_precisions_and_sentences():
    linear = nn.Linear(16, 6)
    noisy = NoisyLinear(linear, lambda x: x, draw_noise(16, STEP, seeded()))
    checks.follows_dtype_and_device(noisy, X)
    checks.gradients_flow(noisy, X.float())
    assert noisy(torch.zeros(0, 16)).shape == (0, 6)
    with pytest.raises(LabkitError, match=r"Noise of shape \(3,\).* 16"):
        absorb(linear, torch.zeros(3))
    for step, width in ((0, 1), (1, -1)):
        with pytest.raises(LabkitError, match="width ≥ 0, step > 0"):
            expected_error(X, step, width)
