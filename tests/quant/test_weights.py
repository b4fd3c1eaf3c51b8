"""GPTQ against its definition, one weight at a time; the limits in which it is rounding to nearest; and the grids."""

from __future__ import annotations

import pytest
import torch

from labkit.errors import LabkitError
from labkit.quant.weights import gptq, inverse_factor, layer_hessian, output_error, round_to_nearest, weight_grid
from tests import checks
from tests.weights import normal

D, OUT = 24, 10
NUMBERS = normal(OUT + 200 + D, D)
WEIGHT = NUMBERS[:OUT]
INPUTS = NUMBERS[OUT : OUT + 200] / torch.arange(1, D + 1) @ NUMBERS[-D:]  # correlated: a few directions hold most
HESSIAN = layer_hessian(INPUTS)


@pytest.mark.paper("S254")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("per", ["tensor", "channel", 8])
def test_where_inputs_are_uncorrelated_it_is_rounding_to_nearest(per, dtype):
    weight, diagonal = WEIGHT.to(dtype), torch.linspace(0.1, 9, D).diag()
    rounded, error = gptq(weight, diagonal, weight_grid(weight, 3, per), block=7)
    checks.equal(rounded, round_to_nearest(weight, 3, per))
    checks.equal(
        gptq(weight, diagonal, weight_grid(weight, 3, per), block=7, damp=0.0)[1],
        output_error(weight, rounded, diagonal),
        1e-12,
    )
    assert error.shape == (OUT,)


@pytest.mark.paper("S254")
@pytest.mark.parametrize("block", [1, 5, 8, 100])
def test_lazy_blocks_are_the_loop_over_single_columns(block):
    grid = weight_grid(WEIGHT, 3)
    once, error = gptq(WEIGHT, HESSIAN, grid, block=D)
    rounded, in_blocks = gptq(WEIGHT, HESSIAN, grid, block=block)
    checks.equal(rounded, once)
    checks.equal(in_blocks, error, 1e-9)


@pytest.mark.paper("S254")
def test_it_is_the_explicit_inverse_with_each_used_input_taken_out():
    """Optimal Brain Quantization in a fixed order: round, spread over H⁻¹'s row, eliminate the input from H⁻¹."""
    grid = weight_grid(WEIGHT, 3)
    left, inverse = WEIGHT.clone(), HESSIAN.inverse()
    expected, error = torch.empty_like(WEIGHT), torch.zeros(OUT, dtype=torch.float64)
    for i in range(D):
        expected[:, i] = grid.round(left)[:, i]
        off = left[:, i] - expected[:, i]
        error += off.square() / inverse[i, i]
        left -= off[:, None] * inverse[i] / inverse[i, i]
        inverse = inverse - torch.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    rounded, predicted = gptq(WEIGHT, HESSIAN, grid, damp=0.0)
    checks.equal(rounded, expected)
    checks.equal(predicted, error, 1e-9)
    assert (rounded != grid.round(WEIGHT)).any()


@pytest.mark.paper("S254")
def test_the_sum_of_shares_is_the_error_of_the_output():
    rounded, error = gptq(WEIGHT, HESSIAN, weight_grid(WEIGHT, 3), damp=0.0, block=5)
    direct = ((WEIGHT - rounded) @ INPUTS.mT).square().sum(dim=1)
    checks.equal(error, direct, 1e-9 * direct.max().item())
    checks.equal(output_error(WEIGHT, rounded, HESSIAN), direct, 1e-9 * direct.max().item())


@pytest.mark.paper("S254")
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_far_lower_error_than_rounding_to_nearest_where_inputs_are_correlated(bits):
    grid = weight_grid(WEIGHT, bits)
    nearest = output_error(WEIGHT, grid.round(WEIGHT), HESSIAN).sum()
    ours = output_error(WEIGHT, gptq(WEIGHT, HESSIAN, grid)[0], HESSIAN).sum()
    assert ours < 0.5 * nearest


@pytest.mark.paper("S254")
@pytest.mark.parametrize("per", ["tensor", "channel", 6])
def test_what_is_on_the_grid_stays(per):
    grid = weight_grid(WEIGHT, 3, per)
    once = gptq(WEIGHT, HESSIAN, grid)[0]
    again, error = gptq(once, HESSIAN, grid)
    checks.equal(again, once)
    assert not error.any()
    checks.equal(grid.round(once), once)
    nearest = round_to_nearest(WEIGHT, 3, per)  # here also where the grid is read from the rounded weight
    checks.equal(gptq(nearest, HESSIAN, weight_grid(nearest, 3, per))[0], nearest, 1e-12)


