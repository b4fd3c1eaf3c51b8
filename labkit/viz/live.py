"""A loss plot that grows while a model trains: `train(model, batches, recipe, watch=live.LossPlot(recipe.steps))`.

One widget is shown once and only its value changes, so the notebook's output stays the same however often it is drawn.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from labkit.errors import LabkitError
from labkit.viz.figures import styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Sequence[dict[str, float]]  # what labkit.train.Log holds: step, loss, accuracy and perhaps validation


@styled
def curves(rows: Rows, steps: int | None = None) -> Figure:
    """Loss on the left, accuracy (and validation, where it was measured) on the right, both over the steps."""
    from matplotlib.figure import Figure

    if not rows:
        raise LabkitError("There is no row to draw yet; train at least `every` steps.")
    fig = Figure(figsize=(7.6, 2.5), layout="constrained")
    left, right = fig.subplots(1, 2)
    at = [row["step"] for row in rows]
    left.plot(at, [row["loss"] for row in rows], marker="o", markersize=3)
    right.plot(at, [row["accuracy"] for row in rows], marker="o", markersize=3, label="training")
    held_out = [(row["step"], row["validation"]) for row in rows if "validation" in row]
    if held_out:
        right.plot(*zip(*held_out, strict=True), marker="s", markersize=4, linestyle="--", label="held out")
        right.legend(loc="lower right", frameon=False)
    for ax, name in ((left, "loss"), (right, "accuracy")):
        ax.set(xlabel="step", ylabel=name, xlim=(0, steps or at[-1]), ylim=(0, None))
    right.set_ylim(0, 1.02)
    return fig


def sentence(rows: Rows, steps: int | None = None) -> str:
    """The last row in words."""
    if not rows:
        return "The loss plot appears here when training begins."
    last = rows[-1]
    of = f" of {steps}" if steps else ""
    said = f"Step {last['step']:.0f}{of}: loss {last['loss']:.2f}, training accuracy {last['accuracy']:.0%}"
    return said + (f", held out {last['validation']:.0%}." if "validation" in last else ".")


class LossPlot:
    """Display it once, then give it to `train` as `watch`; it draws at most once in `pause` seconds."""

    def __init__(self, steps: int, pause: float = 1.0) -> None:
        import ipywidgets

        self.steps, self.pause = steps, pause
        self.rows: Rows = []
        self.drawn = float("-inf")
        self.view = ipywidgets.HTML(f'<p role="status">{escape(self.state())}</p>')

    def __call__(self, rows: Rows) -> None:
        self.rows = rows
        last = rows[-1]["step"] >= self.steps
        # A drawing takes as long as a few steps of a small model.
        if not last and time.monotonic() - self.drawn < self.pause:
            return
        picture = io.BytesIO()
        curves(rows, self.steps).savefig(picture, format="png", bbox_inches="tight")
        source, says = base64.b64encode(picture.getvalue()).decode(), escape(self.state())
        self.view.value = (
            f'<img src="data:image/png;base64,{source}" alt="{says}" style="max-width: 100%">'
            f'<p role="status">{says}</p>'
        )
        self.drawn = time.monotonic()

    def state(self) -> str:
        return sentence(self.rows, self.steps)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """The widget where there is a kernel, the sentence elsewhere."""
        live = self.view._repr_mimebundle_()
        live = live[0] if isinstance(live, tuple) else live
        return {**live, "text/plain": self.state()}
