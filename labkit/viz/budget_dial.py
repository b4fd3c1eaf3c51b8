"""One budget for all dials: patches, mixing, tokens and bits of one model, measured milliseconds against right answers.

`look` builds a stack, asks it and times it in turns with the plain model; `picture` draws every look so far, the front
that nothing beats, and the budget and the floor; `BudgetDial` is the five controls that do both.

    dial = BudgetDial(net, test, calibration, budget=0.5, floor=0.9)
    dial.set(keep=0.5, bits=8)
    print(dial.state(), dial.best().stack.describe())
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from labkit import clock, cost
from labkit.data.batch import ImageSet
from labkit.errors import LabkitError, closest
from labkit.intervals import wilson
from labkit.stack import FLOAT, Stack
from labkit.stack.menu import choice
from labkit.verify import hits
from labkit.vit import ViT
from labkit.viz.charts import Point, front
from labkit.viz.figures import styled
from labkit.viz.paint import LINES
from labkit.viz.slider import Dial, together

if TYPE_CHECKING:
    from matplotlib.figure import Figure

K = TypeVar("K", bound=Hashable)
Stop = tuple[int, str, str, float, int]  # patch, mixer, reducer, keep, bits
MIXERS, REDUCERS = ("dense", "window", "dilated", "pooled"), ("merge", "keep", "fuse", "random")
KEEPS, BITS = (1.0, 0.85, 0.7, 0.5, 0.35, 0.25), (FLOAT, 8, 4)
TIMED = 32  # images in the batch that is timed


@dataclass(frozen=True)
class Look:
    """What one stack costs and reaches, beside the plain model and the two lines that were drawn for it."""

    stack: Stack
    time: float  # of the plain model's
    low: float
    high: float
    right: int
    images: int
    macs: float  # share of the plain model's
    bytes: float  # of its weights'
    budget: float
    floor: float

    @property
    def share(self) -> float:
        return self.right / self.images

    @property
    def inside(self) -> bool:
        return self.time <= self.budget and self.share >= self.floor

    def brief(self) -> str:
        """The choice in a few words, for a label."""
        s = self.stack
        told = [f"{s.patch} px" if s.patch else "", s.mixer if s.mixed else "", f"{s.reducer} {s.keep:.0%}"]
        told = told if s.where else told[:2]
        return ", ".join([word for word in told if word] + ([f"{s.weights} bits"] if s.rounds else [])) or "plain"

    def sentence(self) -> str:
        verdict = "inside the budget" if self.time <= self.budget else "over the budget"
        enough = "above the floor" if self.share >= self.floor else "below the floor"
        return (
            f"{self.stack.describe()[0].upper()}{self.stack.describe()[1:]}: {self.time:.2f} of the plain model's time "
            f"({self.low:.2f} to {self.high:.2f}), {verdict} of {self.budget:.2f}; {self.share:.0%} of {self.images} "
            f"right, {enough} of {self.floor:.0%}; {self.macs:.0%} of the MACs, {self.bytes:.0%} of the bytes."
        )


def look(
    model: ViT,
    stack: Stack,
    images: ImageSet,
    calibration: Tensor | None,
    budget: float,
    floor: float,
    seconds: float = 1,
) -> Look:
    """Build the stack, ask it about the images, and time it in turns with the model, on one thread."""
    built, some = stack.build(model, calibration), images.images[:TIMED]
    right = int(hits(built, images, 100).sum())
    clocks = ("cpu",) if some.device.type == "cpu" else ("wall",)
    took = clock.compare({"plain": model, "this": built}, some, rounds=15, warmup=1, seconds=seconds, clocks=clocks)
    plain, this = cost.count(model), cost.count(built)
    macs, size = (this.total(column) / plain.total(column) for column in ("macs", "weight_bytes"))
    return Look(stack, *took.ratio("this"), right, len(images), macs, size, budget, floor)


@styled
def picture(looks: Sequence[Look]) -> Figure:
    """Right answers over time: a point for each look, the front as a staircase, the region inside both lines shaded."""
    from matplotlib.figure import Figure

    now, fig = looks[-1], Figure(figsize=(7.4, 3.6), layout="constrained")
    ax = fig.subplots()
    points = [Point(each.time, 100 * each.share) for each in looks]
    best = front(points)
    right = max(1.1, 1.08 * max(p.cost for p in points))
    bottom = max(0.0, min(5 * (min(p.value for p in points) // 5) - 5, 100 * now.floor - 10))
    ax.fill_between([0, now.budget], 100 * now.floor, 102, color="#009E73", alpha=0.12, linewidth=0)
    ax.axvline(now.budget, color="#555555", linestyle="--", linewidth=1, label="budget and floor")
    ax.axhline(100 * now.floor, color="#555555", linestyle="--", linewidth=1)
    stairs = sorted((p.cost, p.value) for p, ahead in zip(points, best, strict=True) if ahead)
    stairs.append((right, stairs[-1][1]))
    ax.step(*zip(*stairs, strict=True), where="post", color="#777777", linestyle=":", label="not beaten")
    for each, p, ahead in zip(looks, points, best, strict=True):
        low, high = (100 * end for end in wilson(each.right, each.images))
        style: dict[str, Any] = {"color": LINES[0], "marker": "o"} if ahead else {"color": LINES[4], "marker": "x"}
        ax.plot([p.cost, p.cost], [low, high], color=style["color"], linewidth=0.8, alpha=0.5)
        ax.plot(p.cost, p.value, markersize=7, linestyle="none", **style)
        if ahead:
            ax.annotate(each.brief(), (p.cost, p.value), xytext=(7, -13), textcoords="offset points", fontsize=8)
    ax.plot(points[-1].cost, points[-1].value, "o", color="black", markersize=15, fillstyle="none", label="this one")
    ax.set(xlabel="time, the plain model is 1", ylabel="right answers (%)", xlim=(0, right), ylim=(bottom, 102))
    ax.legend(frameon=False, fontsize=9, loc="lower right")
    return fig


class BudgetDial(Dial[Look]):
    """Five menus over one model. Code turns them by `set(keep=0.5, bits=8)`; `state()` and `best()` read."""

    def __init__(
        self,
        model: ViT,
        images: ImageSet,
        calibration: Tensor,
        patches: Iterable[int] = (),
        budget: float = 0.5,
        floor: float = 0.9,
        seconds: float = 1.0,
    ) -> None:
        import ipywidgets

        if not 0 <= floor <= 1 or budget <= 0:
            raise LabkitError(f"budget={budget}, floor={floor}; expected a time above 0 and a share from 0 to 1.")
        own: Any = model.patch_embed
        sizes = tuple(dict.fromkeys((own.proj.stride[0], *patches)))
        wide = {"layout": {"width": "24em"}, "style": {"description_width": "7em"}}
        menus: dict[str, Sequence[Any]] = {
            "patch": [(f"{size} pixels", size) for size in sizes],
            "mixer": MIXERS,
            "reducer": REDUCERS,
            "keep": [(f"{share:.0%}", share) for share in KEEPS],
            "bits": [("float" if bits == FLOAT else f"{bits} bits", bits) for bits in BITS],
        }
        self.controls = {
            name: ipywidgets.Dropdown(options=options, description=name, **wide) for name, options in menus.items()
        }
        super().__init__(
            together(self.controls),
            lambda stop: look(model, choice(*stop), images, calibration, budget, floor, seconds),
            picture,
        )

    def set(self, **choices: Any) -> None:
        """Turn several dials, and measure once."""
        self._check(choices)
        with self.slider.hold_trait_notifications():
            for name, value in choices.items():
                self.controls[name].value = value

    def _check(self, choices: dict[str, Any]) -> None:
        for name, value in choices.items():
            if name not in self.controls:
                raise LabkitError(
                    f'There is no dial "{name}".{closest(name, self.controls)} There are {", ".join(self.controls)}.'
                )
            known = [option[1] if isinstance(option, tuple) else option for option in self.controls[name].options]
            if value not in known:
                raise LabkitError(f"{name}={value!r} is not on the dial; choose one of {', '.join(map(str, known))}.")

    @property
    def now(self) -> Look:
        return self.looks[self.slider.value]

    def best(self) -> Look:
        """Of all looks the fastest that is inside; if none is, the one with the most right answers."""
        points = {stop: (each.time, each.share) for stop, each in self.looks.items()}
        *_, last = self.looks.values()
        fastest = cheapest(points, last.budget, last.floor)
        return max(self.looks.values(), key=lambda e: (e.share, -e.time)) if fastest is None else self.looks[fastest]


def cheapest(points: Mapping[K, tuple[float, float]], budget: float, floor: float) -> K | None:
    """Of points (time, right answers) the fastest inside both lines, of equally fast ones the better; or None."""
    inside = [name for name, (time, right) in points.items() if time <= budget and right >= floor]
    return min(inside, key=lambda name: (points[name][0], -points[name][1]), default=None)
