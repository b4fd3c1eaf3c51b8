"""The pictures of the demonstrations, each from numbers to a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from labkit.quant.inspect import Inspection
from labkit.viz.bits import widest
from labkit.viz.figures import styled
from labkit.viz.paint import LINES, numbers, picture
from labkit.viz.strips import tokens_on

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREY = "#808080"
MOST = 64  # rows or columns of a matrix that are drawn: enough to see, and a small picture


@styled
def tokens_left(image: Tensor, labels: np.ndarray, grid: tuple[int, int], right: Sequence[float]) -> Figure:
    """The image, the image with dropped patches dark and merged ones in a colour, right answers before and after."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(7.6, 2.5), layout="constrained")
    whole, left, bars = fig.subplots(1, 3, width_ratios=[1, 1, 1.3])
    pixels = picture(image)
    for ax, shown, title in ((whole, pixels, "image"), (left, tokens_on(pixels, labels, grid), "what goes on")):
        ax.imshow(shown.clip(0, 1))
        ax.set(title=title, xticks=[], yticks=[])
    drawn = bars.barh(["all tokens", "these"], [100 * share for share in right], color=[GREY, LINES[0]])
    bars.bar_label(drawn, fmt="%.0f %%", padding=3)
    bars.set(xlim=(0, 120), xlabel="right answers (%)", xticks=[0, 50, 100])
    bars.invert_yaxis()
    return fig


@styled
def on_image(image: Tensor, heats: Sequence[Tensor], titles: Sequence[str]) -> Figure:
    """The image, and beside it maps over the same place, each in a scale of its own from 0 to its largest."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(2.3 * (len(heats) + 1) + 0.4, 2.5), layout="constrained")
    first, *others = fig.subplots(1, len(heats) + 1)
    first.imshow(picture(image))
    first.set(title="image", xticks=[], yticks=[])
    for ax, heat, title in zip(others, heats, titles, strict=True):
        values = numbers(heat)
        drawn = ax.imshow(values / (np.abs(values).max() or 1), vmin=min(0.0, float(values.min())), vmax=1)
        ax.set(title=title, xticks=[], yticks=[])
    fig.colorbar(drawn, ax=others, aspect=25, pad=0.02, label="share of the largest")
    return fig


@styled
def maps(heats: Sequence[Tensor], titles: Sequence[str], query: tuple[int, int]) -> Figure:
    """Maps in one scale; a ring marks the patch that asks."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(2.1 * len(heats) + 1.0, 2.5), layout="constrained")
    axes = fig.subplots(1, len(heats), squeeze=False)[0]
    values = [numbers(heat) for heat in heats]
    low, high = min(v.min() for v in values), max(v.max() for v in values)
    for ax, heat, title in zip(axes, values, titles, strict=True):
        drawn = ax.imshow(heat, vmin=low, vmax=high)
        ax.plot(query[1], query[0], "o", color="white", markeredgecolor="black", markersize=8)
        ax.set(title=title, xticks=[], yticks=[])
    fig.colorbar(drawn, ax=axes, aspect=25, pad=0.02)
    return fig


@styled
def mixers(image: Tensor, dense: Tensor, matrix: Tensor | None, field: Tensor) -> Figure:
    """The image, dense attention's matrix, this mixer's (None: it has none), and what moves the middle token."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(9.4, 2.6), layout="constrained")
    first, plain, ours, seen = fig.subplots(1, 4)
    first.imshow(picture(image))
    high = float(np.quantile(numbers(dense if matrix is None else matrix), 0.99)) or 1.0
    for ax, shown, title in ((plain, dense, "dense attention"), (ours, matrix, "this mixer")):
        if shown is None:
            ax.text(0.5, 0.5, "no matrix:\nnot linear\nin its values", ha="center", va="center", transform=ax.transAxes)
            ax.set_facecolor("0.93")
        else:
            drawn = ax.imshow(numbers(shown), vmin=min(0.0, float(shown.min())), vmax=high)
        ax.set_title(title)
    fig.colorbar(drawn, ax=[plain, ours], aspect=25, pad=0.02, label="share", extend="max")
    reach = numbers(field)
    seen.imshow(reach / (reach.max() or 1), vmin=0, vmax=1)
    for ax, title in ((first, "image"), (seen, "what moves\nthe middle token")):
        ax.set_title(title)
    for ax in (first, plain, ours, seen):
        ax.set(xticks=[], yticks=[])
    return fig


@styled
def rounding(seen: Inspection, even: Inspection, what: str) -> Figure:
    """How the numbers are spread, where the levels lie, and the signal over noise beside evenly spaced levels."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(8.4, 2.6), layout="constrained")
    left, right = fig.subplots(1, 2, width_ratios=[2.2, 1])
    shares = numbers(seen.counts) / float(seen.counts.sum())
    least = 0.5 / float(seen.counts.sum())
    left.stairs(shares.clip(least), numbers(seen.edges), baseline=least, fill=True, color=LINES[0])
    left.vlines(widest(seen), least / 4, least / 1.3, color=LINES[4], linewidth=1)
    left.set(yscale="log", xlabel=f"{what}, and the levels below", ylabel="share")
    left.minorticks_off()
    drawn = right.barh(["even", "this"], [even.sqnr_db, seen.sqnr_db], color=[GREY, LINES[0]])
    right.bar_label(drawn, fmt="%.1f", padding=3)
    right.margins(x=0.25)
    right.set(xlabel="signal over noise (dB)")
    return fig


@styled
def matrices(panels: Sequence[Any], titles: Sequence[str]) -> Figure:
    """The last two axes of each tensor as a matrix, each in its own scale around zero."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(3.2 * len(panels), 2.6), layout="constrained")
    for ax, panel, title in zip(fig.subplots(1, len(panels), squeeze=False)[0], panels, titles, strict=True):
        values = numbers(panel)
        shown = values.reshape(-1, *values.shape[-2:])[0][:MOST, :MOST]
        high = float(np.quantile(np.abs(shown), 0.99)) or 1.0
        drawn = ax.imshow(shown, vmin=-high, vmax=high, cmap="PuOr", aspect="auto")
        ax.set(title=title, xticks=[], yticks=[])
        fig.colorbar(drawn, ax=ax, aspect=25, pad=0.02, extend="both")
    return fig


@styled
def answers(image: Tensor, probabilities: Sequence[Tensor], names: Sequence[str]) -> Figure:
    """The image, and the probability of every class before and after."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(7.4, 2.8), layout="constrained")
    first, bars = fig.subplots(1, 2, width_ratios=[1, 2])
    first.imshow(picture(image))
    first.set(title="image", xticks=[], yticks=[])
    rows = np.arange(len(names))
    for shift, shares, name, colour in zip(
        (-0.2, 0.2), probabilities, ("before", "after"), (GREY, LINES[0]), strict=True
    ):
        bars.barh(rows + shift, 100 * numbers(shares), height=0.4, label=name, color=colour)
    bars.set_yticks(rows, names, fontsize=8)
    bars.invert_yaxis()
    bars.set(xlabel="probability (%)")
    bars.legend(frameon=False, fontsize=9)
    return fig


@styled
def steps(counts: Sequence[int]) -> Figure:
    """A bar for each layer, in the order of the model."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(6.4, 2.4), layout="constrained")
    ax = fig.subplots()
    ax.bar(range(len(counts)), counts, color=LINES[0])
    ax.set(xlabel="layer", ylabel="bits", yticks=sorted({0, *counts}))
    return fig
