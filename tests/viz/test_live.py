"""The live loss plot: one view whose value changes, true curves, words for those who do not see them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from labkit.data.batch import ImageSet
from labkit.errors import LabkitError
from labkit.train import Recipe, train
from labkit.viz import live

ROWS = [
    {"step": 10, "loss": 2.25, "accuracy": 0.125},
    {"step": 20, "loss": 1.5, "accuracy": 0.5, "validation": 0.25},
]


def test_curves_draw_what_the_rows_say():
    left, right = live.curves(ROWS, steps=40).axes
    assert left.lines[0].get_xydata().tolist() == [[10, 2.25], [20, 1.5]]
    assert right.lines[0].get_xydata().tolist() == [[10, 0.125], [20, 0.5]]
    assert right.lines[1].get_xydata().tolist() == [[20, 0.25]]
    assert left.get_xlim() == right.get_xlim() == (0, 40) and right.get_ylim()[0] == 0


def test_without_validation_there_is_one_curve_and_no_legend():
    right = live.curves(ROWS[:1]).axes[1]
    assert len(right.lines) == 1 and right.get_legend() is None


def test_one_view_changes_its_value_and_carries_the_sentence():
    plot = live.LossPlot(steps=20, pause=0)
    view, before = plot.view, plot.view.value
    assert plot.state() in before and "<img" not in before
    plot(ROWS[:1])
    middle = view.value
    plot(ROWS)
    assert plot.view is view and len({before, middle, view.value}) == 3
    assert f'alt="{plot.state()}"' in view.value
    assert plot.state() == "Step 20 of 20: loss 1.50, training accuracy 50%, held out 25%."


def test_it_rests_between_drawings_but_draws_the_last_step():
    plot = live.LossPlot(steps=20, pause=3600)
    plot([{"step": 5, "loss": 3.0, "accuracy": 0.0}])
    first = plot.view.value
    plot(ROWS[:1])
    assert plot.view.value == first
    plot(ROWS)
    assert plot.view.value != first


def test_a_page_without_a_kernel_reads_the_sentence():
    plot = live.LossPlot(steps=20)
    bundle = plot._repr_mimebundle_()
    assert bundle["text/plain"] == "The loss plot appears here when training begins."
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_training_feeds_it():
    images = ImageSet(torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    plot = live.LossPlot(steps=4, pause=0)
    log = train(model, lambda step, done: images, Recipe(steps=4), every=2, watch=plot)
    assert [row["step"] for row in plot.rows] == [2, 4] and plot.rows == log.rows


def test_nothing_to_draw_is_a_sentence():
    with pytest.raises(LabkitError, match="no row to draw yet"):
        live.curves([])
