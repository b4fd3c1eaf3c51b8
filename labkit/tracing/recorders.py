"""What a pass leaves behind: our own ViT hands it over, any other model is watched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from labkit.errors import LabkitError
from labkit.evidence import Step
from labkit.tracing.capture import Call, Watch
from labkit.tracing.keeping import Budget, Kept, stacked
from labkit.tracing.layouts import Arrange, Layer, prefix_names, read
from labkit.tracing.trace import Own, Trace, bytes_of


class Recorder:
    """Keeps the maps of the chosen layers of one batch after another."""

    def __init__(self, model: Any, budget: Budget, chosen: list[int] | None, grads: bool) -> None:
        self.model, self.budget, self.chosen, self.grads = model, budget, chosen, grads
        self.layers: dict[int, Layer] = {}
        self.kept: dict[int, Kept] = {}
        self.graph: dict[int, list[Tensor]] = {}
        self.arrange: dict[int, Arrange] = {}
        self.ran = 0

    def keep(self, number: int, layer: Layer, shape: tuple[int, ...], batch: int, attn: Any, arrange: Arrange) -> None:
        """Keep one layer of one batch, when it was asked for and fits; `attn()` gives the map."""
        self.ran = max(self.ran, number + 1)
        if self.chosen is not None and number not in self.chosen:
            return
        self.layers.setdefault(number, layer)
        self.arrange.setdefault(number, arrange)
        if self.budget.admits(number, shape, batch):
            self.kept.setdefault(number, Kept(self.budget.keep)).add(arrange(attn()))

    def check(self) -> None:
        for number in self.chosen or []:
            if not 0 <= number < self.ran:
                raise LabkitError(f"There is no layer {number}; {self.ran} attended, counted from 0.")
        if self.chosen == []:
            raise LabkitError("layers=[] chooses no layer; leave it out to record them all.")

    def found(self) -> dict[str, Any]:
        """The fields that every trace has."""
        self.check()
        numbers = sorted(self.layers)
        return {
            "model_name": name_of(self.model),
            "layers": [self.layers[i] for i in numbers],
            "kept": [self.kept[i] for i in numbers if i in self.kept],
            "arrange": [self.arrange[i] for i in numbers],
            "skipped": self.ran - len(numbers),
            "graph": [self.graph[i] for i in numbers] if self.grads else None,
        }


class OwnRecorder(Recorder):
    """A labkit.ViT hands over what it computed."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.tokens: list[list[Tensor]] = []
        self.maps: list[list[Tensor | None]] = []
        self.sizes: list[list[Tensor | None]] = []
        self.entries: list[list[Tensor | None]] = []
        self.blocks: list[int] = []
        self.patches = (0, 0)

    def run(self, images: Tensor) -> Tensor:
        inside: dict[int, list[Tensor]] = {}

        def see(call: Call) -> None:
            inside.setdefault(int(call.name.split(".")[1]), []).append(call.attn())

        if self.grads:
            with Watch(self.model, see, graph=True):
                seen = self.model.observe(images)
        else:
            seen = self.model.observe(images)
        self.patches = seen.grid
        self.blocks = [i for i, step in enumerate(seen.steps) if step.evidence is not None]
        for number, block in enumerate(self.blocks):
            self.keep_block(number, block, seen.steps[block], inside.get(block))
        self.tokens.append([t.detach().cpu() for t in (seen.embedded, *(step.x for step in seen.steps))])
        entry, *maps = [None if how is None else how.detach().float().cpu() for how in seen.maps]
        self.entries.append([entry])
        self.maps.append(maps)
        self.sizes.append([None if step.sizes is None else step.sizes.detach().cpu() for step in seen.steps])
        beside = sum(bytes_of(parts[-1]) for parts in (self.tokens, self.maps, self.sizes))
        self.budget.beside = beside // len(images) * self.budget.images
        return seen.logits

    def keep_block(self, number: int, block: int, step: Step, inside: list[Tensor] | None) -> None:
        evidence, prefix = step.evidence, self.model.prefix
        assert evidence is not None
        b, heads, n, _ = evidence.q.shape
        names = prefix_names(self.model, prefix)
        layer = Layer(f"blocks.{block}.attn", "self", heads, self.patches, self.patches, prefix, prefix, names)
        self.graph[number] = inside or []
        attn = evidence.attention if inside is None else lambda: torch.cat(inside, dim=1)
        self.keep(number, layer, (b, heads, n, evidence.k.shape[2]), b, attn, lambda raw: raw)

    def trace(self, images: Tensor, logits: Tensor) -> Trace:
        def joined(parts: list[list[Any]]) -> list[Any]:
            return [None if step[0] is None else stacked(step) for step in zip(*parts, strict=True)]

        fields = self.found()
        blocks = [self.blocks[i] for i in sorted(self.layers)]
        for i, depth in enumerate(zip(*self.sizes, strict=True)):
            if any(sizes is not None for sizes in depth):  # then the batches in which all are 1 say so, too
                for tokens, sizes in zip(self.tokens, self.sizes, strict=True):
                    sizes[i] = tokens[i + 1].new_ones(tokens[i + 1].shape[:2]) if sizes[i] is None else sizes[i]
        (entry,) = joined(self.entries)
        own = Own(joined(self.tokens), joined(self.maps), joined(self.sizes), blocks, self.model.prefix, entry)
        return Trace(images=images, logits=logits, patches=self.patches, own=own, **fields)


class Watcher(Recorder):
    """Any other model is watched from outside."""

    def run(self, images: Tensor) -> Any:
        number = -1

        def see(call: Call) -> None:
            nonlocal number
            number += 1
            layer, arrange = read(call, self.model, len(images), (images.shape[-2], images.shape[-1]))
            self.keep(number, layer, call.shape, len(images), call.attn, arrange)
            if self.grads:
                self.graph[number] = [call.attn()]

        with Watch(self.model, see, graph=self.grads):
            return self.model(images)

    def trace(self, images: Tensor, logits: Tensor) -> Trace:
        layers = self.layers.values()
        grids = [grid for layer in layers for grid in (layer.grid, layer.key_grid)]
        finest = max(grids, key=lambda g: g[0] * g[1], default=(0, 0))
        return Trace(images=images, logits=logits, patches=finest, **self.found())


def name_of(model: Any) -> str:
    """timm's name of the architecture, else the name of the class."""
    config = getattr(model, "pretrained_cfg", None)
    name = config.get("architecture") if isinstance(config, dict) else None
    return name or type(model).__name__
