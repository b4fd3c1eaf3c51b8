"""Which numbers a search for a grid looks at: few, from every channel, and the extremes."""

from __future__ import annotations

import pytest
import torch

from labkit.quant import Recipe, choose
from labkit.quant.choose import activation_grid, sample, softmax_grid


@pytest.mark.parametrize("shape", [(64, 65, 128), (40, 50, 150), (2**20,), (64, 4, 65, 65), (3 * 5 * 7 * 11 * 13, 30)])
def test_a_sample_is_small_has_both_ends_and_sees_all_channels_alike(shape):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    channel = torch.arange(shape[-1]).expand(shape).float()
    few, channels = sample(x), sample(channel)[:-2]
    assert len(few) <= choose.SAMPLE + 2
    assert few.min() == x.min() and few.max() == x.max()
    if len(shape) > 1:
        counts = channels.long().bincount()
        assert len(counts) == shape[-1] and counts.max() - counts.min() <= 1
    assert few[:-2].mean() == pytest.approx(0.5, abs=0.005)


def test_what_is_short_is_taken_whole():
    x = torch.rand(8, 9)
    assert sample(x).tolist() == x.flatten().tolist()


def test_searches_find_nearly_the_same_grids_in_a_sample(monkeypatch):
    dice = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 128, generator=dice) * torch.linspace(0.1, 3, 128)
    attn = (5 * torch.randn(400, 300, generator=dice)).softmax(dim=-1)
    rules = [(activation_grid, x, {"clip": clip}) for clip in ("percentile", "mse")]
    rules += [(softmax_grid, attn, {"attention": 4, "softmax": kind}) for kind in ("adalog", "twin", "tangent")]
    for find, numbers, told in rules:
        errors = []
        for size in (2**18, 2**14):
            monkeypatch.setattr(choose, "SAMPLE", size)
            grid = find([numbers], 4, Recipe(4, 4, **told))
            errors.append(float((grid.round(numbers) - numbers).square().mean()))
        assert errors[1] <= 1.3 * errors[0], told


def test_rules_that_cost_little_see_every_number(monkeypatch):
    monkeypatch.setattr(choose, "SAMPLE", 10)
    x = torch.rand(1000)
    x[501] = 7.0
    assert float(activation_grid([x], 8, Recipe(clip="min_max")).scale) == pytest.approx(7 / 255)
