"""Logarithmic grids: what the levels are, how a shift and a table decode them, and what a search may promise."""

from __future__ import annotations

import pytest
import torch

from labkit.errors import LabkitError
from labkit.quant.grids import Uniform
from labkit.quant.log_grids import AdaLog, ShiftedLog, fit_ada_log, log2_grid, log_sqrt2_grid, sqrt2_to_log2
from tests import checks
from tests.weights import normal

ATTN = (2 * normal(6, 50, 50)).softmax(dim=-1)
ONE = torch.tensor(1.0, dtype=torch.float64)


def mse(grid, x: torch.Tensor = ATTN) -> float:
    return float((grid.round(x) - x).square().mean())


def spread(octaves: float) -> torch.Tensor:
    """Numbers from 1 down to 2^-octaves, evenly in the logarithm."""
    return torch.exp2(-torch.linspace(0, octaves, 20001, dtype=torch.float64))


@pytest.mark.paper("S041")
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("grid", [lambda b: log2_grid(b, ONE), lambda b: AdaLog(b, 37, 37, ONE)], ids=["log2", "q=r"])
def test_base_two_is_the_log2_quantizer(bits, grid):
    """Against the definition; the last of the 2^bits codes is zero, so that the codes fit in their bits.

    Published code decodes what overflows to 0 beside 2^bits levels: 17 values for 4 bits.
    """
    exponent = (-ATTN.log2()).round()
    expected = torch.where(exponent >= 2**bits - 1, 0, 0.5**exponent)
    checks.equal(grid(bits).round(ATTN), expected)
    assert expected.unique().numel() == len(grid(bits).levels()) == 2**bits


