"""Rotations: exact in the product, their own inverse, and an outlier is shared by all channels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from labkit.errors import LabkitError
from labkit.quant.rotation import hadamard, hartley, rotate, rotate_inputs, walsh_hadamard
from tests import checks
from tests.weights import normal, randomized

POWERS = [1, 2, 8, 64, 256]
WIDTHS = [*POWERS, 3, 5, 12, 192, 197, 384, 768]


@pytest.mark.paper("S282")
@pytest.mark.parametrize("n", POWERS)
def test_the_fast_transform_is_the_dense_one(n):
    by_parity = torch.tensor([[(-1.0) ** (i & j).bit_count() for j in range(n)] for i in range(n)]).double()
    assert hadamard(n).equal(by_parity)
    assert (hadamard(n) @ hadamard(n).T).equal(n * torch.eye(n, dtype=torch.float64))
    whole = (normal(3, 4, n) * 100).round()
    assert walsh_hadamard(whole).equal(whole @ hadamard(n))
    checks.equal(walsh_hadamard(normal(3, 4, n)), normal(3, 4, n) @ hadamard(n), 1e-12)


@pytest.mark.paper("S282")
@pytest.mark.parametrize("n", WIDTHS)
def test_a_rotation_is_orthogonal_and_its_own_inverse(n):
    matrix = rotate(torch.eye(n, dtype=torch.float64))
    checks.equal(matrix @ matrix.T, torch.eye(n), 1e-12)
    checks.symmetric(matrix, 1e-13)
    checks.equal(rotate(rotate(normal(5, n))), normal(5, n), 1e-12)
    checks.equal(normal(5, n) @ matrix, rotate(normal(5, n)), 1e-12)
    if n in POWERS:
        checks.equal(matrix, hadamard(n) / math.sqrt(n), 1e-15)


@pytest.mark.paper("S282")
@pytest.mark.parametrize("n", WIDTHS)
def test_the_product_is_unchanged(n):
    x, weight = normal(4, n), normal(7, n).flip(0)
    checks.equal(rotate(x) @ rotate(weight).T, x @ weight.T, 1e-11)
    linear = randomized(nn.Linear(n, 7))
    before = linear.weight.clone()
    checks.equal(rotate_inputs(linear)(rotate(x)), linear(x), 1e-12)
    assert linear.weight.equal(before)


@pytest.mark.paper("S282")
def test_of_whole_numbers_the_product_is_unchanged_to_the_bit():
    """Where the root of n is a power of two, nothing is rounded at all."""
    for n in (4, 16, 64, 256):
        x, weight = (normal(4, n) * 50).round(), (normal(7, n) * 50).round()
        assert (rotate(x) @ rotate(weight).T).equal(x @ weight.T)


@pytest.mark.paper("S282")
@pytest.mark.parametrize("n", WIDTHS)
def test_a_single_outlier_is_shared_and_no_channel_exceeds_its_share_of_the_sum(n):
    """The bound |x|₁ / √n is of the Hadamard matrix; with an odd factor it is √2 times as much."""
    room = 1 if n in POWERS else math.sqrt(2)
    for place in {0, n // 3, n - 1}:
        alone = torch.zeros(n, dtype=torch.float64)
        alone[place] = -7
        largest = rotate(alone).abs().max().item()
        assert 7 / math.sqrt(n) - 1e-12 <= largest <= 7 * room / math.sqrt(n) + 1e-12
        if n in POWERS:
            checks.equal(rotate(alone).abs(), torch.full((n,), 7 / math.sqrt(n), dtype=torch.float64), 1e-14)
    x = normal(50, n) ** 3
    assert (rotate(x).abs().amax(dim=1) <= room * x.abs().sum(dim=1) / math.sqrt(n) + 1e-12).all()


@pytest.mark.paper("S282")
def test_equal_numbers_all_meet_in_one_channel():
    """The bound is reached: the worst input of a rotation is the one that was flat before."""
    for n in (64, 192):
        expected = torch.zeros(n, dtype=torch.float64)
        expected[0] = math.sqrt(n)
        checks.equal(rotate(torch.ones(n, dtype=torch.float64)), expected, 1e-12)


@pytest.mark.paper("S282")
@pytest.mark.parametrize("n", [64, 192])
def test_an_outlier_costs_a_grid_less_behind_a_rotation(n):
    x = normal(100, n)
    x[:, 5] += 40

    def rounded(y):
        step = y.abs().max() / 7
        return (y / step).round() * step

    plain, turned = (rounded(x) - x).norm(), (rotate(rounded(rotate(x))) - x).norm()
    assert turned < 0.5 * plain


@pytest.mark.parametrize("n", [1, 2, 3, 7, 12])
def test_the_odd_factor_is_turned_by_hartley(n):
    matrix = hartley(n)
    checks.equal(matrix @ matrix, n * torch.eye(n), 1e-12)
    assert matrix.abs().max() <= math.sqrt(2) + 1e-12


def test_gradients_precisions_and_sentences():
    assert torch.autograd.gradcheck(rotate, normal(2, 12).requires_grad_())
    checks.follows_dtype_and_device(rotate, normal(2, 3, 12))
    assert rotate(normal(0, 12)).shape == (0, 12) and rotate(normal(2, 8) * torch.nan).isnan().all()
    for n in (0, 3, 12):
        with pytest.raises(LabkitError, match=f"{n} is no power of two"):
            hadamard(n)
        with pytest.raises(LabkitError, match=f"{n} is no power of two"):
            walsh_hadamard(torch.zeros(2, n))
    with pytest.raises(LabkitError, match="at least one channel"):
        rotate(torch.zeros(2, 0))
