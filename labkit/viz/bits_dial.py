"""Bits as a dial: how many, over which part of the range, on which kind of grid, and what is left of the numbers.

`look` rounds a tensor, `picture` draws its histogram over the levels and the signal over noise of every look so far,
and `BitsDial` is three controls that do both. Where a range begins and ends is `labkit.quant.calibrate.percentile`.

    dial = BitsDial(queries, name="queries of block 3")
    dial.bits, dial.keep, dial.kind = 3, 0.999, "uniform"
    print(dial.state())
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from labkit.errors import LabkitError
from labkit.quant.calibrate import percentile
from labkit.quant.grids import Grid, Uniform
from labkit.quant.inspect import inspect
from labkit.quant.log_grids import log2_grid, log_sqrt2_grid
from labkit.quant.warped_grids import Tangent, fit_twin
from labkit.viz.bits import widest
from labkit.viz.figures import styled
from labkit.viz.paint import LINES
from labkit.viz.slider import Dial, together

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Stop = tuple[int, float, str]  # bits, the share of the numbers that the range is to hold, the kind of grid
BITS = range(2, 9)
KEEPS = (1.0, 0.9999, 0.999, 0.99, 0.95)
SIGNED, UNSIGNED = ("uniform", "twin"), ("uniform", "twin", "log2", "log √2", "tangent")
WARP = 1.2  # of the tangent grid
LOOKS = dict(zip(UNSIGNED, zip(LINES, "osD^P", strict=False), strict=True))  # a colour and a symbol for each kind


@dataclass(frozen=True)
class Look:
    """What one grid does to the numbers."""

    bits: int
    keep: float
    kind: str
    counts: np.ndarray
    edges: np.ndarray
    levels: np.ndarray
    used: int
    clipped: float
    sqnr_db: float
    max_error: float

    def sentence(self) -> str:
        cut = "nothing" if self.clipped == 0 else f"{self.clipped:.2%}"
        return (
            f"{self.bits} bits, {self.kind}, range of {self.keep:.2%} of the numbers "
            f"({self.levels[0]:.3g} to {self.levels[-1]:.3g}): {self.used} of {len(self.levels)} levels used, {cut} "
            f"cut off, signal over noise {self.sqnr_db:.1f} dB, largest error {self.max_error:.3g}."
        )


def kinds(x: Tensor) -> tuple[str, ...]:
    """The kinds of grid that suit the numbers: logarithms and tangents count from 0 up."""
    return UNSIGNED if x.numel() and float(x.min()) >= 0 else SIGNED


def made(kind: str, x: Tensor, low: Tensor, high: Tensor, bits: int) -> Grid:
    """A grid of that kind over [low, high]; the twin has the two steps that suit x best."""
    check_kind(kind, x)
    scale = torch.where(high > 0, high, 1.0)
    makers: dict[str, Callable[[], Grid]] = {
        "uniform": lambda: Uniform.of(low, high, bits),
        "twin": lambda: fit_twin(x.clamp(low, high), bits),
        "log2": lambda: log2_grid(bits, scale),
        "log √2": lambda: log_sqrt2_grid(bits, scale),
        "tangent": lambda: Tangent(bits, WARP, scale),
    }
    return makers[kind]()


def check_kind(kind: str, x: Tensor) -> None:
    if kind not in kinds(x):
        raise LabkitError(f'There is no "{kind}" grid for these numbers; choose one of {", ".join(kinds(x))}.')


def look(x: Tensor, bits: int, keep: float, kind: str) -> Look:
    """Round x to a grid over the range that its middle `keep` lies in."""
    low, high = percentile(x, bits, keep)
    seen = inspect(x, made(kind, x, low, high, bits))
    counts, edges = seen.counts.numpy(), seen.edges.numpy()
    return Look(bits, keep, kind, counts, edges, widest(seen), seen.used, seen.clipped, seen.sqnr_db, seen.max_error)


@styled
def picture(looks: Sequence[Look], name: str = "value") -> Figure:
    """The histogram over the levels of the last look, beside the signal over noise of every look."""
    from matplotlib.figure import Figure

    now = looks[-1]
    fig = Figure(figsize=(9.0, 3.0), layout="constrained")
    left, right = fig.subplots(1, 2, width_ratios=[1.7, 1])
    shares = now.counts / now.counts.sum()
    least = 0.5 / now.counts.sum()
    left.stairs(shares.clip(least), now.edges, baseline=least, fill=True, color=LINES[0])
    left.vlines(now.levels, least / 4, least / 1.3, color=LINES[4], linewidth=1)
    left.vlines(now.levels[[0, -1]], least, shares.max(), color=LINES[4], linewidth=1.5, linestyle="--")
    left.set(yscale="log", ylim=(least / 5, 2 * shares.max()), xlabel=name, ylabel="share")
    left.minorticks_off()  # their labels cost half of the time that a picture takes
    left.set_title(f"{len(now.levels)} levels, {now.clipped:.2%} cut off")
    finite = [each for each in looks if math.isfinite(each.sqnr_db)]
    for kind, (colour, symbol) in LOOKS.items():
        same = [each for each in finite if each.kind == kind]
        at = [each.bits for each in same], [each.sqnr_db for each in same]
        right.plot(*at, symbol, color=colour, markersize=5, linestyle="none", label=kind if same else None)
    if math.isfinite(now.sqnr_db):
        right.plot(now.bits, now.sqnr_db, "o", color="black", markersize=13, fillstyle="none", linestyle="none")
    right.set(xlim=(BITS[0] - 0.5, BITS[-1] + 0.5), xticks=BITS, xlabel="bits", ylabel="signal over noise (dB)")
    right.set_ylim(min([0.0, *(each.sqnr_db for each in finite)]), max([50.0, *(each.sqnr_db for each in finite)]))
    right.set_title(f"{now.sqnr_db:.1f} dB")
    if finite:
        right.legend(frameon=False, fontsize=9, loc="upper left")
    return fig


def _knob(name: str) -> Any:
    """Reads and turns one control of the dial."""
    return property(
        lambda dial: dial.controls[name].value, lambda dial, value: setattr(dial.controls[name], "value", value)
    )


class BitsDial(Dial[Look]):
    """Two sliders and a menu over a tensor. Code turns it by `bits`, `keep` and `kind`, and `state()` reads it."""

    bits, keep, kind = _knob("bits"), _knob("keep"), _knob("kind")

    def __init__(self, x: Tensor, bits: int = 4, keep: float = 1.0, kind: str = "uniform", name: str = "value") -> None:
        import ipywidgets

        check_kind(kind, x)
        wide = {"layout": {"width": "26em"}, "style": {"description_width": "6em"}}
        quiet: dict[str, Any] = {"continuous_update": False, **wide}
        self.controls = {
            "bits": ipywidgets.SelectionSlider(options=list(BITS), value=bits, description="bits", **quiet),
            "keep": ipywidgets.SelectionSlider(
                options=[(f"{share:.2%}", share) for share in KEEPS], value=keep, description="range of", **quiet
            ),
            "kind": ipywidgets.Dropdown(options=kinds(x), value=kind, description="grid", **wide),
        }
        super().__init__(
            together(self.controls),
            lambda stop: look(x, *stop),
            lambda looks: picture(looks, name),
        )
