"""A score beside every map, and beside every score what a map that knows nothing would get.

A mean comes with its 95 % interval over images, and a star says that a map beats the best control on these very
images: the interval of the paired differences lies on the good side of zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import NamedTuple

from torch import Tensor

from labkit.errors import LabkitError
from labkit.explain.controls import CONTROLS
from labkit.explain.localisation import METRICS, on_grid
from labkit.intervals import bootstrap, wilson
from labkit.tables import Table

METERS = {  # which way is better (noise passes "random weights", so it has none), and what is measured
    "pointing": (1, "share of object where the map is highest"),
    "mass": (1, "share of the map on the object"),
    "IoU": (1, "overlap of the object and the map's strongest cells of the same area"),
    "AUC": (1, "chance that a pixel of the object outscores one of the background"),
    "deletion": (-1, "probability of the class while the best patches go, low is good"),
    "insertion": (1, "the same while the best patches come, high is good"),
    "ROAD": (1, "insertion minus deletion with holes that are filled from their neighbours"),
    "random weights": (0, "rank correlation with the map of a model without knowledge, 1 ignores the model"),
}
MASK = "the mask itself"


class Score(NamedTuple):
    """A mean over images, its 95 % interval (None for a single image), and whether it beats the best control."""

    mean: float
    low: float | None
    high: float | None
    beats: bool

    def __str__(self) -> str:
        mean, low, high = (None if v is None else f"{round(v, 2) + 0.0:.2f}" for v in self[:3])  # + 0.0: no -0.00
        interval = "" if low is None else f" [{low},\N{NO-BREAK SPACE}{high}]"
        return f"{mean}{interval}{'*' if self.beats else ' '}"


@dataclass(frozen=True, repr=False)
class Scores:
    """`values[map][metric]` is one number an image; prints as a table."""

    values: dict[str, dict[str, Tensor]]
    controls: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)  # CPU time for the map of one image, where it was measured

    @cached_property
    def summary(self) -> dict[str, dict[str, Score]]:
        """`summary[map][metric]`: mean, interval and star."""
        return {
            name: {metric: self._score(name, metric, values) for metric, values in row.items()}
            for name, row in self.values.items()
        }

    def _score(self, name: str, metric: str, values: Tensor) -> Score:
        mean = values.mean().item()
        if len(values) < 2:
            return Score(mean, None, None, False)
        # Hits may be parts (a cell half on the object): they vary less than whole ones, so Wilson's is a safe interval.
        interval = wilson(round(values.sum().item()), len(values)) if metric == "pointing" else bootstrap(values)
        rivals = [self.values[control][metric] for control in self.controls]
        if name in self.controls or not rivals:
            return Score(mean, *interval, False)
        better, _ = METERS[metric]
        best = max(rivals, key=lambda rival: better * rival.mean().item())
        return Score(mean, *interval, bootstrap(better * (values - best))[0] > 0)

    def tables(self) -> Iterator[Table]:
        """One table on where the maps lie, and, when it was measured, one on what they mean to the model."""
        summary = self.summary
        for metrics in (list(METRICS), [metric for metric in METERS if metric not in METRICS]):
            shown = [metric for metric in metrics if any(metric in row for row in summary.values())]
            if shown:
                rows = [[name, *(str(row.get(m, "- ")) for m in shown)] for name, row in summary.items()]
                yield Table(["map", *(f"{m} " for m in shown)], rows, [False] + [True] * len(shown))
        if self.seconds:
            rows = [[name, f"{1000 * seconds:.1f}"] for name, seconds in self.seconds.items()]
            yield Table(["map", "ms an image"], rows, [False, True])

    def legend(self) -> str:
        """How to read the tables."""
        row = next(iter(self.values.values()))
        n = len(next(iter(row.values())))
        lines = [f"Means over {n} image{'s' * (n != 1)}" + (", with 95 % intervals." if n > 1 else ".")]
        if self.controls:
            lines[0] += f" * beats the best of {', '.join(self.controls)} on the same images."
        for metric, values in row.items():
            fewer = "" if len(values) == n else f" (the first {len(values)} images)"
            lines.append(f"{metric}: {METERS[metric][1]}{fewer}.")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return "\n\n".join([*map(repr, self.tables()), self.legend()])

    def _repr_html_(self) -> str:
        legend = escape(self.legend()).replace("\n", "<br>")
        return "".join(table._repr_html_() for table in self.tables()) + f"<p><small>{legend}</small></p>"


def judge(maps: Tensor | Mapping[str, Tensor], masks: Tensor, images: Tensor | None = None) -> Scores:
    """Pointing game, mass inside, IoU at matched area and AUC of one set of maps (b, gh, gw), or of several by name.

    With `images` the controls stand beside them, and the mask itself as a map: about the most that this grid allows.
    """
    named = {"map": maps} if isinstance(maps, Tensor) else dict(maps)
    if not named:
        raise LabkitError("There is no map to judge; give a tensor (b, rows, columns) or a dict of them.")
    if taken := {*CONTROLS, MASK} & named.keys():
        raise LabkitError(f'"{min(taken)}" is the name of a control; call your map otherwise.')
    if images is None:
        return Scores({name: locate(m, masks) for name, m in named.items()})
    first = next(iter(named.values()))
    inside = on_grid(masks, first)
    grid = (first.shape[1], first.shape[2])
    named |= {name: control(images, grid) for name, control in CONTROLS.items()} | {MASK: inside}
    return Scores({name: locate(m, masks) for name, m in named.items()}, tuple(CONTROLS))


def locate(maps: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """All four metrics, (b,) each."""
    inside = on_grid(masks, maps)
    return {name: metric(maps, inside) for name, metric in METRICS.items()}
