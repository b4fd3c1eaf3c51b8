"""Calibration: each rule against its definition, what it never does, and data with nothing to calibrate on."""

from __future__ import annotations

import pytest
import torch

from labkit.errors import LabkitError
from labkit.quant import calibrate
from labkit.quant.calibrate import kl, min_max, moving_average, mse, percentile
from labkit.quant.grids import Uniform
from tests.weights import normal

RULES = [min_max, percentile, moving_average, mse, kl]
TAILED = normal(20000) / normal(5, 20000)[1:].square().mean(dim=0).sqrt()  # Student's t: a few are very large
DATA = {
    "normal": normal(20000),
    "tailed": TAILED,
    "gelu": torch.nn.functional.gelu(2 * normal(20000)),
    "attention": normal(100, 197).mul(3).softmax(dim=-1),
    "positive": normal(5000).abs() + 2,
    "few": normal(7),
}


def error(x: torch.Tensor, bits: int, low: torch.Tensor, high: torch.Tensor) -> float:
    return (Uniform.of(low, high, bits).round(x) - x).square().sum().item()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("x", DATA.values(), ids=DATA)
def test_every_range_holds_zero_and_lies_within_the_data(rule, x):
    for bits in (1, 4, 8, 16):
        low, high = rule(x, bits)
        assert low <= 0 <= high and low < high
        assert low >= min(x.min(), 0) and high <= max(x.max(), 0)


@pytest.mark.parametrize("rule", RULES)
def test_batches_are_as_good_as_one_tensor_and_halves_are_not_left_in_half_precision(rule):
    parts = list(TAILED.split([5000, 15000]))
    if rule is not moving_average:
        assert rule(iter(parts), 4) == rule(TAILED, 4)
    low, high = rule([part.bfloat16() for part in parts], 4)
    assert low.dtype == high.dtype == torch.float32


def test_min_max_and_percentile_are_what_they_say():
    x = torch.arange(-10.0, 991.0)[torch.randperm(1001, generator=torch.Generator().manual_seed(0))]
    assert [end.item() for end in min_max(x, 8)] == [-10, 990]
    assert [end.item() for end in percentile(x, 8, keep=0.99)] == [-5, 985]  # half a percent of 1000 steps each
    assert [end.item() for end in percentile(x, 8, keep=0.998)] == [-9, 989]
    assert percentile(x, 8, keep=1.0) == min_max(x, 8)
    assert percentile(TAILED, 8, keep=1.0) == min_max(TAILED, 8)


def test_a_moving_average_forgets_by_its_momentum():
    batches = [torch.tensor([-1.0, 4.0]), torch.tensor([-2.0, 8.0]), torch.tensor([-6.0, 2.0])]
    low, high = moving_average(batches, 8, momentum=0.75)
    assert low.item() == 0.75 * (0.75 * -1 + 0.25 * -2) + 0.25 * -6
    assert high.item() == 0.75 * (0.75 * 4 + 0.25 * 8) + 0.25 * 2
    assert [end.item() for end in moving_average(batches, 8, momentum=0.0)] == [-6, 2]
    assert moving_average(TAILED, 8) == min_max(TAILED, 8)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8, 16])
@pytest.mark.parametrize("x", DATA.values(), ids=DATA)
def test_the_mse_clip_never_has_a_larger_error_than_the_extremes(x, bits):
    for data in (x, x.float()):
        assert error(data, bits, *mse(data, bits)) <= error(data, bits, *min_max(data, bits))


def test_the_last_word_on_the_mse_clip_is_the_error_itself(monkeypatch):
    """Running sums lose digits; here they lose all of them and praise the narrowest clip."""
    monkeypatch.setattr(calibrate, "_squared_error", lambda x, bits: lambda low, high: high - low)
    for x in DATA.values():
        assert mse(x, 8) == min_max(x, 8)


def test_the_mse_clip_is_about_the_best_clip_there_is():
    """Against every pair of ends on a fine grid, and against the known optimum for a Gaussian, 2 bits: ±1.49 σ.

    A uniform grid of four levels without a zero point has its best step at 0.9957 σ (Max, 1960), so ends at 1.49 σ.
    """
    for name in ("tailed", "gelu"):
        x = DATA[name][:3000]
        low, high = x.aminmax()
        shares = torch.linspace(0.02, 1, 50)
        best = min(error(x, 3, a * low, b * high) for a in shares for b in shares)
        assert error(x, 3, *mse(x, 3)) <= 1.03 * best
    low, high = mse(normal(20000), 2)
    assert (high - low).item() == pytest.approx(2 * 1.49, rel=0.1)
    ratio = error(TAILED, 4, *min_max(TAILED, 4)) / error(TAILED, 4, *mse(TAILED, 4))
    assert ratio > 4


def test_the_kl_clip_keeps_a_histogram_that_is_flat_on_each_level():
    """With at least as many levels as bins nothing is lost, and data that sit on the levels are kept whole."""
    for x in DATA.values():
        assert kl(x, 16) == min_max(x, 16)
    on_levels = torch.arange(16).repeat_interleave(torch.arange(1, 17)) / 15
    assert kl(on_levels, 4) == min_max(on_levels, 4)
    assert kl(torch.linspace(0, 1, 100_001), 4) == min_max(torch.linspace(0, 1, 100_001), 4)


def test_the_kl_clip_cuts_a_thin_tail_and_is_blind_to_what_a_probability_is_worth():
    """Most probabilities are nearly 0: their histogram is kept best by a clip that throws all the large ones away."""
    low, high = kl(TAILED, 4)
    assert (high - low) < 0.5 * (min_max(TAILED, 4)[1] - min_max(TAILED, 4)[0])
    assert error(TAILED, 4, low, high) < 0.5 * error(TAILED, 4, *min_max(TAILED, 4))
    attn = DATA["attention"]
    assert kl(attn, 4)[1] < 0.1 < min_max(attn, 4)[1]
    assert error(attn, 4, *kl(attn, 4)) > 5 * error(attn, 4, *min_max(attn, 4))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("c", [3.0, -0.7, 1e-30, 0.0])
def test_constant_data_have_an_exact_range(rule, c):
    low, high = rule(torch.full((5, 4), c, dtype=torch.float64), 4)
    assert (low.item(), high.item()) == (min(c, 0), max(c, 0))
    assert Uniform.of(low, high, 4).round(torch.tensor(c, dtype=torch.float64)).item() == pytest.approx(c, rel=1e-15)


@pytest.mark.parametrize("rule", RULES)
def test_nothing_and_what_is_no_number_are_refused_in_a_sentence(rule):
    for nothing in (torch.empty(0, 3), [], [torch.empty(0)], iter(())):
        with pytest.raises(LabkitError, match="no numbers to calibrate on"):
            rule(nothing, 8)
    for bad in (torch.nan, torch.inf, -torch.inf):
        with pytest.raises(LabkitError, match="NaN or infinity"):
            rule([normal(4), torch.tensor([1.0, bad])], 8)
    for bits in (0, 40):
        with pytest.raises(LabkitError, match=f"bits={bits}"):
            rule(normal(4), bits)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(LabkitError, match="keep=0 is no share"):
        percentile(normal(4), 8, keep=0)
    with pytest.raises(LabkitError, match="momentum=1 is no memory"):
        moving_average(normal(4), 8, momentum=1)
