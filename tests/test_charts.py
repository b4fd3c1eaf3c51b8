"""Charts: what the figures hold, what is refused, and what is left of them without plotly."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import nbformat
import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from IPython.core.formatters import format_display_data
from nbconvert import HTMLExporter
from nbformat import v4

from labkit.cost import count
from labkit.errors import LabkitError
from labkit.roofline import Machine, predict
from labkit.vit import ViT
from labkit.viz import charts, figures, paint
from labkit.viz.chart import MIME
from labkit.viz.chart_still import still, svg
from labkit.viz.charts import Line, Point, chart

MACHINE = Machine(flops=100e9, bandwidth=10e9, threads=1, device="imagined")
LINES = {"a": Line([1, 2, 3], [0.5, 0.6, 0.4], [0.4, 0.5, 0.3], [0.6, 0.7, 0.5]), "b": Line([1, 3], [0.1, 0.2])}


def named(fig, name):
    return next(trace for trace in fig.data if trace.name == name)


def vit(dim: int) -> ViT:
    torch.manual_seed(0)
    return ViT(image_size=16, patch_size=8, classes=3, dim=dim, depth=2, heads=2)


# --- what the figures hold ----------------------------------------------------------------------------------------
def test_a_curve_lies_in_its_band_and_lines_differ_in_more_than_colour():
    fig = charts.curves(LINES, "x", "y")
    band, a, b = fig.data
    assert list(a.y) == [0.5, 0.6, 0.4] and (a.name, b.name) == ("a", "b")
    assert list(zip(band.x, band.y, strict=True)) == [(1, 0.4), (2, 0.5), (3, 0.3), (3, 0.5), (2, 0.7), (1, 0.6)]
    assert a.line.dash != b.line.dash and a.marker.symbol != b.marker.symbol
    assert not band.showlegend


def test_a_histogram_counts_every_value_once_in_shared_bins():
    values = {"a": np.arange(100.0), "b": torch.linspace(-1, 50, 51)}
    fig = charts.histogram(values, {"4 bits": (-0.5, 60.0)}, bins=20)
    a, b = named(fig, "a"), named(fig, "b")
    assert sum(a.y) == pytest.approx(1, abs=1e-3) and sum(b.y) == pytest.approx(1, abs=1e-3)
    assert a.x == b.x and len(a.x) == 20
    half = (a.x[1] - a.x[0]) / 2
    assert a.x[0] - half == pytest.approx(-1, abs=1e-3) and a.x[-1] + half == pytest.approx(99, abs=1e-2)
    low, high = (trace for trace in fig.data if trace.name == "4 bits")
    assert (list(low.x), list(high.x)) == ([-0.5, -0.5], [60, 60])
    assert [low.showlegend, high.showlegend] == [True, False]


def test_the_front_is_what_no_point_beats():
    points = [Point(1, 0.5), Point(2, 0.9), Point(2, 0.8), Point(3, 0.9), Point(4, 0.95), Point(1, 0.5)]
    assert charts.front(points) == [True, True, False, False, True, True]
    draw = np.random.default_rng(0)
    many = [Point(*pair) for pair in draw.random((60, 2))]
    for point, best in zip(many, charts.front(many), strict=True):
        assert best == all(other.cost > point.cost or other.value <= point.value for other in many)


def test_a_pareto_chart_joins_the_front_by_cost():
    fig = charts.pareto({"big": Point(9, 0.9, 0.85, 0.92), "lost": Point(9, 0.5), "small": Point(2, 0.6)})
    stairs = named(fig, "not beaten")
    assert (list(stairs.x), list(stairs.y)) == ([2, 9], [0.6, 0.9])
    big = named(fig, "big")
    assert big.error_y.array[0] == pytest.approx(0.02) and big.error_y.arrayminus[0] == pytest.approx(0.05)
    assert named(fig, "lost").marker.symbol != big.marker.symbol == named(fig, "small").marker.symbol


def test_no_model_is_above_the_roof_and_its_ring_is_what_its_bytes_allow():
    costs = {name: count(vit(dim)) for name, dim in (("narrow", 8), ("wide", 64))}
    seconds = {name: 5 * predict(cost, MACHINE) for name, cost in costs.items()}
    fig = charts.roofline(costs, seconds, MACHINE)
    roof = named(fig, "the roof")
    assert roof.x[1] == MACHINE.balance and list(roof.y[1:]) == [100, 100]
    for name in costs:
        ring = named(fig, name)
        dot = next(trace for trace in fig.data if trace.name and trace.name.startswith(f"{name}: "))
        assert ring.x == dot.x and dot.y[0] == pytest.approx(ring.y[0] / 5, rel=1e-3)
        assert ring.y[0] <= min(MACHINE.flops, ring.x[0] * MACHINE.bandwidth) / 1e9 * 1.001
    assert fig.layout.xaxis.type == fig.layout.yaxis.type == "log"


def test_the_colours_are_those_of_the_other_figures():
    assert re.findall(r"'(\w{6})'", figures.STYLE["axes.prop_cycle"]) == [colour[1:] for colour in paint.LINES]
    template = chart(charts.curves(LINES), "Two lines.").description()["layout"]["template"]["layout"]
    assert template["colorway"] == list(paint.LINES)
    assert template["colorscale"]["sequential"][-1] == [1, "rgb(253, 231, 55)"]  # where cividis ends


# --- what is refused ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "draw, sentence",
    [
        (lambda: chart(charts.curves(LINES), " "), "needs a sentence"),
        (lambda: chart(go.Figure(go.Heatmap(z=np.zeros((101, 3)))), "A map."), "101 x 3 cells"),
        (lambda: charts.curves({}), "no line"),
        (lambda: charts.curves({"a": Line([1, 2], [1])}), '"a" has 2 values of x and 1 of y'),
        (lambda: charts.histogram({"a": [np.nan]}), "finite"),
        (lambda: still(go.Figure(go.Bar(y=[1]))), "lines, points and areas"),
    ],
)
def test_what_cannot_be_drawn_is_a_sentence(draw, sentence):
    with pytest.raises(LabkitError, match=sentence):
        draw()


def test_a_small_heat_map_is_a_chart():
    chart(go.Figure(go.Heatmap(z=np.zeros((100, 100)))), "A map.")


# --- what is shown ------------------------------------------------------------------------------------------------
@pytest.fixture
def shown(monkeypatch):
    """The two outputs that a chart leaves in a notebook."""
    bundles = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: bundles.append(bundle))
    format_display_data(chart(charts.curves(LINES, "x", "y"), "Two lines & more."))
    return bundles


def test_a_chart_is_small_and_private_and_leaves_the_figure_as_it_was(shown):
    described = shown[0][MIME]
    assert len(json.dumps(shown)) < 40_000
    assert described["config"] == {"displayModeBar": False}  # with its bar, plotly offers to upload the chart
    fig = charts.curves(LINES)
    before = fig.to_json()
    chart(fig, "Two lines.")
    assert fig.to_json() == before


def test_both_outputs_say_the_sentence(shown):
    assert [bundle["text/plain"] for bundle in shown] == ["Two lines & more."] * 2
    assert shown[1]["text/html"].endswith("<p>Two lines &amp; more.</p>")


def test_a_converted_notebook_shows_the_still_picture_and_the_sentence(shown):
    outputs = [v4.new_output("display_data", bundle) for bundle in shown]
    notebook = v4.new_notebook(cells=[v4.new_code_cell("chart", outputs=outputs, execution_count=1)])
    nbformat.validate(notebook)
    body, _ = HTMLExporter(template_name="lab").from_notebook_node(notebook)
    assert re.search(r'<img alt="Two lines &amp; more." src="data:image/svg', body)
    assert "<p>Two lines &amp; more.</p>" in body


def test_the_still_picture_holds_the_same_numbers_and_is_the_same_every_time():
    fig = charts.curves(LINES, "kept", "right")
    ax = still(fig).axes[0]
    assert [list(line.get_ydata()) for line in ax.lines] == [[0.5, 0.6, 0.4], [0.1, 0.2]]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("kept", "right")
    text = svg(fig)
    assert text == svg(fig)
    words = {node.text for node in ET.fromstring(text).iter("{http://www.w3.org/2000/svg}text")}
    assert {"kept", "right", "a", "b"} <= words
    assert not re.search(r'(href|src)="http', text)


def test_the_still_picture_has_the_size_and_the_ticks_of_its_figure():
    fig = charts.curves(LINES)
    plain = still(fig)
    assert plain.get_size_inches().tolist() == [7.0, 3.6]
    assert all(line.get_visible() for line in plain.axes[0].get_xgridlines())
    fig.update_layout(height=630, width=900, legend={"orientation": "h"})
    fig.update_xaxes(showticklabels=False, ticks="", showgrid=False)
    fig.update_yaxes(tickvals=[0.2, 0.5], ticktext=["few", "half"])
    drawn = still(fig)
    drawn.draw_without_rendering()
    ax = drawn.axes[0]
    assert drawn.get_size_inches().tolist() == [9.0, 6.3]
    assert not any(tick.tick1line.get_markersize() or tick.label1.get_visible() for tick in ax.xaxis.get_major_ticks())
    assert not any(line.get_visible() for line in ax.get_xgridlines())
    assert all(line.get_visible() for line in ax.get_ygridlines())
    assert [tick.label1.get_text() for tick in ax.yaxis.get_major_ticks()] == ["few", "half"]
    (legend,), (beside,) = drawn.legends, plain.legends
    assert legend._ncols > 1 == beside._ncols, "what lies across is not a column"


def test_every_builder_has_a_still_picture():
    costs = {"vit": count(vit(8))}
    for fig in (
        charts.histogram({"a": [1, 2, 2]}, {"clip": (1, 2)}),
        charts.pareto({"a": Point(1, 0.5, 0.4, 0.6), "b": Point(2, 0.4)}),
        charts.roofline(costs, {"vit": 0.01}, MACHINE),
    ):
        assert len(still(fig).axes[0].lines) >= 3


def test_a_page_holds_plotly_once_and_asks_for_nothing(tmp_path):
    charts.write_page(
        tmp_path / "two.html", [chart(charts.curves(LINES), f"</script> {i}.") for i in range(2)], "<Two>"
    )
    text = (tmp_path / "two.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in text and text.count("<script>") == 2 and len(text) < 5.2e6
    assert "<h1>&lt;Two&gt;</h1>" in text and 'aria-label="&lt;/script&gt; 1."' in text
    chart(charts.curves(LINES), "One.").to_html(tmp_path / "one.html")
    assert abs((tmp_path / "one.html").stat().st_size - len(text.encode())) < 20_000


def test_plotly_is_imported_only_to_draw():
    ask = "import sys, labkit.viz.charts; print('plotly' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True).stdout == "False\n"
