"""Training with 4-bit integers: the split is exact, the sampling unbiased, the step's gradient the true one."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from labkit.errors import LabkitError
from labkit.quant.int4_training import (
    bit_split,
    hadamard_int4_linear,
    int4_weight_gradient,
    keep_probabilities,
    learned_step,
    leverage,
    round_by_chance,
    sampled_product,
)
from labkit.quant.rotation import rotate
from tests import checks
from tests.weights import normal

A, B = normal(8, 3) * torch.logspace(-1, 1, 8, dtype=torch.float64)[:, None], normal(2, 8, 5)[1]


def step(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


@pytest.mark.paper("S282")
def test_two_halves_are_the_whole():
    """For all codes whose high half is a 4-bit integer: from 120 on it would be +8, so those are refused."""
    codes = torch.arange(-128, 120)
    for dtype in (torch.int8, torch.int32, torch.float64):
        high, low = bit_split(codes.to(dtype))
        assert (16 * high + low).equal(codes.to(dtype)) and high.dtype == dtype
        for half in (high, low):
            assert half.min() == -8 and half.max() == 7 and half.equal(half.round())
    assert bit_split(codes[:0])[0].shape == (0,)
    for code in (120, -129):
        with pytest.raises(LabkitError, match="do not split into two 4-bit halves"):
            bit_split(torch.tensor([0, code]))
    assert (120 + 8) // 16 == 8


@pytest.mark.paper("S282")
def test_the_mean_over_all_masks_is_the_product_and_the_variance_is_less_than_of_even_chances():
    """Not drawn: each of the 2⁸ masks with its own probability. Then also drawn, over seeds."""
    variances = []
    for scores in (leverage(A, B), torch.ones(8, dtype=torch.float64)):
        p = keep_probabilities(scores, 3)
        mean, second = torch.zeros(3, 5, dtype=torch.float64), 0.0
        for mask in product([False, True], repeat=8):
            drawn = torch.tensor(mask)
            chance = torch.where(drawn, p, 1 - p).prod()
            estimate = sampled_product(A, B, p, drawn)
            mean, second = mean + chance * estimate, second + chance * (estimate - A.T @ B).square().sum()
        checks.equal(mean, A.T @ B, 1e-12)
        checks.equal(second, ((1 - p) / p * leverage(A, B).square()).sum(), 1e-10)
        variances.append(second.item())
    assert variances[0] < 0.2 * variances[1]
    draw = torch.Generator().manual_seed(0)
    p = keep_probabilities(leverage(A, B), 3)
    estimates = torch.stack([sampled_product(A, B, p, torch.rand(8, generator=draw) < p) for _ in range(4000)])
    error = (estimates.mean(dim=0) - A.T @ B).norm().item()
    assert error < 3 * math.sqrt(variances[0] / 4000)


@pytest.mark.paper("S282")
def test_no_other_probabilities_of_the_same_sum_have_a_lower_variance():
    score = leverage(A, B)
    best = keep_probabilities(score, 3)

    def variance(p):
        return ((1 - p) / p * score.square()).sum()

    for seed in range(50):
        noise = torch.rand(8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5
        other = keep_probabilities(best * (1 + noise / 2), 3)
        assert variance(other) >= variance(best) - 1e-12


@pytest.mark.paper("S282")
@pytest.mark.parametrize("kept", [0.5, 1, 2.5, 5, 7.9, 8, 20])
def test_probabilities_are_in_proportion_none_above_one_and_sum_to_what_is_kept(kept):
    score = leverage(A, B)
    p = keep_probabilities(score, kept)
    assert p.max() <= 1 and p.sum().item() == pytest.approx(min(kept, 8))
    below = p < 1
    ratio = p[below] / score[below]
    assert not below.any() or (ratio.max() - ratio.min()) < 1e-12 * ratio.max()
    assert not (~below).any() or not below.any() or score[~below].min() >= score[below].max()


@pytest.mark.paper("S282")
def test_all_rows_are_the_exact_product_and_rows_of_zeros_are_not_asked_for():
    for kept in (8, 100):
        p = keep_probabilities(leverage(A, B), kept)
        checks.equal(sampled_product(A, B, p, torch.rand(8) < p), A.T @ B, 1e-12)
    a = A.clone()
    a[2] = 0
    p = keep_probabilities(leverage(a, B), 7)
    assert p[2] == 0 and p.sum() == 7
    checks.equal(sampled_product(a, B, p, p > 0), a.T @ B, 1e-12)
    assert not keep_probabilities(torch.zeros(4), 2).any()
    assert keep_probabilities(torch.tensor([1e20, 1e20, 1e-5]), 2)[:2].tolist() == [1, 1]


@pytest.mark.paper("S282")
def test_the_gradient_of_the_weight_is_unbiased():
    gradient, x = normal(40, 6), normal(2, 40, 5)[1]
    exact, draw = gradient.T @ x, torch.Generator().manual_seed(0)
    few = torch.stack([int4_weight_gradient(gradient, x, 40, draw) for _ in range(1500)])
    spread = (few - exact).square().sum(dim=(1, 2)).mean().sqrt()
    assert (few.mean(dim=0) - exact).norm() < 3 * spread / math.sqrt(1500) and spread < exact.norm()
    every = int4_weight_gradient(gradient, x, 80, draw)
    assert 0 < (every - exact).norm() < 0.02 * exact.norm()  # what is left is 8-bit rounding
    assert not int4_weight_gradient(0 * gradient, x, 40, draw).any()
    assert not int4_weight_gradient(gradient[:0], x[:0], 40, draw).any()


@pytest.mark.paper("S282")
def test_chance_rounds_to_a_neighbour_and_on_average_not_at_all():
    x = torch.tensor([-1.75, -1.0, 0.0, 0.3, 2.5], dtype=torch.float64)
    drawn = round_by_chance(x.repeat(20000, 1), torch.Generator().manual_seed(0))
    assert ((drawn == x.floor()) | (drawn == x.ceil())).all()
    checks.equal(drawn.mean(dim=0), x, 0.015)


@pytest.mark.paper("S282")
@pytest.mark.parametrize("value", [0.05, 0.3, 2.0])
def test_the_gradient_of_the_step_is_the_finite_difference(value):
    """With what each value rounds off, in steps, held fixed: rounding itself has no useful derivative."""
    x, outer, size = normal(300).requires_grad_(), normal(2, 300)[1], step(value)
    (learned_step(x, size) * outer).sum().backward()

    ratio = x.detach() / value

    def frozen(s: float) -> float:
        return (torch.where(inside, x.detach() / s + ratio.round() - ratio, ends) * s * outer).sum().item()

    inside, ends = (ratio >= -8) & (ratio <= 7), ratio.clamp(-8, 7)
    difference = (frozen(value * (1 + 1e-6)) - frozen(value * (1 - 1e-6))) / (2e-6 * value)
    assert size.grad.item() == pytest.approx(difference, rel=1e-6, abs=1e-6)
    checks.equal(x.grad, outer * inside)
    assert inside.all() == (value > 1)


@pytest.mark.paper("S282")
def test_the_gradient_of_the_step_is_that_of_the_law_step_squared_by_twelve():
    """For values spread evenly over many steps the error is s²/12, and its slope s/6 is what the step receives."""
    x, size = torch.linspace(-1, 1, 200001, dtype=torch.float64), step(0.05)
    loss = (learned_step(x, size, bits=8) - x).square().mean()
    loss.backward()
    assert loss.item() == pytest.approx(0.05**2 / 12, rel=0.02) and size.grad.item() == pytest.approx(
        0.05 / 6, rel=0.02
    )


@pytest.mark.paper("S282")
def test_learning_finds_a_better_step():
    x, size = normal(2000), step(1.0)
    errors = []
    for _ in range(100):
        loss = (learned_step(x, size) - x).square().mean()
        errors.append(loss.item())
        size.data -= 0.2 * torch.autograd.grad(loss, size)[0]
    best = min((learned_step(x, step(s / 100)) - x).square().mean().item() for s in range(10, 100))
    assert errors[-1] < 0.4 * errors[0] and errors[-1] < 1.1 * best


@pytest.mark.paper("S282")
@pytest.mark.parametrize("n", [16, 24, 64])
def test_the_layer_is_the_float_one_at_many_bits_and_rotation_helps_at_few(n):
    x, weight = normal(9, n), normal(2, 7, n)[1]
    fine = hadamard_int4_linear(x, weight, step(1e-6), step(1e-6), bits=24)
    checks.equal(fine, F.linear(x, weight), 3e-5)
    x[:, 3] += 30

    def fitted(y):
        return step(y.abs().max().item() / 7)

    turned = hadamard_int4_linear(x, weight, fitted(rotate(x)), fitted(rotate(weight)))
    plain = F.linear(learned_step(x, fitted(x)), learned_step(weight, fitted(weight)))
    assert (turned - F.linear(x, weight)).norm() < (plain - F.linear(x, weight)).norm()


@pytest.mark.paper("S282")
def test_the_layer_learns():
    x, target = normal(64, 16), normal(2, 64, 4)[1]
    weight, sizes = torch.zeros(4, 16, dtype=torch.float64).requires_grad_(), [step(0.3), step(0.05)]
    optimizer = torch.optim.Adam([weight, *sizes], lr=0.02)
    losses = []
    for _ in range(150):
        loss = F.mse_loss(hadamard_int4_linear(x, weight, *sizes), target)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    floor = (x @ torch.linalg.lstsq(x, target).solution - target).square().mean().item()
    assert floor < losses[-1] < floor + 0.3 * (losses[0] - floor)
    assert all(s.grad.isfinite() and s.grad != 0 for s in sizes)


def test_sentences():
    for call, sentence in (
        (lambda: learned_step(A, torch.tensor(0.0)), "not one positive number"),
        (lambda: learned_step(A, torch.tensor(math.nan)), "not one positive number"),
        (lambda: learned_step(A, torch.ones(3)), "not one positive number"),
        (lambda: keep_probabilities(torch.ones(4), 0), "kept=0 rows of 4"),
        (lambda: keep_probabilities(torch.tensor([1.0, math.nan]), 1), "negative or not finite"),
    ):
        with pytest.raises(LabkitError, match=sentence):
            call()
