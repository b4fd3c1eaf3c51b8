"""Static figures, each a function from numbers to a matplotlib Figure: images, heat on an image, bars.

Panels that are compared share one colour scale and one colour bar; the colours suit colour-blind readers; the
background is opaque, so that a figure reads the same on a light and on a dark page.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from labkit.errors import LabkitError
from labkit.viz.paint import LINES, numbers, picture, scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image as Picture

P = ParamSpec("P")

STYLE: dict[Any, Any] = {
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": 110,
    "figure.dpi": 110,
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "image.cmap": "cividis",
    "image.interpolation": "nearest",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 2,
    "axes.prop_cycle": f"cycler('color', {[line[1:] for line in LINES]})",
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the house style whatever the notebook has set."""

    @functools.wraps(draw)
    def draw_in_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return draw_in_style


@styled
def image_strip(images: Any, titles: Sequence[str] | None = None, columns: int = 10) -> Figure:
    """Images (b, 3 or 1, h, w) in [0, 1] side by side, `columns` to a row, each under its title."""
    pictures = [picture(image) for image in images]
    titles = _matching(titles, len(pictures), "image")
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    fig, axes = _panels(rows, columns, width=1.3 * columns, height=(1.3 + 0.25 * any(titles)) * rows)
    for ax, shown, title in zip(axes, pictures, titles, strict=False):
        ax.imshow(shown)
        ax.set_title(title, fontsize=9)
    return fig


@styled
def heat_on_image(image: Any, maps: Any, titles: Sequence[str] | None = None, label: str = "") -> Figure:
    """An image (3, h, w) and, beside it, one or more maps (gh, gw) laid over it in one colour scale.

    `label` names what the colour bar measures; the scale begins at 0 unless a map goes below.
    """
    pixels = picture(image)
    maps = numbers(maps)
    maps = maps[None] if maps.ndim == 2 else maps
    if maps.ndim != 3:
        raise LabkitError(f"Maps have shape (gh, gw) or (panels, gh, gw); these have {maps.shape}.")
    titles = _matching(titles, len(maps), "map")
    h, w = pixels.shape[:2]
    low, high = scale(maps)
    columns = len(maps) + 1
    side = min(2.3, 10 / columns)
    fig, axes = _panels(1, columns, width=side * columns + 0.6, height=side * h / w + 0.4)
    axes[0].imshow(pixels)
    axes[0].set_title("image")
    grey = pixels.mean(axis=-1)
    for ax, heat, title in zip(axes[1:], maps, titles, strict=True):
        ax.imshow(grey, cmap="gray", vmin=0, vmax=1)
        drawn = ax.imshow(heat, extent=(-0.5, w - 0.5, h - 0.5, -0.5), alpha=0.7, vmin=low, vmax=high)
        ax.set_title(title)
    fig.colorbar(drawn, ax=axes, aspect=30, pad=0.01, label=label)
    return fig


@styled
def matrices(panels: Any, titles: Sequence[str], label: str = "") -> Figure:
    """Matrices (n, m) side by side in one colour scale: who (down) gets how much from whom (right).

    A few entries far above the rest would leave the rest dark, so the scale ends at the 99th percentile.
    """
    panels = [numbers(panel) for panel in panels]
    titles = _matching(titles, len(panels), "panel")
    columns = min(len(panels), 6)
    rows = math.ceil(len(panels) / columns)
    fig, axes = _panels(rows, columns, width=1.75 * columns + 0.7, height=2.05 * rows)
    low = min(0.0, *(float(panel.min()) for panel in panels))
    high = max(float(np.quantile(panel[panel > 0], 0.99)) if (panel > 0).any() else 0.0 for panel in panels)
    for ax, panel, title in zip(axes, panels, titles, strict=False):
        drawn = ax.imshow(panel, vmin=low, vmax=high or 1.0)
        ax.set_title(title, fontsize=9)
    fig.colorbar(drawn, ax=axes, aspect=25, pad=0.01, label=label, extend="max")
    return fig


@styled
def bars(names: Sequence[str], values: Any, intervals: Any = None, label: str = "", digits: int = 3) -> Figure:
    """Named values as bars from 0, each with its number and, when given, its interval (low, high)."""
    ends = values = numbers(values)
    rows = range(len(_matching(names, len(values), "value")))
    fig, (ax,) = _panels(1, 1, width=6.5, height=0.36 * len(rows) + 0.7)
    ax.set_axis_on()
    ax.barh(rows, values, height=0.65)
    if intervals is not None:
        intervals = numbers(intervals)
        if intervals.shape != (len(rows), 2):
            raise LabkitError(f"Each of {len(rows)} bars needs (low, high); the intervals have {intervals.shape}.")
        ax.plot(intervals.T, [rows, rows], color="black", marker="|", markersize=9)
        ends = np.maximum(values, intervals[:, 1])
    for row, end, value in zip(rows, ends, values, strict=True):
        where = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        ax.annotate(f"{value:.{digits}f}", (max(end, 0), row), **where)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.margins(x=0.12)
    ax.set_yticks(rows, names)
    ax.invert_yaxis()
    ax.set_xlabel(label)
    return fig


def _panels(rows: int, columns: int, width: float, height: float) -> tuple[Figure, Any]:
    """A figure that pyplot does not know of, and its axes in one row, frames off."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width, height), layout="constrained")
    axes = fig.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.set_axis_off()
    return fig, axes


def _matching(titles: Sequence[str] | None, count: int, what: str) -> Sequence[str]:
    if not count:
        raise LabkitError(f"There is no {what} to show.")
    if titles is not None and len(titles) != count:
        raise LabkitError(f"{len(titles)} names for {count} {what}s; give one for each.")
    return titles or [""] * count


def png(fig: Figure | Picture) -> bytes:
    """As small as a PNG gets without a loss: a saved lesson carries all its pictures."""
    from PIL import Image

    if hasattr(fig, "savefig"):
        drawn = io.BytesIO()
        fig.savefig(drawn, format="png", bbox_inches="tight")
        fig = Image.open(drawn).convert("RGB")
    small = io.BytesIO()
    fig.save(small, format="png", optimize=True)
    return small.getvalue()
