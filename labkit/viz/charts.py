"""The kit's charts, each a function from numbers to a plotly figure: roofline, histogram, curves, Pareto front.

`chart(figure, alt)` shows one in a notebook and writes it as a page. Colours are Okabe and Ito's, and no line or
point is told apart by its colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from labkit.cost import Cost
from labkit.errors import LabkitError
from labkit.roofline import Machine, efficiency_gap
from labkit.viz.chart import PALE, Chart, write_page
from labkit.viz.paint import LINES, numbers

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["Line", "Point", "chart", "curves", "front", "histogram", "pareto", "roofline", "write_page"]

GREY = "#808080"  # seen on white and on black
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x")


class Line(NamedTuple):
    """Values over x, and where they are known to lie."""

    x: Any
    y: Any
    low: Any = None
    high: Any = None


class Point(NamedTuple):
    """What something costs, what it reaches, and where that is known to lie."""

    cost: float
    value: float
    low: float | None = None
    high: float | None = None


def chart(figure: Figure, alt: str) -> Chart:
    """Any plotly figure in the house style, with the sentence `alt` that says what it shows."""
    return Chart(figure, alt)


def curves(lines: Mapping[str, Line], x: str = "", y: str = "") -> Figure:
    """Named lines over one axis, each in a band from `low` to `high` where it has one."""
    fig = _figure(x, y)
    for (name, line), colour, dash, symbol in zip(
        _named(lines, "line").items(), cycle(LINES), cycle(DASHES), cycle(SYMBOLS), strict=False
    ):
        at, values = _digits(line.x), _digits(line.y)
        if len(at) != len(values):
            raise LabkitError(f'The line "{name}" has {len(at)} values of x and {len(values)} of y; expected as many.')
        if line.low is not None and line.high is not None:
            low, high = _digits(line.low), _digits(line.high)
            area = {"fill": "toself", "fillcolor": _pale(colour), "line": {"width": 0, "color": colour}}
            quiet = {"mode": "lines", "showlegend": False, "hoverinfo": "skip"}
            fig.add_scatter(x=at + at[::-1], y=low + high[::-1], **area, **quiet)
        look = {"line": {"color": colour, "dash": dash}, "marker": {"color": colour, "symbol": symbol, "size": 7}}
        fig.add_scatter(x=at, y=values, name=name, mode="lines+markers", **look)
    return fig


def histogram(
    values: Mapping[str, Any],
    clip: Mapping[str, tuple[float, float]] | None = None,
    x: str = "value",
    bins: int = 60,
) -> Figure:
    """How values are spread, as the share in each of `bins` equal bins; `clip` draws where they are cut off."""
    arrays = {name: numbers(array).ravel() for name, array in _named(values, "set of values").items()}
    ends = min(a.min() for a in arrays.values()), max(a.max() for a in arrays.values())
    fig = _figure(x, "share of the values")
    top = 0.0
    for (name, array), colour, dash in zip(arrays.items(), cycle(LINES), cycle(DASHES), strict=False):
        counts, edges = np.histogram(array, bins, ends)
        shares = counts / array.size
        top = max(top, shares.max())
        look = {"line": {"color": colour, "dash": dash, "shape": "hvh"}, "fill": "tozeroy", "fillcolor": _pale(colour)}
        fig.add_scatter(x=_digits((edges[1:] + edges[:-1]) / 2), y=_digits(shares), name=name, mode="lines", **look)
    for (name, bounds), colour, dash in zip((clip or {}).items(), LINES[::-1], cycle(DASHES[1:]), strict=False):
        for i, bound in enumerate(bounds):
            at, line = _digits([bound, bound]), {"color": colour, "dash": dash}
            fig.add_scatter(x=at, y=_digits([0, top]), name=name, mode="lines", line=line, showlegend=i == 0)
    return fig


def pareto(points: Mapping[str, Point], x: str = "cost", y: str = "accuracy") -> Figure:
    """What each choice costs and reaches; a staircase joins those that no other beats in both."""
    points = _named(points, "point")
    fig = _figure(x, y)
    best = front(list(points.values()))
    stairs = sorted((points[name].cost, points[name].value) for i, name in enumerate(points) if best[i])
    fig.add_scatter(
        x=_digits([c for c, _ in stairs]),
        y=_digits([v for _, v in stairs]),
        mode="lines",
        name="not beaten",
        line={"color": GREY, "dash": "dot", "shape": "hv"},
    )
    for (name, point), on_front in zip(points.items(), best, strict=True):
        colour, symbol = (LINES[0], "circle") if on_front else (LINES[4], "x")
        error = None
        if point.low is not None and point.high is not None:
            error = {"array": _digits([point.high - point.value]), "arrayminus": _digits([point.value - point.low])}
        fig.add_scatter(
            x=_digits([point.cost]),
            y=_digits([point.value]),
            error_y=error,
            text=[name],
            name=name,
            mode="markers+text",
            textposition="top right" if on_front else "bottom right",
            cliponaxis=False,
            marker={"color": colour, "symbol": symbol, "size": 10},
            showlegend=False,
        )
    return fig


def front(points: Sequence[Point]) -> list[bool]:
    """Which points no other beats: none is as cheap and as good, and better in one of the two."""
    return [
        not any(
            other.cost <= p.cost and other.value >= p.value and (other.cost, other.value) != (p.cost, p.value)
            for other in points
        )
        for p in points
    ]


def roofline(costs: Mapping[str, Cost], seconds: Mapping[str, float], machine: Machine) -> Figure:
    """Each model under the roof of a machine: a ring for the rate its bytes allow, a filled point for what it reached.

    Both axes are logarithmic. Left of the bend a model waits for memory, right of it for arithmetic.
    """
    gaps = efficiency_gap(costs, seconds, machine)
    fig = _figure("operations per byte", "billion operations per second", log=True)
    at = {name: gap.ops / sum(step.bytes for step in costs[name].operations) for name, gap in gaps.items()}
    ends = np.array([min(*at.values(), machine.balance) / 4, machine.balance, max(*at.values(), machine.balance) * 4])
    roof = np.minimum(ends * machine.bandwidth, machine.flops) / 1e9
    fig.add_scatter(x=_digits(ends), y=_digits(roof), mode="lines", name="the roof", line={"color": GREY, "width": 3})
    for (name, gap), colour, symbol in zip(gaps.items(), cycle(LINES), cycle(SYMBOLS), strict=False):
        rates = _digits([gap.ops / gap.predicted / 1e9, gap.ops / gap.measured / 1e9])
        here = _digits([at[name]] * 2)
        fig.add_scatter(x=here, y=rates, mode="lines", line={"color": colour, "dash": "dot"}, showlegend=False)
        ring = {"color": colour, "symbol": "circle-open", "size": 11}
        fig.add_scatter(x=here[:1], y=rates[:1], mode="markers", name=name, showlegend=False, marker=ring)
        dot = {"color": colour, "symbol": symbol, "size": 10}
        fig.add_scatter(
            x=here[1:], y=rates[1:], mode="markers", name=f"{name}: {gap.efficiency:.0%} of peak", marker=dot
        )
    return fig


def _figure(x: str, y: str, log: bool = False) -> Figure:
    from plotly.graph_objects import Figure

    kind = {"type": "log", "dtick": "D2"} if log else {"type": "linear"}  # D2: at 1, 2 and 5
    return Figure(layout={"xaxis": {"title": {"text": x}} | kind, "yaxis": {"title": {"text": y}} | kind})


def _pale(colour: str) -> str:
    red, green, blue = bytes.fromhex(colour[1:])
    return f"rgba({red}, {green}, {blue}, {PALE})"


def _named(things: Mapping[str, Any], what: str) -> dict[str, Any]:
    if not things:
        raise LabkitError(f"There is no {what} to draw.")
    return dict(things)


def _digits(values: Any) -> list[float]:
    """Five digits: all that an eye sees, and the same text on every machine."""
    return [float(f"{value:.5g}") for value in numbers(values).ravel()]
