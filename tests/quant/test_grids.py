"""Grids: the same promises from every one, and what each of them promises alone."""

from __future__ import annotations

import pytest
import torch

from labkit.errors import LabkitError
from labkit.quant.blocks import quantize_blocks
from labkit.quant.grids import FSQ, Binary, Float8, Uniform, next_power_of_two
from labkit.quant.log_grids import AdaLog, ShiftedLog, log2_grid, log_sqrt2_grid
from labkit.quant.warped_grids import Tangent, Twin
from tests import checks
from tests.weights import normal

X = 3 * normal(4000)
SCALES = torch.tensor([[0.1], [1.7]])
GRIDS = {
    "affine": Uniform.of(-2.0, 5.0, 4),
    "one bit": Uniform.of(0.0, 5.0, 1),
    "symmetric": Uniform.of(-2.0, 5.0, 4, symmetric=True),
    "power of two": Uniform.of(-2.0, 5.0, 4, power_of_two=True),
    "16 bits": Uniform.of(-9.0, 9.0, 16),
    "per row": Uniform.of(-SCALES, 2 * SCALES, 3),
    "binary": Binary(torch.tensor(1.3)),
    "binary rows": Binary(SCALES),
    "e4m3": Float8("e4m3"),
    "e5m2": Float8("e5m2", SCALES),
    "log2": log2_grid(4),
    "log2, 8 bits": log2_grid(8),
    "log sqrt2": log_sqrt2_grid(3, SCALES),
    "adalog": AdaLog(5, 13, scale=torch.tensor(5.0)),
    "adalog table": AdaLog(4, 20, table_bits=5),
    "fine adalog": AdaLog(16, 1, 2048),
    "shifted": ShiftedLog.of(0.0, 1.0, 4, 2.0**-9),
    "shifted, coarse": ShiftedLog.of(0.0, 1.0, 3, 1e-6),
    "shifted rows": ShiftedLog.of(0 * SCALES, SCALES, 3, 1e-3),
    "tangent": Tangent(4, 1.2),
    "steep tangent": Tangent(8, 1.5, SCALES),
    "twin": Twin.of(0.0, 5.0, 4, 3),
    "signed twin": Twin.of(-0.17, 5.0, 4, 4),
    "twin rows": Twin.of(-0.2 * SCALES, 3 * SCALES, 8, 4),
}
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)


