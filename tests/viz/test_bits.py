"""Pictures of rounding: every level where it is, every bar as long as its number, and a sentence for each."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from labkit.errors import LabkitError
from labkit.quant import Recipe, quantize
from labkit.quant.grids import Uniform
from labkit.quant.inspect import inspect
from labkit.quant.log_grids import log2_grid
from labkit.vit import ViT
from labkit.viz import bits
from labkit.viz.chart_still import svg
from labkit.viz.explorer import Explorer
from tests.weights import normal, randomized

X = normal(4, 30, 12)
SEEN = inspect(X, Uniform.of(-1.5, 2.0, 3))
GRIDS = {"uniform": Uniform.of(0.0, 1.0, 2), "log2": log2_grid(3)}


def named(chart, name):
    return next(trace for trace in chart.figure.data if trace.name == name)


def drawn(trace) -> tuple[list[float], list[float]]:
    """Where the upright lines of a trace stand, and the ends of the first."""
    return list(trace.x[::3]), list(trace.y[:2])


def test_a_histogram_holds_every_number_every_level_and_both_ends():
    chart = bits.histogram(SEEN, "queries")
    shares = np.array(named(chart, "1,440 values").y)
    assert shares.min() == pytest.approx(0.5 / X.numel(), rel=1e-4)  # an empty bin lies on the floor
    assert shares[shares > 1.5 * shares.min()].sum() == pytest.approx(1, abs=1e-3)
    at, (low, high) = drawn(named(chart, "8 levels"))
    assert at == pytest.approx(SEEN.levels[:, 0].tolist(), rel=1e-4) and low < high < shares.min()
    first, last = (trace for trace in chart.figure.data if trace.name == "first and last level")
    assert (first.x[0], last.x[0]) == (at[0], at[-1]) and first.line.dash == "dash"
    x, y = chart.figure.layout.xaxis.range, chart.figure.layout.yaxis.range
    assert x[0] < float(X.min()) < float(X.max()) < x[1] and y[0] < math.log10(low)
    assert chart.alt.startswith("Histogram of queries, from -3.") and repr(SEEN) in chart.alt


def test_of_many_scales_the_widest_is_drawn_and_of_too_many_levels_only_the_ends():
    reach = torch.linspace(1, 2, 12)
    chart = bits.histogram(inspect(X, Uniform.of(-reach, 2 * reach, 3)))
    at, _ = drawn(named(chart, "8 levels, widest of 12 scales"))
    assert at[-1] - at[0] == pytest.approx(6, rel=1e-3)
    fine = bits.histogram(inspect(X, Uniform.of(-4.0, 4.0, 12)))
    assert [trace.name for trace in fine.figure.data] == ["1,440 values", *["first and last level"] * 2]


def test_constant_numbers_and_a_single_bin_are_drawn():
    x = torch.zeros(5)
    assert "inf dB" in bits.histogram(inspect(x, Uniform.of(x.amin(), x.amax(), 2))).alt


def test_grids_have_a_row_each_from_the_top():
    chart = bits.grids_figure(GRIDS, "attention")
    uniform, log = drawn(named(chart, "uniform")), drawn(named(chart, "log2"))
    assert uniform[0] == pytest.approx([0, 1 / 3, 2 / 3, 1], rel=1e-4)
    assert log[0] == pytest.approx([0, 2**-6, 2**-5, 2**-4, 2**-3, 0.25, 0.5, 1], rel=1e-4)
    assert uniform[1] == [1, 1.5] and log[1] == [0, 0.5] and chart.figure.layout.xaxis.title.text == "attention"
    assert [trace.text[0] for trace in chart.figure.data if trace.text] == [
        "uniform: 4 levels, 0 to 1",
        "log2: 8 levels, 0 to 1",
    ]
    assert "log2: 8 levels, 0 to 1, steps from 0.016 to 0.5" in chart.alt


def test_charts_have_a_still_picture():
    for chart in (bits.histogram(SEEN), bits.grids_figure(GRIDS)):
        assert svg(chart.figure).count("<path") > 10


def test_an_error_map_is_the_mean_square_over_all_but_two_axes_in_one_scale():
    fig = bits.error_map(SEEN, "query", "key")
    shown = fig.axes[0].images[0]
    expected = SEEN.error.square().mean(dim=0).sqrt()
    assert np.allclose(shown.get_array(), expected)
    assert shown.get_clim() == (0, pytest.approx(np.quantile(expected, 0.99))) and shown.get_cmap().name == "cividis"
    assert (fig.axes[0].get_xlabel(), fig.axes[0].get_ylabel()) == ("key", "query")


def test_its_words_find_the_worst_cell_and_the_columns_that_matter():
    x = torch.zeros(2, 5, 40)
    x[:, 3, 7], x[:, :, 9] = 0.4, 0.1
    grid = Uniform.of(0.0, 7.0, 3)
    said = bits.error_words(inspect(x, grid))
    assert said == (
        "Error by token (5) and channel (40): 0 in the middle, 0.4 at token 3 and channel 7. "
        "Half of its power is in 1 of the 40 columns."
    )
    assert bits.error_words(inspect(0 * x, grid), "row", "column").endswith("none, every number is on a level.")
    assert bits.error_words(inspect(x[0, 3], grid)).startswith("Error by token (1) and channel (40)")
    bits.error_map(inspect(0 * x, grid)).canvas.draw()


VALUES = {"blocks.0.fc1.weight": 20.0, "blocks.0.attn.softmax": 5.0, "head.input": math.inf, "z.input": -math.inf}


def test_bars_are_as_long_as_their_numbers_and_say_them():
    ax = bits.ladder(VALUES | {"negative.input": -3.0, "b.weight": 140.0}).axes[0]
    bars = {round(bar.get_y() + 0.35): bar for bar in ax.patches}
    assert [bars[row].get_width() for row in range(6)] == [20, 5, 60, 0, -3, 60]
    assert [text.get_text() for text in ax.texts] == ["20.0", "5.0", "exact", "all lost", "-3.0", "140.0"]
    assert [label.get_text() for label in ax.get_yticklabels()][:2] == list(VALUES)[:2] and ax.yaxis_inverted()
    assert bars[0].get_facecolor() == bars[5].get_facecolor() != bars[1].get_facecolor() != bars[2].get_facecolor()
    assert [text.get_text() for text in ax.figure.legends[0].get_texts()] == ["weight", "input", "attention"]
    assert not bits.ladder({"a": 1.0, "b": 2.0}).legends


def test_the_ladder_in_words():
    assert bits.ladder_words(VALUES) == (
        "Signal over noise of 4 tensors, in dB. Shortest: z.input (all lost), blocks.0.attn.softmax (5.0), "
        "blocks.0.fc1.weight (20.0); longest: head.input (exact)."
    )


@pytest.mark.parametrize(
    "draw, sentence",
    [
        (lambda: bits.grids_figure({}), "There is no grid to draw"),
        (lambda: bits.ladder({}), "A ladder needs a number for each layer"),
        (lambda: bits.ladder({"a": math.nan}), "A ladder needs a number for each layer"),
    ],
)
def test_what_cannot_be_drawn_is_a_sentence(draw, sentence):
    with pytest.raises(LabkitError, match=sentence):
        draw()


def test_a_float_model_and_its_quantized_copy_stand_side_by_side_in_the_explorer():
    """Its compare view needs nothing new: the rounded copy is a ViT, and its attention is what it mixed by."""
    model = randomized(ViT(16, 4, 5, dim=32, depth=2, heads=2)).float()
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    rounded = quantize(model, Recipe(4, 4, attention=2), images)
    ui = Explorer(model, images, other=rounded, titles=["float", "quantized"], view="compare", layer=1)
    ours, theirs = (side.trace.attention[1] for side in ui.maps)
    assert theirs.unique().numel() <= 4 < ours.unique().numel()
    said = ui.describe()
    assert "in float" in said and "in quantized" in said and "no share differs by more than" in said
    assert ui._png().startswith(b"\x89PNG")