def test_the_weight_that_is_passed_in_is_left_alone():
    weight = WEIGHT.clone()
    gptq(weight, HESSIAN, weight_grid(weight, 3))
    checks.equal(weight, WEIGHT)


def test_many_bits_are_the_weight():
    for rounded in (round_to_nearest(WEIGHT, 16), gptq(WEIGHT, HESSIAN, weight_grid(WEIGHT, 16))[0]):
        checks.equal(rounded, WEIGHT, 3e-4)


def test_inputs_that_are_dead_or_depend_on_each_other_need_no_special_care_when_damped():
    inputs = INPUTS.clone()
    inputs[:, 3] = 0
    inputs[:, 5] = inputs[:, 4] + inputs[:, 6]
    grid, hessian = weight_grid(WEIGHT, 3), layer_hessian(inputs)
    rounded = gptq(WEIGHT, hessian, grid)[0]
    checks.equal(rounded[:, 3], grid.round(WEIGHT)[:, 3])
    assert output_error(WEIGHT, rounded, hessian).sum() < output_error(WEIGHT, grid.round(WEIGHT), hessian).sum()
    checks.equal(gptq(WEIGHT, torch.zeros(D, D), grid)[0], grid.round(WEIGHT))
    with pytest.raises(LabkitError, match=r"With damp=0\.0 the Hessian is singular"):
        gptq(WEIGHT, layer_hessian(INPUTS[:4]), grid, damp=0.0)


def test_the_factor_is_that_of_the_damped_inverse():
    factor = inverse_factor(HESSIAN, 0.05)
    damped = HESSIAN + 0.05 * HESSIAN.diagonal().mean() * torch.eye(D)
    checks.equal(factor.mT @ factor @ damped, torch.eye(D), 1e-7)
    checks.equal(factor, factor.triu())


def test_the_hessian_adds_up_over_batches_and_places():
    checks.equal(layer_hessian(iter(INPUTS.reshape(4, 50, D))), INPUTS.mT @ INPUTS, 1e-9)
    checks.equal(layer_hessian(INPUTS.reshape(4, 2, 25, D)), HESSIAN, 1e-9)
    assert layer_hessian(INPUTS.bfloat16()).dtype == torch.float64


def test_finer_grids_never_have_a_longer_step_and_a_convolution_has_channels_too():
    tensor, channel, group = (weight_grid(WEIGHT, 4, per).scale.expand_as(WEIGHT) for per in ("tensor", "channel", 6))
    assert (group <= channel).all() and (channel <= tensor).all() and (group < channel).any()
    kernel = normal(5, 3, 4, 4)
    checks.equal(round_to_nearest(kernel, 4), round_to_nearest(kernel.flatten(1), 4).reshape(kernel.shape))
    for per in ("tensor", "channel", 6):
        off = (round_to_nearest(WEIGHT, 4, per) - WEIGHT).abs()
        assert (off <= weight_grid(WEIGHT, 4, per).scale * 1.0001).all()  # the zero point's rounding may cost as much
        both = weight_grid(WEIGHT, 4, per, symmetric=True)
        assert (both.zero == 0).all()
        assert ((both.round(WEIGHT) - WEIGHT).abs() <= both.scale / 2 * 1.0001).all()


def test_what_does_not_fit_is_refused_in_a_sentence():
    grid = weight_grid(WEIGHT, 4)
    with pytest.raises(LabkitError, match="per=7 does not cut"):
        weight_grid(WEIGHT, 4, 7)
    with pytest.raises(LabkitError, match="per='row' does not cut"):
        weight_grid(WEIGHT, 4, "row")
    with pytest.raises(LabkitError, match="The weight is empty"):
        weight_grid(WEIGHT[:0], 4)
    with pytest.raises(LabkitError, match=r"do not fit; expected \(out, d\) and \(d, d\)"):
        gptq(WEIGHT, HESSIAN[:5, :5], grid)
    with pytest.raises(LabkitError, match="damp=-1 is negative"):
        gptq(WEIGHT, HESSIAN, grid, damp=-1)
    with pytest.raises(LabkitError, match="Hessian holds NaN"):
        gptq(WEIGHT, HESSIAN * torch.nan, grid)
    with pytest.raises(LabkitError, match="no inputs to learn the Hessian from"):
        layer_hessian([])
    with pytest.raises(LabkitError, match="NaN"):
        layer_hessian(INPUTS * torch.nan)