def points(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.cat([X, X / 1000, X.tanh(), torch.zeros(1, dtype=X.dtype)]).sort().values.to(dtype)


@every_grid
def test_rounding_is_monotone_and_idempotent_to_the_bit(grid):
    for dtype in (torch.float64, torch.float32):
        once = grid.round(points(dtype))
        assert once.dtype == dtype and (once.diff(dim=-1) >= 0).all()
        assert once.equal(grid.round(once))


@every_grid
def test_levels_rise_and_are_all_and_only_what_comes_out(grid):
    levels = grid.levels()
    assert (levels.diff(dim=0) >= 0).all() and levels.isfinite().all()
    assert grid.round(levels).equal(levels)
    rounded = grid.round(points(levels.dtype))
    for row in range(levels[0].numel()):
        out = rounded if rounded.ndim == 1 else rounded[row]
        assert torch.isin(out, levels.reshape(len(levels), -1)[:, row]).all()


@every_grid
def test_codes_are_integers_that_fit(grid):
    codes, levels = grid.encode(points()), grid.levels()
    assert codes.dtype == torch.int32
    assert codes.unique().numel() <= len(levels) <= 2**16
    assert codes.amax() - codes.amin() < len(levels)


@every_grid
def test_odd_input_is_exact_or_a_sentence(grid):
    assert grid.encode(torch.zeros(0)).numel() == 0
    with pytest.raises(LabkitError, match="holds NaN"):
        grid.encode(torch.tensor([1.0, torch.nan]))
    far = torch.tensor([-torch.inf, torch.inf])
    checks.equal(grid.round(far)[..., :1], grid.levels()[0].reshape(grid.round(far)[..., :1].shape))
    checks.equal(grid.round(far)[..., 1:], grid.levels()[-1].reshape(grid.round(far)[..., 1:].shape))
    assert grid.round(torch.zeros(3)).isfinite().all()
    if grid.levels().ndim == 1:  # many scales must lie where the numbers are; one may stay on the CPU
        checks.follows_dtype_and_device(grid.round, X[:50])


def test_half_precision_does_not_round_the_codes():
    """A bfloat16 counts to 256 only, codes to 2^16."""
    x = (3 * normal(2000)).bfloat16()
    grid = Uniform.of(-9.0, 9.0, 12)
    assert grid.encode(x).equal(grid.encode(x.float())) and grid.encode(x).unique().numel() > 300


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_uniform_error_is_at_most_half_a_step_on_the_whole_range(bits, symmetric, power_of_two):
    grid = Uniform.of(X.amin(), X.amax(), bits, symmetric, power_of_two)
    assert ((grid.round(X) - X).abs() <= grid.scale / 2 * (1 + 1e-9)).all()
    assert len(grid.levels()) == 2**bits - symmetric
    assert (grid.levels() == 0).any()  # zero itself is a level
    codes = grid.encode(X)
    assert grid.ends[0] <= codes.amin() and codes.amax() <= grid.ends[1]


def test_many_bits_are_the_float_numbers():
    grid = Uniform.of(X.amin(), X.amax(), 16)
    checks.equal(grid.round(X), X, float(X.amax() - X.amin()) / 2**16 / 2 * 1.0001)


def test_uniform_in_numbers():
    """Worked by hand: [-1, 2] in 2 bits has the step 1, so zero is code 1."""
    grid = Uniform.of(-1.0, 2.0, 2)
    assert grid.levels().tolist() == [-1, 0, 1, 2] and grid.zero == 1
    assert grid.encode(torch.tensor([-9.0, -0.6, 0.4, 0.6, 9.0])).tolist() == [0, 0, 1, 2, 3]
    assert Uniform.of(-1.0, 3.0, 3, symmetric=True).levels().tolist() == [-3, -2, -1, 0, 1, 2, 3]


def test_each_row_has_its_own_scale_and_a_group_too():
    rows = normal(6, 40) * torch.logspace(-2, 0, 6)[:, None]
    grid = Uniform.of(*torch.aminmax(rows, dim=1, keepdim=True), bits=4)
    alone = torch.stack([Uniform.of(row.amin(), row.amax(), 4).round(row) for row in rows])
    checks.equal(grid.round(rows), alone)
    assert grid.levels().shape == (16, 6, 1)
    groups = rows.reshape(6, 4, 10)
    grid = Uniform.of(*torch.aminmax(groups, dim=2, keepdim=True), bits=4)
    assert ((grid.round(groups) - groups).abs() <= grid.scale / 2 * (1 + 1e-9)).all()


@pytest.mark.parametrize("symmetric", [False, True])
def test_constants_zeros_and_extremes_are_finite(symmetric):
    for low, high in [(0.0, 0.0), (3.0, 3.0), (-3.0, -3.0), (-3e38, 3e38), (0.0, 1e-44)]:
        grid = Uniform.of(low, high, 4, symmetric)
        ends = torch.tensor([low, 0.0, high])
        assert ((grid.round(ends) - ends).abs() <= grid.scale / 2 * 1.00001).all() and grid.levels().isfinite().all()
    assert Uniform.of(3.0, 3.0, 4, symmetric).round(torch.tensor(3.0)) == 3


def test_a_power_of_two_is_the_next_one_up():
    scales = torch.tensor([0.3, 0.5, 0.500001, 1.0, 5.0, 2.0**-60])
    assert next_power_of_two(scales).tolist() == [0.5, 0.5, 1.0, 1.0, 8.0, 2.0**-60]


@pytest.mark.parametrize("dim", [None, 1])
def test_no_other_scale_of_two_levels_has_a_smaller_error(dim):
    x = normal(4, 50) * torch.tensor([[1.0], [2], [3], [4]])
    best = Binary.of(x, dim)
    error = (best.round(x) - x).square().sum()
    for factor in (0.9, 1.1):
        assert (Binary(best.scale * factor).round(x) - x).square().sum() > error
    assert best.round(x).sign().equal(x.sign()) and Binary.of(torch.zeros(3)).round(torch.zeros(3)).tolist() == [
        0,
        0,
        0,
    ]
    assert best.encode(torch.tensor(0.0)).eq(1).all()


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8])
def test_finite_scalars_reach_every_level_odd_or_even(count):
    grid = FSQ(count)
    levels = grid.levels()
    assert len(levels) == count and levels[0] == -1 and levels[-1] == 1
    checks.equal(levels, -levels.flip(0))  # symmetric, and evenly spaced:
    checks.equal(levels.diff(), torch.full((count - 1,), 2 / (count - 1)), 1e-7)
    x = 5 * X.sort().values
    assert grid.encode(x).unique().tolist() == list(range(count))
    assert ((grid.round(x) - x.tanh()).abs() <= 1 / (count - 1) + 1e-12).all()
    assert (grid.encode(x).diff() >= 0).all()
    inside = levels.clamp(-1 + 1e-9, 1 - 1e-9)
    assert grid.encode(inside.atanh()).tolist() == list(range(count))


