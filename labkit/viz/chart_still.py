"""A chart as a still picture, for places that run no scripts: matplotlib draws what the plotly figure holds."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Literal

from labkit.errors import LabkitError
from labkit.viz.chart import PALE
from labkit.viz.figures import styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Still
    from plotly.graph_objects import Figure

WIDTH, HEIGHT, INCH = 700, 360, 100  # pixels, of a figure that names no size of its own, and of an inch
STEPS = {"hvh": "steps-mid", "hv": "steps-post"}
DASHES = {None: "-", "solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
SYMBOLS = {
    None: "o",
    "circle": "o",
    "circle-open": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "cross": "P",
    "x": "X",
}


def drawable(figure: Figure) -> bool:
    """Lines, points and areas can be drawn here; plotly knows many more kinds."""
    return all(trace.type == "scatter" for trace in figure.data)


@styled
def still(figure: Figure) -> Still:
    """The figure's lines, points, error bars and areas, on its axes."""
    from matplotlib.figure import Figure as Still

    if not drawable(figure):
        raise LabkitError("Only charts of lines, points and areas (plotly's Scatter) have a still picture.")
    width, height = figure.layout.width or WIDTH, figure.layout.height or HEIGHT
    drawn = Still(figsize=(width / INCH, height / INCH), layout="constrained")
    ax = drawn.subplots()
    for trace in figure.data:
        _draw(ax, trace)
    axes: tuple[tuple[Any, Literal["x", "y"]], ...] = ((figure.layout.xaxis, "x"), (figure.layout.yaxis, "y"))
    for axis, name in axes:
        ax.set(**{f"{name}label": axis.title.text or "", f"{name}scale": axis.type or "linear"})
        if axis.range:
            ends = [10**end for end in axis.range] if axis.type == "log" else axis.range
            ax.set(**{f"{name}lim": ends})
        _ticks(ax, axis, name)
    ax.set_axisbelow(True)
    if ax.get_legend_handles_labels()[1]:
        flat = figure.layout.legend.orientation == "h"
        place = {"loc": "outside upper center", "ncols": 4} if flat else {"loc": "outside right upper"}
        drawn.legend(frameon=False, fontsize=9, **place)
    return drawn


def _ticks(ax: Axes, axis: Any, name: Literal["x", "y"]) -> None:
    """Marks, their numbers and the grid, unless the figure switches them off; places and words, if it names them."""
    if axis.tickvals is not None:
        ax.set(**{f"{name}ticks": list(axis.tickvals)})
        if axis.ticktext is not None:
            ax.set(**{f"{name}ticklabels": list(axis.ticktext)})
    if axis.ticks == "":
        ax.tick_params(axis=name, which="both", length=0)
    if axis.showticklabels is False:
        ax.tick_params(axis=name, which="both", labelbottom=False, labelleft=False)
    if axis.showgrid is not False:
        ax.grid(axis=name, color="#DDDDDD", linewidth=0.8)


def _draw(ax: Axes, trace: Any) -> None:
    colour = trace.line.color or trace.marker.color
    if trace.fill == "toself":
        ax.fill(trace.x, trace.y, color=colour, alpha=PALE, linewidth=0)
        return
    if trace.fill:
        ax.fill_between(trace.x, trace.y, step="mid", color=colour, alpha=PALE, linewidth=0)
    has_line, has_points = "lines" in trace.mode, "markers" in trace.mode
    symbol = trace.marker.symbol
    ax.errorbar(
        trace.x,
        trace.y,
        yerr=None if trace.error_y.array is None else [trace.error_y.arrayminus, trace.error_y.array],
        linestyle=DASHES[trace.line.dash] if has_line else "none",
        marker=SYMBOLS[symbol] if has_points else "none",
        markerfacecolor="none" if symbol == "circle-open" else colour,
        drawstyle=STEPS.get(trace.line.shape, "default"),
        capsize=3,
        color=colour,
        label="_hidden" if trace.showlegend is False else trace.name,
    )
    if "text" in trace.mode:
        above = trace.textposition.startswith("top")
        for x, y, name in zip(trace.x, trace.y, trace.text, strict=True):
            ax.annotate(name, (x, y), xytext=(5, 4 if above else -12), textcoords="offset points", fontsize=9)


def svg(figure: Figure) -> str:
    """The still picture as text that is the same in every run."""
    import matplotlib

    stream, drawn = io.StringIO(), still(figure)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "labkit", "font.family": "sans-serif"}):
        drawn.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()