@pytest.mark.paper("S320", "S289")
def test_sqrt2_decodes_with_a_shift_and_the_parity():
    """2^(-k/2) = 2^-ceil(k/2) · (1 or √2), and these are the levels of the grid, to the last bit."""
    codes = torch.arange(2**8 - 1)
    shifts, factors = sqrt2_to_log2(codes)
    assert shifts.equal(torch.tensor([-(-k // 2) for k in range(2**8 - 1)]))
    assert set(factors.tolist()) == {1.0, 2.0**0.5} and (factors == 1).equal(codes % 2 == 0)
    direct = torch.tensor([2.0 ** (-k / 2) for k in range(2**8 - 1)], dtype=torch.float64)
    checks.equal(torch.exp2(-shifts.double()) * factors / direct, torch.ones(2**8 - 1), 3e-16)
    parity = 1 + (codes % 2).double() * (2**0.5 - 1)
    checks.equal(torch.exp2(-shifts.double()) * parity / direct, torch.ones(2**8 - 1), 3e-16)
    assert log_sqrt2_grid(8, ONE).decode(codes).equal(torch.exp2(-shifts.double()) * factors)


@pytest.mark.paper("S320", "S041")
@pytest.mark.parametrize("bits, q, r", [(4, 1, 1), (4, 1, 2), (4, 20, 37), (6, 7, 37), (3, 60, 37)])
def test_relative_error_is_at_most_root_of_the_base_less_one(bits, q, r):
    """For √2 that is 2^(1/4) - 1, under 19 %; it is reached, so no smaller bound holds."""
    base = 2 ** (q / r)
    x = spread((2**bits - 1.5) * q / r * (1 - 1e-12))
    error = (AdaLog(bits, q, r, ONE).round(x) / x - 1).abs()
    assert error.max() <= base**0.5 - 1 + 1e-12
    assert error.max() > (base**0.5 - 1) * 0.99
    below = x[-1] * torch.tensor([0.999, 0.5, 0.0])
    assert AdaLog(bits, q, r, ONE).encode(below).eq(2**bits - 1).all() and not AdaLog(bits, q, r).round(below).any()


@pytest.mark.paper("S041")
@pytest.mark.parametrize("q", [1, 13, 20, 37, 50])
def test_shift_and_table_are_the_power(q):
    codes = torch.arange(2**6 - 1)
    direct = torch.exp2(-codes.double() * q / 37)
    exact = AdaLog(6, q, 37, ONE).decode(codes)
    checks.equal(exact / direct, torch.ones(2**6 - 1), 1e-14)
    assert AdaLog(6, q, 37, ONE).table().numel() == 37


@pytest.mark.paper("S041")
@pytest.mark.parametrize("table_bits", [5, 8])
def test_a_rounded_table_is_within_half_its_last_place(table_bits):
    rounded, exact = AdaLog(4, 20, 37, ONE, table_bits), AdaLog(4, 20, 37, ONE)
    half = 2.0**-table_bits / 2
    gap = (rounded.table() - exact.table()).abs()
    assert half / 2 < gap.max() <= half
    assert (rounded.table() * 2**table_bits % 1 == 0).all()
    codes = torch.arange(15)
    shifts = codes * 20 // 37
    assert ((rounded.decode(codes) - exact.decode(codes)).abs() <= half * 0.5**shifts).all()


@pytest.mark.paper("S041")
def test_overflow_is_zero_and_the_scale_is_the_top():
    grid = AdaLog(3, 37, scale=torch.tensor([[0.5], [2.0]], dtype=torch.float64))
    out = grid.round(torch.tensor([0.0, 1e-30, 100.0, -0.2], dtype=torch.float64))
    assert out.tolist() == [[0, 0, 0.5, 0], [0, 0, 2.0, 0]]
    assert grid.encode(torch.zeros(1)).tolist() == [[7], [7]]


def test_a_base_near_one_and_many_bits_are_the_float_numbers():
    checks.equal(AdaLog(16, 1, 2048, ONE).round(ATTN) / ATTN, torch.ones(ATTN.shape), 2 ** (1 / 4096) - 1 + 1e-9)


def test_many_codes_are_looked_up_and_few_are_computed_alike():
    for bits, scale in ((3, ONE), (4, torch.tensor(0.3)), (8, torch.tensor(0.7, dtype=torch.float64))):
        grid = AdaLog(bits, 23, scale=scale)
        codes = torch.arange(2**bits, dtype=torch.int32).repeat(5, 1)
        checks.equal(grid.decode(codes), torch.stack([grid.decode(row) for row in codes]))


@pytest.mark.paper("S041")
def test_the_search_is_never_worse_than_log2_and_sqrt2():
    """√2 is 2^(q/r) with even r only; the paper's r = 37 has no such q, so r = 36 is searched here too."""
    scales = [0.25, float(ATTN.amax()), 1.0]
    for bits in (3, 4):
        found = fit_ada_log(ATTN, bits, [18, 36], scales, r=36, rounds=2)
        error = mse(found)
        for scale in scales:
            assert error <= mse(log2_grid(bits, torch.tensor(scale, dtype=torch.float64)))
            assert error <= mse(log_sqrt2_grid(bits, torch.tensor(scale, dtype=torch.float64)))
        assert error < mse(fit_ada_log(ATTN, bits, [18, 36], scales, r=36, rounds=0))  # finer is better
    best = min(([q, s] for q in (18, 36) for s in scales), key=lambda p: mse(AdaLog(4, p[0], 36, ONE * p[1])))
    coarse = fit_ada_log(ATTN, 4, [18, 36], scales, r=36, rounds=0)
    assert [coarse.q, float(coarse.scale)] == best


def test_the_search_finds_the_base_that_made_the_numbers():
    """Numbers that lie on a grid of 2^(11/37) and 0.7, from a start where neither is among the trials."""
    x = AdaLog(3, 11, 37, ONE * 0.7).levels()
    found = fit_ada_log(x, 3, [10, 16], [0.6, 0.8], rounds=8)
    assert found.q == 11 and float(found.scale) == pytest.approx(0.7, rel=1e-3)


@pytest.mark.paper("S028")
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_with_no_shift_and_whole_octaves_shifted_log_is_log2(bits):
    """The codes are those of log2. So are the values, but for the last code, that of 0: it is the smallest power.

    An eta of that power makes it 0 again: every value is then log2's less eta, but for the last.
    """
    smallest = 0.5 ** (2**bits - 1)
    grid = ShiftedLog.of(ONE * smallest, ONE, bits, 1e-300)
    codes, plain = grid.encode(ATTN), log2_grid(bits, ONE)
    assert grid.line.scale == 1 and grid.line.zero == 0
    assert codes.equal(plain.encode(ATTN))
    expected = torch.where(codes == 2**bits - 1, smallest, plain.decode(codes))
    checks.equal(grid.decode(codes), expected)
    shifted = ShiftedLog(Uniform(ONE, torch.tensor(0), bits), smallest)
    checks.equal(shifted.levels(), (plain.levels() - smallest).clamp(min=0))


@pytest.mark.paper("S028")
@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("eta", [0.1, 2.0**-9, 1e-4])
def test_shifted_levels_are_powers_of_two_less_eta_and_cover_the_range(bits, eta):
    low, high = ATTN.amin(), ATTN.amax()
    grid = ShiftedLog.of(low, high, bits, eta)
    power = (grid.levels() + eta).log2()
    checks.equal(power, power.round(), 1e-12)
    assert (grid.levels().diff() >= 0).all()
    assert grid.encode(high) == 0 and grid.encode(low) == 2**bits - 1
    line = -(ATTN + eta).log2()  # nobody inside is clipped: at most half a step from a code
    reached = grid.line.decode(grid.encode(ATTN))
    assert ((reached - line).abs() <= grid.line.scale / 2 + 1e-12).all()
    # The exponent is then rounded to a whole one, half an octave at most.
    octaves = ((grid.round(ATTN) + eta).log2() + line).abs()
    assert octaves.max() <= float(grid.line.scale) / 2 + 0.5 + 1e-9


@pytest.mark.paper("S028")
def test_a_shift_brings_what_log2_loses_into_the_range():
    """In 3 bits, log2 calls everything below 2^-6.5 zero; the shifted codes reach down to 0 and use all 8."""
    tiny = ATTN[ATTN < 2**-6.5]
    assert tiny.numel() > 0.5 * ATTN.numel() and not log2_grid(3).round(tiny).any()
    grid = ShiftedLog.of(0.0, float(ATTN.amax()), 3, 2.0**-7)
    assert grid.encode(ATTN).unique().numel() == 8 and grid.round(tiny).unique().numel() >= 2
    assert mse(grid, tiny) < mse(log2_grid(3, ONE), tiny) / 3


def test_a_range_of_one_number_is_finite():
    grid = ShiftedLog.of(0.25, 0.25, 4, 0.0)
    assert grid.round(torch.tensor(0.25)) == 0.25 and grid.levels().isfinite().all()


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: AdaLog(4, 0), "q=0, r=37"),
        (lambda: AdaLog(4, 1, table_bits=3), r"blurs levels that are 2\^\(1/37\) apart"),
        (lambda: AdaLog(4, 1, scale=torch.tensor(-1.0)), "positive and finite"),
        (lambda: AdaLog(17, 1), "bits=17"),
        (lambda: ShiftedLog.of(0.0, 1.0, 4, 0.0), "take a larger eta"),
        (lambda: fit_ada_log(torch.zeros(0), 4, [37], [1.0]), "nothing to fit"),
        (lambda: fit_ada_log(ATTN, 4, [], [1.0]), "nothing to fit"),
    ],
)
def test_what_cannot_be_is_a_sentence(make, sentence):
    with pytest.raises(LabkitError, match=sentence):
        make()
