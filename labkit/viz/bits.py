"""What rounding looks like: numbers beside the levels they may have, what is lost where, and which layer loses most.

`histogram` and `grids_figure` are charts that say their own sentence. An error map is as large as a layer and a ladder
as long as a model, so these are figures; `error_words` and `ladder_words` are their sentences.

    histogram(inspect(x, grid), "queries")
    values = {name: seen.sqnr_db for name, seen in inspect_model(quantized, images, model).items()}
    figure(ladder(values), ladder_words(values))
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.errors import LabkitError
from labkit.quant.grids import Grid
from labkit.quant.inspect import Inspection
from labkit.viz.chart import Chart
from labkit.viz.figures import styled
from labkit.viz.paint import LINES, numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MANY = 1024  # ticks; beyond, no eye tells one from the next
LONGEST = 60.0  # decibels: a bar for no noise has to end somewhere
KINDS = {"weight": LINES[0], "input": LINES[1], "attention": LINES[2]}


def histogram(seen: Inspection, name: str = "value") -> Chart:
    """How numbers are spread, and below them a tick for each level; broken lines stand at the first and the last.

    Shares are logarithmic, because what a grid cuts off is rare. Of many scales the widest is drawn.
    """
    from plotly.graph_objects import Figure

    counts, edges, ticks = seen.counts.cpu().numpy(), seen.edges.cpu().numpy(), widest(seen)
    least, top = 0.5 / counts.sum(), counts.max() / counts.sum()
    bottom = least * (least / top) ** 0.12  # room for the ticks
    across = {"title": {"text": name}, "range": _room(min(edges[0], ticks[0]), max(edges[-1], ticks[-1]))}
    up = {"title": {"text": "share of the values"}, "type": "log", "dtick": 1, "exponentformat": "power"}
    up["range"] = [math.log10(bottom), math.log10(2 * top)]
    fig = Figure(layout={"xaxis": across, "yaxis": up})
    fig.add_scatter(
        x=_digits((edges[1:] + edges[:-1]) / 2),
        y=_digits(np.maximum(counts / counts.sum(), least)),
        name=f"{counts.sum():,} values",
        mode="lines",
        line={"color": LINES[0], "shape": "hvh"},
    )
    if len(ticks) <= MANY:
        ends = bottom * (least / bottom) ** 0.1, bottom * (least / bottom) ** 0.9
        of = "" if seen.levels.shape[1] == 1 else f", widest of {seen.levels.shape[1]} scales"
        _ticks(fig, ticks, ends, f"{len(ticks)} levels{of}", LINES[4])
    for i, end in enumerate((ticks[0], ticks[-1])):
        line = {"color": LINES[4], "dash": "dash"}
        at = {"x": _digits([end, end]), "y": _digits([least, top])}
        fig.add_scatter(**at, name="first and last level", mode="lines", line=line, showlegend=i == 0)
    return Chart(fig, f"Histogram of {name}, from {edges[0]:.3g} to {edges[-1]:.3g}: {seen!r}.")


def grids_figure(grids: Mapping[str, Grid], x: str = "value") -> Chart:
    """Where the levels of each grid lie, one row of ticks for each; of many scales the first is drawn."""
    from plotly.graph_objects import Figure

    every = {name: numbers(grid.levels()) for name, grid in grids.items()}
    rows = {name: np.unique(levels.reshape(len(levels), -1)[:, 0]) for name, levels in every.items()}
    if not rows:
        raise LabkitError("There is no grid to draw.")
    left, right = (end(end(levels) for levels in rows.values()) for end in (min, max))
    across = {"title": {"text": x}, "range": _room(left, right)}
    up = {"range": [-0.2, len(rows)], "tickvals": [], "showline": False}
    fig = Figure(layout={"xaxis": across, "yaxis": up, "showlegend": False})
    said = []
    for i, ((name, levels), colour) in enumerate(zip(rows.items(), cycle(LINES), strict=False)):
        row, about = len(rows) - 1 - i, f"{name}: {len(levels)} levels, {levels[0]:.3g} to {levels[-1]:.3g}"
        _ticks(fig, levels, (row, row + 0.5), name, colour)
        text = {"text": [about], "mode": "text", "textposition": "top right", "cliponaxis": False}
        fig.add_scatter(x=_digits([left]), y=[row + 0.5], **text, hoverinfo="skip")
        said.append(f"{about}, steps from {np.diff(levels).min():.2g} to {np.diff(levels).max():.2g}")
    return Chart(fig, f"Where levels lie. {'; '.join(said)}.")


@styled
def error_map(seen: Inspection, rows: str = "token", columns: str = "channel") -> Figure:
    """The size of the error along the last two axes, as its root mean square over all others, from 0 up.

    A few cells far above the rest would leave the rest dark, so the scale ends at the 99th percentile.
    """
    from matplotlib.figure import Figure

    error = _rms(seen)
    fig = Figure(figsize=(7.0, min(6.0, 1.4 + 5.0 * error.shape[0] / error.shape[1])), layout="constrained")
    ax = fig.subplots()
    high = float(np.quantile(error, 0.99)) or float(error.max()) or 1.0
    drawn = ax.imshow(error, vmin=0, vmax=high, aspect="auto")
    ax.set(xlabel=columns, ylabel=rows)
    fig.colorbar(drawn, ax=ax, aspect=25, pad=0.01, label="error (root mean square)", extend="max")
    return fig


def error_words(seen: Inspection, rows: str = "token", columns: str = "channel") -> str:
    """What the error map shows: its middle, its largest cell, and how few columns hold half of the error."""
    error = _rms(seen)
    down, across = np.unravel_index(error.argmax(), error.shape)
    size = f"Error by {rows} ({error.shape[0]}) and {columns} ({error.shape[1]})"
    if not error.any():
        return f"{size}: none, every number is on a level."
    power = np.sort(np.square(error).sum(axis=0))[::-1].cumsum()
    half = int((power < power[-1] / 2).sum()) + 1
    return (
        f"{size}: {np.median(error):.3g} in the middle, {error.max():.3g} at {rows} {down} and {columns} {across}. "
        f"Half of its power is in {half} of the {error.shape[1]} columns."
    )


@styled
def ladder(values: Mapping[str, float]) -> Figure:
    """A bar for each layer's signal over noise (dB), in a colour for weights, inputs of layers, operands of attention.

    Bars end at 60 dB, a millionth of the power, whatever their number says.
    """
    from matplotlib.figure import Figure

    lengths, words = _lengths(values)
    fig = Figure(figsize=(7.0, 0.9 + 0.19 * len(values)), layout="constrained")
    ax = fig.subplots()
    kinds = np.array([_kind(name) for name in values])
    for kind in KINDS:
        here = np.flatnonzero(kinds == kind)
        ax.barh(here, lengths[here], height=0.7, color=KINDS[kind], label=kind if len(here) else None)
    for row, (length, word) in enumerate(zip(lengths, words, strict=True)):
        near: dict[str, Any] = {"xytext": (3, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
        ax.annotate(word, (max(length, 0), row), **near)
    ax.set_yticks(range(len(values)), list(values), fontsize=8)
    ax.margins(x=0.1)
    ax.set(xlabel="signal over noise (dB)", ylim=(len(values) - 0.4, -0.6))
    ax.axvline(0, color="black", linewidth=0.8)
    if len(set(kinds)) > 1:
        fig.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return fig


def ladder_words(values: Mapping[str, float]) -> str:
    """How many bars there are, and the three shortest and the longest by name."""
    words = dict(zip(values, _lengths(values)[1], strict=True))
    ranked = [f"{name} ({words[name]})" for name in sorted(values, key=lambda name: values[name])]
    return (
        f"Signal over noise of {len(values)} tensors, in dB. Shortest: {', '.join(ranked[:3])}; longest: {ranked[-1]}."
    )


def widest(seen: Inspection) -> np.ndarray:
    """The distinct levels of the scale that reaches furthest."""
    levels = numbers(seen.levels)
    return np.unique(levels[:, (levels[-1] - levels[0]).argmax()])


def _rms(seen: Inspection) -> np.ndarray:
    error = numbers(seen.error)
    error = error.reshape(-1, *error.shape[-2:]) if error.ndim > 1 else error.reshape(1, 1, -1)
    return np.sqrt(np.square(error).mean(axis=0))


def _lengths(values: Mapping[str, float]) -> tuple[np.ndarray, list[str]]:
    """How long each bar is, and what is written behind it."""
    given = np.array(list(values.values()), dtype=float)
    if not given.size or np.isnan(given).any():
        raise LabkitError("A ladder needs a number for each layer, at least one, and none that is NaN.")
    words = ["exact" if value == math.inf else "all lost" if value == -math.inf else f"{value:.1f}" for value in given]
    return np.where(given == -math.inf, 0, given.clip(max=LONGEST)), words


def _kind(name: str) -> str:
    last = name.rpartition(".")[2]
    return "weight" if last == "weight" else "attention" if last in ("q", "k", "v", "softmax") else "input"


def _ticks(fig: Any, levels: np.ndarray, ends: tuple[float, float], name: str, colour: str) -> None:
    """A short upright line for each level, all in one trace: a NaN lifts the pen."""
    x = [value for level in _digits(levels) for value in (level, level, math.nan)]
    y = [*_digits(ends), math.nan] * len(levels)
    fig.add_scatter(x=x, y=y, name=name, mode="lines", line={"color": colour, "width": 1.5}, hoverinfo="x+name")


def _room(low: float, high: float) -> list[float]:
    """The axis from low to high with a margin, so that no tick lies on its end."""
    margin = 0.03 * (high - low)
    return _digits([low - margin, high + margin])


def _digits(values: Any) -> list[float]:
    """Five digits: all that an eye sees, and the same text on every machine."""
    return [float(f"{value:.5g}") for value in numbers(values).ravel()]
