"""The tangent grid is dense near 1, a twin in its lower half; and the median is the scale that outliers cannot move."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from labkit.errors import LabkitError
from labkit.quant.grids import Uniform
from labkit.quant.log_grids import log2_grid
from labkit.quant.warped_grids import Tangent, Twin, fit_twin, median_scale
from tests import checks
from tests.weights import normal

ONE = torch.tensor(1.0, dtype=torch.float64)
ATTN = (2 * normal(6, 50, 50)).softmax(dim=-1)
SHARES = torch.linspace(0, 1, 20001, dtype=torch.float64)
warps = pytest.mark.parametrize("bits, a", [(2, 0.5), (3, 1.0), (4, 1.2), (4, 1.5), (8, 1.4)])


@warps
@pytest.mark.paper("S292")
def test_tangent_levels_reach_both_ends_and_crowd_towards_one(bits, a):
    """The opposite of log2, whose levels crowd towards 0."""
    levels = Tangent(bits, a, ONE).levels()
    steps = levels.diff()
    assert len(levels) == 2**bits and levels[0] == 0 and levels[-1] == 1
    assert (steps > 0).all() and (steps.diff() < 0).all()
    assert (log2_grid(bits, ONE).levels()[1:].diff().diff() > 0).all()
    assert Tangent(bits, a, 0.3 * ONE).levels()[-1] == 0.3
    ends = [Tangent(2, i / 100).levels()[[0, -1]].tolist() for i in range(151)]  # exact for every a, in float32 too
    assert all(end == [0, 1] for end in ends)


@warps
@pytest.mark.paper("S292")
def test_tangent_is_idempotent_and_errs_by_half_a_warped_step(bits, a):
    grid = Tangent(bits, a, ONE)
    rounded, levels = grid.round(SHARES), grid.levels()
    assert grid.round(rounded).equal(rounded)
    assert ((grid.warp(rounded) - grid.warp(SHARES)).abs() <= 0.5 / (2**bits - 1) + 1e-12).all()
    above = torch.searchsorted(levels, SHARES).clamp(1, 2**bits - 1)
    spacing = levels[above] - levels[above - 1]
    assert ((rounded - SHARES).abs() < spacing).all()


@pytest.mark.paper("S292")
def test_a_tangent_of_nothing_is_uniform():
    plain = Uniform.of(0.0 * ONE, ONE, 4)
    checks.equal(Tangent(4, 0.0, ONE).levels(), plain.levels(), 1e-15)
    checks.equal(Tangent(4, 1e-4, ONE).levels(), plain.levels(), 1e-8)
    gaps = [float((Tangent(4, a, ONE).levels() - plain.levels()).abs().max()) for a in (1.0, 0.1, 0.01)]
    assert gaps[0] > 50 * gaps[1] > 2500 * gaps[2]


@pytest.mark.paper("S292")
def test_which_shares_each_quantizer_keeps_well():
    """At the same bits the tangent is better above 1/2, the logarithm below 1/16."""
    for part, better, worse in [
        (SHARES[SHARES > 0.5], Tangent(4, 1.2, ONE), log2_grid(4, ONE)),
        (SHARES[SHARES < 1 / 16], log2_grid(4, ONE), Tangent(4, 1.2, ONE)),
    ]:
        assert (better.round(part) - part).abs().mean() < (worse.round(part) - part).abs().mean() / 2


@pytest.mark.paper("S292")
@pytest.mark.parametrize("count", [7, 8])
def test_the_median_is_nearest_to_all_and_no_outlier_moves_it(count):
    scales = normal(count).exp()
    middle = median_scale(scales)
    cost = (scales - middle).abs().sum()
    for other in torch.cat([scales, scales.mean()[None], torch.linspace(0, 5, 101, dtype=torch.float64)]):
        assert (scales - other).abs().sum() >= cost - 1e-12
    wild = torch.where(scales == scales.max(), 1e30, scales)
    assert median_scale(wild) == middle and wild.mean() > 1e20 * scales.mean()


twins = pytest.mark.parametrize("bits", [2, 3, 4, 8])
shifts = pytest.mark.parametrize("shift", [0, 1, 3, 7])


@twins
@shifts
@pytest.mark.parametrize("low", [0.0, -0.17])
def test_no_value_of_a_twin_has_two_codes_and_both_ends_are_held(bits, shift, low):
    grid = Twin.of(low * ONE, 4 * ONE, bits, shift)
    levels = grid.levels()
    assert len(levels) == 2**bits and (levels.diff() > 0).all()
    assert (levels == 0).sum() == 1
    assert levels[0] <= low + 1e-12 and levels[-1] >= 4 - 1e-12
    steps = levels.diff() / grid.scale
    half = 2 ** (bits - 1)
    seam = half - 1 if grid.signed else half
    checks.equal(steps[:seam], torch.ones(seam), 1e-9)
    checks.equal(steps[half:], torch.full((half - 1,), 2.0**shift), 1e-9)


@twins
@shifts
@pytest.mark.parametrize("low", [0.0, -0.17])
def test_a_twin_rounds_to_the_nearest_of_all_its_levels(bits, shift, low):
    grid = Twin.of(low * ONE, 4 * ONE, bits, shift)
    x = torch.linspace(low, 4, 5001, dtype=torch.float64)
    nearest = (x[:, None] - grid.levels()).abs().amin(dim=1)
    checks.equal((grid.round(x) - x).abs(), nearest, 1e-12)


@twins
def test_a_twin_with_equal_steps_is_uniform(bits):
    checks.equal(Twin.of(0 * ONE, 4 * ONE, bits, 0).round(ATTN), Uniform.of(0 * ONE, 4 * ONE, bits).round(ATTN), 1e-12)
    top = 2 ** (bits - 1)
    assert Twin.of(-ONE, ONE / 9, bits, 0).levels().mul(top).round().tolist() == list(range(-top, top))


def test_twins_decode_with_a_shift():
    """By hand, 3 bits: 0 1 2 3 and then 4 steps of 4 from 4 on; or -4 to -1, and 4 steps of 4 from 0 on."""
    assert Twin(3, 2, ONE).levels().tolist() == [0, 1, 2, 3, 4, 8, 12, 16]
    assert Twin(3, 2, ONE, signed=True).levels().tolist() == [-4, -3, -2, -1, 0, 4, 8, 12]


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
@pytest.mark.parametrize("x", [ATTN, F.gelu(2 * normal(4000)), torch.zeros(5), -ATTN], ids=["attn", "gelu", "0", "< 0"])
def test_a_fitted_twin_is_at_least_as_good_as_equal_steps(x, bits):
    error, plain = (
        float((twin.round(x) - x).square().mean()) for twin in (fit_twin(x, bits), fit_twin(x, bits, range(1)))
    )
    assert error <= plain
    if bits >= 6 and x.amin() >= 0 and x.any():
        assert error < plain / 2


def test_rows_of_attention_still_sum_to_one():
    """Published code adds the two ranges, each clipped at the split, so that small shares gain the split: rows then sum
    to more than 1, and wherever the split is, the error is over three times that of two ranges that exclude each other.
    """
    twin = fit_twin(ATTN, 8).round(ATTN)
    checks.equal(twin.sum(dim=-1), torch.ones(twin.shape[:-1]), 0.02)
    for split in [2.0**-k for k in range(2, 12)]:
        fine, coarse = Uniform.of(0 * ONE, ONE * split * 127 / 128, 7), Uniform.of(0 * ONE, ONE, 7)
        added = fine.round(ATTN.clamp(max=split)) + coarse.round(ATTN.clamp(min=split))
        assert added.sum(dim=-1).mean() > twin.sum(dim=-1).mean()
        assert (added - ATTN).norm() > 3 * (twin - ATTN).norm()


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: Tangent(4, 1.6), "a=1.6"),
        (lambda: Tangent(4, -0.1), "a=-0.1"),
        (lambda: Twin(4, 17, ONE), "shift=17"),
        (lambda: Twin.of(0.0, 1.0, 1, 0), "from 2 to 16"),
        (lambda: fit_twin(torch.zeros(0), 4), "nothing to fit"),
    ],
)
def test_what_cannot_be_is_a_sentence(make, sentence):
    with pytest.raises(LabkitError, match=sentence):
        make()
