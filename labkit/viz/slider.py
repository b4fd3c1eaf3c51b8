"""What the dials share: a slider whose every stop is measured once, shown as a picture and said in a sentence."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from labkit.viz.figures import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Look(Protocol):
    """What was found at one stop."""

    def sentence(self) -> str: ...


L = TypeVar("L", bound=Look)


class Dial(Generic[L]):
    """`slider` is any ipywidget with a value; `measure(value)` looks; `draw(looks)` shows all, the last one best."""

    def __init__(self, slider: Any, measure: Callable[[Any], L], draw: Callable[[list[L]], Figure]) -> None:
        import ipywidgets

        self.slider, self.measure, self.draw = slider, measure, draw
        self.looks: dict[Any, L] = {}
        self.view = ipywidgets.HTML()
        self.box = ipywidgets.VBox([slider, self.view, _keys()]).add_class("labkit-dial")
        slider.observe(lambda _: self.turn(), names="value")
        self.turn()

    def turn(self) -> None:
        """Measure where the slider stands, unless that was done before, and show it."""
        stop = self.slider.value
        found = self.looks.pop(stop, None) or self.measure(stop)
        self.looks[stop] = found  # last, because the last look is the one in the picture
        self.png = png(self.draw(list(self.looks.values())))
        source, says = base64.b64encode(self.png).decode(), escape(found.sentence())
        self.view.value = (
            f'<img src="data:image/png;base64,{source}" alt="{says}" style="max-width: 100%">'
            f'<p role="status">{says}</p>{self.more(found)}'
        )

    def more(self, found: L) -> str:
        """HTML below the sentence, where there is a kernel."""
        return ""

    def state(self) -> str:
        return self.looks[self.slider.value].sentence()

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The widget where there is a kernel; elsewhere the picture and the sentence."""
        live = self.box._repr_mimebundle_()
        live = live[0] if isinstance(live, tuple) else live
        static = {"text/plain": self.state(), "image/png": base64.b64encode(self.png).decode()}
        return {**live, **static}, {"image/png": {"alt": self.state()}}


# JupyterLab takes arrows and letters for itself, by its shortcuts and by a listener further up; a menu needs them.
KEEP_KEYS = """
export default { render({ el }) {
  const waiting = setInterval(() => {
    const box = el.closest(".labkit-dial");
    if (!box) return;
    clearInterval(waiting);
    box.dataset.lmSuppressShortcuts = "true";
    box.addEventListener("keydown", (event) => event.stopPropagation());
  }, 50);
  return () => clearInterval(waiting);
} };
"""


def _keys() -> Any:
    """A part of the box that nobody sees and that leaves the keys to it."""
    import anywidget

    class Keys(anywidget.AnyWidget):
        _esm = KEEP_KEYS

    return Keys()


def together(controls: Mapping[str, Any]) -> Any:
    """Several controls below each other as one, whose value is the tuple of theirs."""
    import ipywidgets
    import traitlets

    class Together(ipywidgets.VBox):
        value = traitlets.Tuple()

    group = Together(list(controls.values()))

    def gather(_: Any = None) -> None:
        group.value = tuple(control.value for control in controls.values())

    gather()
    for control in controls.values():
        control.observe(gather, names="value")
    return group