def test_odd_finite_scalars_are_the_paper_s():
    """There: round(⌊L/2⌋ · tanh(z)) / ⌊L/2⌋."""
    checks.equal(FSQ(7).round(X), (3 * X.tanh()).round() / 3, 1e-15)


@pytest.mark.parametrize("kind, dtype", [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)])
def test_float8_is_the_cast_of_torch_bit_for_bit(kind, dtype):
    """On all bfloat16 numbers and the midpoints of the levels. What is too large becomes the largest.

    torch's own cast of too large numbers is the largest, infinity or NaN, depending on format and version.
    """
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    levels = Float8(kind).levels()
    middles = (levels[1:] + levels[:-1]) / 2
    nudged = [middles, middles.nextafter(levels[1:]), middles.nextafter(levels[:-1])]
    x = torch.cat([patterns[patterns.isfinite()].float(), *nudged, X.float(), levels])
    top = torch.finfo(dtype).max
    cast = x.clamp(-top, top).to(dtype)
    checks.equal(Float8(kind).round(x), cast.float())
    assert levels[-1] == top and levels.unique().equal(cast.float().unique())
    codes = Float8(kind).encode(x)
    assert codes.abs().equal((cast.view(torch.uint8) & 127).int())


def test_float8_takes_a_scale():
    checks.equal(Float8("e4m3", torch.tensor(0.25)).round(X), Float8("e4m3").round(4 * X) / 4)


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: Uniform.of(2.0, 1.0, 4), "low <= high"),
        (lambda: Uniform.of(0.0, torch.inf, 4), "finite ends"),
        (lambda: Uniform.of(0.0, torch.nan, 4), "holds NaN"),
        (lambda: Uniform.of(0.0, 1.0, 0), "from 1 to 16 bits, and bits=0"),
        (lambda: Uniform.of(0.0, 1.0, 17), "bits=17"),
        (lambda: Uniform.of(0.0, 1.0, 1, symmetric=True), "from 2 to 16"),
        (lambda: Uniform(torch.tensor(0.0), torch.tensor(0), 4), "positive and finite"),
        (lambda: Float8("e3m4"), 'no 8-bit float "e3m4"'),
        (lambda: FSQ(1), "count=1"),
        (lambda: quantize_blocks(X, bits=9), "from 2 to 8"),
    ],
)
def test_what_cannot_be_is_a_sentence(make, sentence):
    with pytest.raises(LabkitError, match=sentence):
        make()
