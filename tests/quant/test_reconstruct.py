"""Importance against the Hessian itself, reconstruction that is never worse than none, and rounding that is learned."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from labkit.errors import LabkitError
from labkit.layers import MLP
from labkit.quant.grids import Uniform
from labkit.quant.reconstruct import (
    adaptive_rounding,
    average_importance,
    distance_to_teacher,
    perturbation_importance,
    reconstruct_mlp,
    weighted_error,
)
from labkit.quant.weights import gptq, layer_hessian, output_error, weight_grid
from tests import checks
from tests.weights import normal, randomized

Z = normal(3, 7)


def tail() -> nn.Module:
    return randomized(nn.Sequential(nn.Linear(7, 12), nn.GELU(), nn.Linear(12, 5)), std=0.5)


@pytest.mark.paper("S329")
def test_importance_is_the_row_sums_of_the_hessian():
    loss = distance_to_teacher(tail(), Z)
    for point in (Z, Z + 0.3 * normal(4, 3, 7)[3]):  # at the teacher and beside it
        exact = torch.autograd.functional.hvp(loss, point, torch.ones_like(point))[1]
        assert exact.abs().max() > 0.01
        checks.equal(perturbation_importance(loss, point), exact, 1e-8)
        checks.equal(perturbation_importance(loss, point, eps=1e-5), exact, 1e-8)


@pytest.mark.paper("S329")
def test_importance_is_the_diagonal_where_that_is_all_there_is():
    curvature = normal(4, 3, 7)[3].square() + 0.1
    h = perturbation_importance(lambda z: 0.5 * (curvature * z.square()).sum(), Z)
    checks.equal(h, curvature, 1e-9)


@pytest.mark.paper("S329")
def test_it_sees_what_the_squared_gradient_cannot_see_at_the_teacher():
    loss, z = distance_to_teacher(tail(), Z), Z.clone().requires_grad_()
    value = loss(z)
    (gradient,) = torch.autograd.grad(value, z)
    assert value.abs() < 1e-12 and gradient.square().max() < 1e-24
    assert perturbation_importance(loss, Z).abs().min() > 1e-6


@pytest.mark.paper("S329")
def test_a_perturbation_that_is_lost_in_float32_finds_nothing_and_the_default_is_not_lost():
    z = Z.float() + 40
    loss = lambda moved: (moved - 40).pow(4).sum()  # noqa: E731
    assert not perturbation_importance(loss, z, eps=1e-6).any()
    ratio = perturbation_importance(loss, z) / (12 * (z - 40).square())
    assert (ratio[(z - 40).abs() > 0.5] - 1).abs().max() < 0.3


@pytest.mark.paper("S329")
def test_the_average_has_mean_one_and_forgets_signs_and_images():
    h = normal(6, 9, 4)
    average = average_importance(h)
    assert average.shape == (1, 9, 4) and average.mean().item() == pytest.approx(1)
    checks.equal(average, average_importance(-3 * h), 1e-12)
    checks.equal(average / average[0, 0, 0], h.abs().mean(dim=0, keepdim=True) / h[:, 0, 0].abs().mean(), 1e-12)
    checks.equal(average_importance(torch.zeros(6, 9, 4)), torch.ones(1, 9, 4))


MODEL = randomized(MLP(16, 64), std=0.4)
CALIB = normal(24, 10, 16)


@pytest.mark.paper("S329")
def test_uniform_importance_is_the_plain_squared_error():
    out, target = normal(2, 8, 5)
    checks.equal(weighted_error(out, target, torch.ones(5)), weighted_error(out, target))
    checks.equal(weighted_error(out, target), (out - target).square().mean())
    plain, ones = (reconstruct_mlp(MODEL, CALIB, h, steps=20) for h in (None, torch.ones(1, 10, 16)))
    for a, b in zip(plain.parameters(), ones.parameters(), strict=True):
        checks.equal(a, b)


@pytest.mark.paper("S329")
def test_a_reconstructed_mlp_is_closer_than_the_bare_exchange_and_its_activations_are_not_negative():
    before = [p.clone() for p in MODEL.parameters()]
    relu = reconstruct_mlp(MODEL, CALIB, steps=300, lr=3e-3)
    swapped = reconstruct_mlp(MODEL, CALIB, steps=0)
    target = MODEL(CALIB)
    assert weighted_error(relu(CALIB), target) < 0.2 * weighted_error(swapped(CALIB), target)
    other = normal(48, 10, 16)[24:]
    assert weighted_error(relu(other), MODEL(other)) < 0.5 * weighted_error(swapped(other), MODEL(other))
    assert isinstance(relu.act, nn.ReLU) and isinstance(MODEL.act, nn.GELU)
    for p, q in zip(MODEL.parameters(), before, strict=True):
        checks.equal(p, q)

    gelu, hidden = MODEL.act(MODEL.fc1(CALIB)), relu.act(relu.fc1(CALIB))
    assert gelu.min() < -0.16 and hidden.min() == 0
    assert (Uniform.of(hidden.min(), hidden.max(), 4).zero == 0).all()  # all 16 codes stand for what there is
    assert Uniform.of(gelu.min(), gelu.max(), 8).zero > 0
    assert all(p.requires_grad and p.grad is None for p in relu.parameters())


@pytest.mark.paper("S329")
def test_important_outputs_come_out_better():
    """The same training, twice: for half of the outputs at a time, at the expense of the others."""
    first = (torch.arange(16) < 8).double() * 2
    a, b = (reconstruct_mlp(MODEL, CALIB, h, steps=150, lr=3e-3) for h in (first, 2 - first))
    target = MODEL(CALIB)
    assert weighted_error(a(CALIB), target, first) < 0.9 * weighted_error(b(CALIB), target, first)
    assert weighted_error(b(CALIB), target, 2 - first) < 0.9 * weighted_error(a(CALIB), target, 2 - first)


@pytest.mark.paper("S329")
def test_training_that_fails_gives_the_bare_exchange():
    wild = reconstruct_mlp(MODEL, CALIB, steps=5, lr=100.0)
    for a, b in zip(wild.parameters(), MODEL.parameters(), strict=True):
        checks.equal(a, b)
    assert isinstance(wild.act, nn.ReLU)


NUMBERS = normal(12 + 100 + 20, 20)
WEIGHT, INPUTS = NUMBERS[:12], NUMBERS[12:112] / torch.arange(1, 21).sqrt() @ NUMBERS[-20:]
HESSIAN = layer_hessian(INPUTS)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("per", ["channel", "tensor", 5])
def test_learned_rounding_is_never_worse_than_to_the_nearest_in_any_row(bits, per):
    grid = weight_grid(WEIGHT, bits, per)
    nearest = grid.round(WEIGHT)
    for steps in (0, 3, 150):
        learned = adaptive_rounding(WEIGHT, HESSIAN, grid, steps=steps)
        error = output_error(WEIGHT, learned, HESSIAN)
        assert (error <= output_error(WEIGHT, nearest, HESSIAN)).all()
        checks.equal(grid.round(learned), learned)
        assert ((learned - WEIGHT).abs() <= grid.scale * (1 + 1e-9)).all()  # one of the two levels beside it
    assert error.sum() < 0.6 * output_error(WEIGHT, nearest, HESSIAN).sum()
    checks.equal(error, ((WEIGHT - learned) @ INPUTS.mT).square().sum(dim=1), 1e-8)


def test_learned_rounding_is_near_the_best_of_all_choices():
    """Ten weights have 1024 roundings, up or down; the best is found by trying all, and learned to a few percent."""
    weight, hessian = WEIGHT[:, :10], layer_hessian(INPUTS[:, :10])
    grid = weight_grid(weight, 3)
    below = ((weight / grid.scale).floor() + grid.zero).clamp(*grid.ends)
    up = torch.tensor(list(itertools.product((0, 1), repeat=10)))
    every = grid.decode((below[None] + up[:, None]).clamp(*grid.ends))
    off = every - weight
    best = ((off @ hessian) * off).sum(dim=-1).amin(dim=0)
    nearest, learned = grid.round(weight), adaptive_rounding(weight, hessian, grid)
    mine = output_error(weight, learned, hessian)
    assert (mine >= best - 1e-9).all()
    assert mine.sum() < 1.1 * best.sum() < 0.6 * output_error(weight, nearest, hessian).sum()


def test_without_correlation_to_the_nearest_is_best_and_what_is_on_the_grid_stays():
    grid = weight_grid(WEIGHT, 3)
    nearest = grid.round(WEIGHT)
    checks.equal(adaptive_rounding(WEIGHT, torch.linspace(0.1, 5, 20).diag(), grid, steps=50), nearest)
    checks.equal(adaptive_rounding(nearest, HESSIAN, grid, steps=50), nearest)
    checks.equal(adaptive_rounding(WEIGHT, HESSIAN, weight_grid(WEIGHT, 16), steps=50), WEIGHT, 3e-4)
    half = adaptive_rounding(WEIGHT.bfloat16(), HESSIAN, weight_grid(WEIGHT, 4), steps=5)
    assert half.dtype == torch.bfloat16 and half.isfinite().all()


def test_learned_rounding_and_columns_that_repair_each_other_are_both_far_better():
    grid = weight_grid(WEIGHT, 3)
    rounded = (grid.round(WEIGHT), gptq(WEIGHT, HESSIAN, grid)[0], adaptive_rounding(WEIGHT, HESSIAN, grid))
    nearest, repaired, learned = (output_error(WEIGHT, r, HESSIAN).sum() for r in rounded)
    assert repaired < 0.6 * nearest and learned < 0.6 * nearest


def test_what_is_no_number_is_refused_in_a_sentence():
    with pytest.raises(LabkitError, match="no neighbourhood"):
        perturbation_importance(lambda z: z.sum(), Z * torch.nan)
    with pytest.raises(LabkitError, match="no inputs to rebuild"):
        reconstruct_mlp(MODEL, CALIB[:0])
    with pytest.raises(LabkitError, match="NaN"):
        adaptive_rounding(WEIGHT * torch.nan, HESSIAN, weight_grid(WEIGHT, 4))
