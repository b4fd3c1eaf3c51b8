"""See where every patch looks: click or press the arrows in a notebook, in one HTML file, or set the traits in code.

One widget, five views of a trace: on the image, all heads, tokens through depth, two models compared, heads silenced.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from torch import Tensor, nn

from labkit.data.batch import ImageSet
from labkit.errors import LabkitError, closest
from labkit.tracing.record import trace
from labkit.tracing.trace import Trace
from labkit.viz import page, still
from labkit.viz.explorer_data import LIMIT, ImageMaps
from labkit.viz.explorer_outcome import Outcome, caption, picture, verdict
from labkit.viz.explorer_pack import answer, pack
from labkit.viz.explorer_words import CHOICES, sentence

VIEWS = ("overlay", "grid", "film", "compare", "ablate")
STATE = ("view", "layer", "head", "query", "direction", "image", "step", "opacity", "scale", "sort", "silenced")


class Explorer(anywidget.AnyWidget):
    """`Explorer(model, images)` or `Explorer(trace)`; of an ImageSet the masks and names are shown too.

    `other` is a second model or trace of the same images, for the compare view; `titles` names the two.
    """

    _esm = Path(__file__).with_name("explorer.js").read_text(encoding="utf-8")
    _css = Path(__file__).with_name("explorer.css").read_text(encoding="utf-8")
    data = traitlets.Bytes().tag(sync=True)
    other = traitlets.Bytes().tag(sync=True)
    titles: Any = traitlets.List().tag(sync=True)  # (number, title) of each image
    outcome = traitlets.Dict().tag(sync=True)  # what silencing heads does to the classes
    view = traitlets.Unicode("overlay").tag(sync=True)
    layer = traitlets.Int(0).tag(sync=True)
    head = traitlets.Union([traitlets.Int(), traitlets.Unicode()], default_value="mean").tag(sync=True)
    query = traitlets.Union([traitlets.Unicode(), traitlets.Tuple()], default_value="").tag(sync=True)
    direction = traitlets.Unicode("looks at").tag(sync=True)
    image = traitlets.Int(0).tag(sync=True)
    step = traitlets.Int(0).tag(sync=True)
    opacity = traitlets.Float(0.75).tag(sync=True)
    scale = traitlets.Unicode("map").tag(sync=True)
    sort = traitlets.Unicode("head").tag(sync=True)
    silenced: Any = traitlets.List().tag(sync=True)  # (layer, head) pairs

    def __init__(
        self,
        model: nn.Module | Trace,
        images: Tensor | ImageSet | None = None,
        *,
        other: nn.Module | Trace | None = None,
        titles: Sequence[str] | None = None,
        limit: int = LIMIT,
        **state: Any,
    ) -> None:
        if unknown := sorted(set(state) - set(STATE)):
            raise LabkitError(
                f"An explorer has no {unknown[0]}; it has {', '.join(STATE)}.{closest(unknown[0], STATE)}"
            )
        pixels = images.images if isinstance(images, ImageSet) else images
        self.traces = _traces(model, other, pixels)
        first = self.traces[0]
        self.about = images if isinstance(images, ImageSet) else ImageSet(first.images if pixels is None else pixels)
        self.names = list(titles or dict.fromkeys(side.model_name for side in self.traces))
        if len(self.names) != len(self.traces):
            self.names = ["first", "second"]
        self.limit, self.maps = limit, self._maps(0, limit)
        self.ablation = Outcome(model, first, self.about.names) if isinstance(model, nn.Module) else None
        middle = {"layer": len(first.layers) // 2, "query": tuple(n // 2 for n in first.patches)}
        super().__init__(**{**middle, **state})
        self.titles = [(i, caption(self.about, i)) for i in range(len(self.about))]
        self._show()
        self.observe(lambda _: self._show(), names=["image"])
        self.observe(lambda _: setattr(self, "outcome", self._outcome(self.image)), names=["silenced"])
        self.on_msg(self._answer)

    def state(self) -> dict[str, Any]:
        """What is shown, as plain values; `Explorer(trace, **state)` shows it again."""
        return {name: getattr(self, name) for name in STATE}

    def describe(self) -> str:
        """What is shown, in a sentence; the page says the same words."""
        return sentence(self.maps, self.outcome, self.state())

    def to_png(self, path: str | Path) -> Path:
        """What is shown, as a picture."""
        Path(path).write_bytes(self._png())
        return Path(path)

    def to_html(self, path: str | Path, images: Sequence[int] | None = None, title: str = "") -> Path:
        """One file that works without a kernel and offline: with these images, or with as many as fit in 16 MB."""
        part = self.embedded(images)
        title = title or f"Attention of {' and '.join(self.names)}"
        Path(path).write_text(page.document(title, part.body, part.style, part.script), encoding="utf-8")
        return Path(path)

    def embedded(self, images: Sequence[int] | None = None) -> page.Embedded:
        """The same as a part of a larger page; one page holds one explorer."""
        numbers = page.chosen(images, self.image, len(self.about), sum(side.nbytes for side in self.maps))
        packs = [[pack(side) for side in self._maps(number, page.MOST)] for number in numbers]
        outcomes = [self._outcome(number) for number in numbers]
        state = {**self.state(), "titles": [self.titles[number] for number in numbers]}
        return page.embed(self._esm, self._css, state, list(zip(numbers, packs, outcomes, strict=True)))

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The widget where there is a kernel; elsewhere the picture and the sentence."""
        live, words = super()._repr_mimebundle_(), self.describe()
        static = {"text/plain": words, "image/png": base64.b64encode(self._png()).decode()}
        return {**(live[0] if live else {}), **static}, {"image/png": {"alt": words}}

    def _png(self) -> bytes:
        return still.png(self.maps, self.outcome, self.state(), self.describe())

    def _maps(self, image: int, limit: int) -> list[ImageMaps]:
        mask = None if self.about.masks is None else self.about.masks[image].cpu().numpy()
        pixels, sides = picture(self.about.images[image]), list(zip(self.traces, self.names, strict=True))
        says = caption(self.about, image) + "".join(verdict(self.about, image, side, name) for side, name in sides)
        return [ImageMaps(side, image, pixels, mask, name, says, limit) for side, name in sides]

    def _show(self) -> None:
        """Send the maps of the current image."""
        if self.maps[0].image != self.image:
            self.maps = self._maps(self.image, self.limit)
        data, *other = (pack(side) for side in self.maps)
        self.outcome = self._outcome(self.image)
        with self.hold_sync():
            self.other, self.data = b"".join(other), data

    def _outcome(self, image: int) -> dict[str, Any]:
        return {} if self.ablation is None else self.ablation(image, self.silenced)

    def _answer(self, _: Any, content: Any, buffers: Any) -> None:
        """The browser asks for rows that were too large to send with all others."""
        if isinstance(content, dict) and content.get("ask") == "rows" and content["image"] == self.image:
            query = content["query"] if isinstance(content["query"], str) else tuple(content["query"])
            self.send({"rows": "answer"}, [answer(side, query, content["direction"]) for side in self.maps])

    @traitlets.validate("view", *CHOICES)
    def _chosen(self, proposal: Any) -> str:
        name, value = proposal["trait"].name, proposal["value"]
        known = CHOICES.get(name, VIEWS)
        if value not in known:
            raise LabkitError(f'{name}="{value}" is unknown; choose one of {", ".join(known)}.')
        if value == "compare" and len(self.traces) < 2:
            raise LabkitError("Comparing needs a second trace: write Explorer(a, images, other=b).")
        if value == "ablate" and self.ablation is None:
            raise LabkitError("Silencing heads needs the model, not a trace of it: write Explorer(model, images).")
        return value

    @traitlets.validate("layer", "image", "step")
    def _in_range(self, proposal: Any) -> int:
        name, value = proposal["trait"].name, proposal["value"]
        steps = 1 if self.maps[0].film is None else len(self.maps[0].film)
        count = {"layer": max(1, len(self.traces[0].layers)), "image": len(self.about), "step": steps}[name]
        if not 0 <= value < count:
            raise LabkitError(f"There is no {name} {value}; there are {count}, counted from 0.")
        return value

    @traitlets.validate("head")
    def _is_head(self, proposal: Any) -> int | str:
        head, most = proposal["value"], max((layer.heads for layer in self.traces[0].layers), default=1)
        if head in ("mean", "max", "rollout") or (isinstance(head, int) and 0 <= head < most):
            return head
        raise LabkitError(f'There is no head {head!r}; choose 0 to {most - 1}, "mean", "max" or "rollout".')

    @traitlets.validate("query")
    def _is_query(self, proposal: Any) -> str | tuple[int, int]:
        query, (h, w), names = proposal["value"], self.traces[0].patches, self.maps[0].names()
        if query in names:
            return query
        if isinstance(query, tuple) and len(query) == 2 and 0 <= query[0] < max(h, 1) and 0 <= query[1] < max(w, 1):
            return int(query[0]), int(query[1])
        known = "".join(f', "{name}"' for name in names)
        raise LabkitError(f"There is no patch {query!r}; choose (row, column) within {h} x {w}{known}.")

    @traitlets.validate("silenced")
    def _are_heads(self, proposal: Any) -> list[list[int]]:
        pairs, layers = [[int(layer), int(head)] for layer, head in proposal["value"]], self.traces[0].layers
        for layer, head in pairs:
            if not (0 <= layer < len(layers) and 0 <= head < layers[layer].heads):
                raise LabkitError(f"There is no head {head} in layer {layer}; both count from 0.")
        return pairs


def _traces(model: nn.Module | Trace, other: nn.Module | Trace | None, images: Tensor | None) -> list[Trace]:
    """The trace, or the two that are compared, of the same images."""
    if images is None and isinstance(model, Trace):
        images = model.images
    if images is None:
        raise LabkitError("An explorer of a model needs images: write Explorer(model, images).")
    sides = [side if isinstance(side, Trace) else trace(side, images) for side in (model, other) if side is not None]
    for side in sides:
        if len(side.images) != len(images):
            raise LabkitError(f"{len(images)} images for a trace of {len(side.images)}; show the traced images.")
    return sides
