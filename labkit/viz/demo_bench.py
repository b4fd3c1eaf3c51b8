"""A bench on which any mechanism can be tried: what its arguments are called says what to give it.

Names mean the same everywhere in this kit (`x` tokens, `q k v`, `bits`, `keep`, `grid`), so a class can be made, and a
function be asked, from its signature alone. What they are given comes from a shipped model that looks at test images.

    bench = Bench()
    bench.make(Fuse)                          # Fuse(keep=0.5)
    bench.make(gptq)                          # a trained weight, rounded to 4 bits
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from labkit import zoo
from labkit.data.shapes import shapes
from labkit.errors import LabkitError
from labkit.evidence import Evidence
from labkit.quant.grids import Uniform
from labkit.quant.sensitivity import error_table
from labkit.quant.weights import layer_hessian, output_error, round_to_nearest
from labkit.tokens.words import learn_words
from labkit.vit import ViT

BLOCK = 2  # of the model, where a mechanism is tried
CHOICES = (2, 3, 4, 6, 8)  # bits
EXTRA: dict[type, set[str]] = {  # what else an annotation may call a thing of this type
    Tensor: {"Sequence"},
    int: {"float", "Size"},
    tuple: {"Grid", "Size", "Sequence"},
    list: {"Sequence"},
    range: {"Iterable", "Sequence"},
    str: {"Literal", "Method"},
    nn.Module: {"Callable"},
}


class Either(tuple):
    """Several things of one name, of different kinds."""


NUMBERS: dict[str, Any] = {
    "a": 1.2, "alpha": 0.5, "bits": Either((4, CHOICES)), "block": 64, "cells": (8, 8), "channels": 3, "count": 32,
    "depth": 2, "eta": 0.01, "h": 96, "hidden": 256, "idle_ratio": 0.75, "image_size": 64, "inner": 24,
    "inner_heads": 4, "keep": 0.5, "kernel": 7, "layers": range(BLOCK, 6), "length": 64, "m": 32, "method": "product",
    "padding": 3, "patch": 8, "patch_size": 8, "patches": 64, "prefix": 1, "q": 37, "r": Either((16, [8] * 6)),
    "samples": 32, "share": 0.8, "shift": 3, "side": 4, "size": (32, 32), "stride": 8,
    "target": (4, 4), "threshold": 0.1, "tile": 4, "to": (4, 4), "w": 224, "width": 0.1, "words": 16,
}  # fmt: skip

SMALL = {"image_size": 64, "patch_size": 8, "classes": 10, "dim": 128, "depth": 2, "heads": 4}


class Bench:
    """A trained model, test images, and what the middle of the model makes of one of them."""

    def __init__(self, model: str = "shapes-vit", images: int = 60, example: int = 3) -> None:
        self.model: ViT = zoo.load(model)
        self.data, self.example = shapes("test", images), example
        self.grid = self.model.grid

    @property
    def block(self) -> Any:
        return self.model.blocks[BLOCK]

    @property
    def image(self) -> Tensor:
        """(1, 3, h, w): the example."""
        return self.data.images[self.example : self.example + 1]

    @cached_property
    def stream(self) -> Tensor:
        """(1, prefix + patches, dim): the tokens in front of the middle block."""
        with torch.no_grad():
            return self.model.observe(self.image).steps[BLOCK - 1].x

    @cached_property
    def normed(self) -> Tensor:
        """The same as the block's attention reads them."""
        with torch.no_grad():
            return self.block.norm1(self.stream)

    @property
    def tokens(self) -> Tensor:
        """(1, patches, dim): those without the tokens before the patches."""
        return self.normed[:, self.model.prefix :]

    @cached_property
    def mixed(self) -> tuple[Tensor, Evidence]:
        """The tokens behind the block's attention, and what it knew."""
        with torch.no_grad():
            mixed, evidence = self.block.mix(self.stream, self.grid, None, self.model.prefix)
        return self.stream + mixed, evidence

    @property
    def evidence(self) -> Evidence:
        return self.mixed[1]

    @cached_property
    def inputs(self) -> Tensor:
        """(tokens, dim): what the block's MLP reads."""
        with torch.no_grad():
            return self.block.norm2(self.mixed[0])[0]

    @cached_property
    def things(self) -> dict[str, Any]:
        """All that a name may stand for beside numbers."""
        evidence, attn, linear = self.evidence, self.evidence.attention(), self.block.mlp.fc1
        weight, inputs, embed = linear.weight.detach(), self.inputs, self.model.patch_embed
        noise, sizes = torch.Generator().manual_seed(0), [layer.weight.numel() for layer in self.layers]
        fine = Uniform.of(inputs.amin(), inputs.amax(), 4)
        return {
            "attn": Either((self.block.attn, attn)), "block": self.block, "cls": self.normed[:, :1],
            "context": self.tokens,
            "cnn": nn.Conv2d(3, 16, 3, stride=2, padding=1), "conv": embed.proj, "dim": weight.shape[1],
            "embed": embed, "encode": embed, "errors": self.errors, "evidence": evidence,
            "features": Either((nn.Conv2d(3, 128, 5, padding=2), self.data.images)), "generator": noise,
            "grid": Either((self.grid, Uniform.of(weight.amin(1, keepdim=True), weight.amax(1, keepdim=True), 4))),
            "heads": self.block.attn.heads, "hessian": layer_hessian(inputs), "high": Either((1.0, inputs.amax(dim=0))),
            "images": self.data.images, "k": evidence.k, "linear": linear,
            "low": Either((0.0, inputs.amin(dim=0))), "metric": self.tokens, "mlp": self.block.mlp, "model": self.model,
            "noise": torch.rand(weight.shape[1], generator=noise).sub(0.5) * fine.scale, "norm": self.block.norm2,
            "patches": self.tokens, "patching": embed, "q": evidence.q, "quantizer": fine.round, "sizes": sizes,
            "tokens": self.tokens, "budget": Either((4.0 * sum(sizes), 9)), "v": evidence.v, "vit": self.model,
            "weight": weight,
            "words": learn_words(self.data.images[:20], 8, 64, noise, steps=5), "x": self.tokens,
        }  # fmt: skip

    @property
    def layers(self) -> list[Any]:
        blocks: Any = self.model.blocks
        return [layer for block in blocks for layer in (block.attn.qkv, block.mlp.fc1)]

    @cached_property
    def errors(self) -> Tensor:
        """(layers, choices): what rounding each weight costs, as if all of its inputs were equally large."""

        def error_of(i: int, bits: int) -> float:
            weight = self.layers[i].weight.detach()
            return float(output_error(weight, round_to_nearest(weight, bits), torch.eye(weight.shape[1])).sum())

        return error_table(error_of, len(self.layers), CHOICES)

    def arguments(self, function: Callable[..., Any]) -> dict[str, Any]:
        """Something of its name and kind for each argument that has to be given; a ViT is made small."""
        asked = inspect.signature(function).parameters
        given: dict[str, Any] = {}
        if inspect.isclass(function) and issubclass(function, ViT):
            passes_on = any(each.kind is each.VAR_KEYWORD for each in asked.values())
            given = {name: value for name, value in SMALL.items() if passes_on or name in asked}
        for name, each in asked.items():
            if each.default is not each.empty or each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
                continue
            offers = [*_several(self.things.get(name)), *_several(NUMBERS.get(name))]
            fitting = [offer for offer in offers if _suits(offer, str(each.annotation))]
            if not fitting:
                raise LabkitError(f"the bench has no {name}: {each.annotation}")
            given[name] = fitting[0]
        return given

    def make(self, thing: Any) -> Any:
        """An instance of a class (by its own `of` where it has one), or what a function gives back."""
        problem = ""
        for way in (getattr(thing, "of", thing), thing):
            try:
                given = self.arguments(way)
                if way is not thing and not given:
                    continue
                with torch.random.fork_rng(devices=[]):  # a demonstration must not reset the lesson's dice
                    torch.manual_seed(0)
                    made = way(**given)
            except LabkitError as refusal:
                problem = str(refusal)
                continue
            return made.eval() if isinstance(made, nn.Module) else made
        raise LabkitError(problem)


def _several(offer: Any) -> list[Any]:
    return list(offer) if isinstance(offer, Either) else [] if offer is None else [offer]


def _suits(offer: Any, annotation: str) -> bool:
    """Is this of the kind that is asked for? Annotations are texts here, such as "int | Sequence[float]"."""
    while "[" in annotation:  # what is in a sequence does not matter
        annotation = re.sub(r"\[[^][]*\]", "", annotation)
    names = {kind.__name__ for kind in type(offer).__mro__} - {"object"}
    for kind, more in EXTRA.items():
        names |= more if isinstance(offer, kind) else set()
    if callable(offer):
        names.add("Callable")
    return bool(names & set(re.findall(r"\w+", annotation)))
