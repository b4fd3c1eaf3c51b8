"""How each model that ships is made: its shape, its images, its loss and the recipe of its training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from labkit import data
from labkit.data.batch import ImageSet
from labkit.token_labels import token_label_loss
from labkit.train import Batches, Loss, Recipe, epochs


@dataclass(frozen=True)
class Spec:
    """All that is needed to make a shipped model again."""

    about: str
    architecture: dict[str, Any]
    recipe: Recipe
    batch: int
    batches: Callable[[int], Batches]  # batch size → batches
    held_out: Callable[[], ImageSet]
    loss: Loss | None = None  # None: cross-entropy of the labels
    start: str = ""  # a shipped model whose weights are the first ones; it reads pixels as they are
    patches: tuple[int, ...] = ()  # sizes of patches; every batch is read once with each of them


def _ramp(done: float) -> float:
    """The curriculum: from plain scenes to the full difficulty over the first 60 % of the run."""
    return min(1.0, done / 0.6)


def _shapes(batch: int) -> Batches:
    return lambda step, done: data.shapes("train", batch, start=step * batch, difficulty=_ramp(done))


def _more_shapes(batch: int) -> Batches:
    """Images that no training of `_shapes` has met, at full difficulty."""
    return lambda step, done: data.shapes("train", batch, start=1_000_000 + step * batch)


def _digits(batch: int) -> Batches:
    """Every digit is shifted by up to three pixels each time it is seen: 1,400 images are few."""
    source = epochs(data.digits("train"), batch)

    def at(step: int, done: float) -> ImageSet:
        plain = source(step, done)
        corners = torch.randint(0, 7, (2, len(plain)), generator=torch.Generator().manual_seed(step)).tolist()
        size, padded = plain.images.shape[-1], F.pad(plain.images, (3, 3, 3, 3))
        moved = [im[:, y : y + size, x : x + size] for im, y, x in zip(padded, *corners, strict=True)]
        return replace(plain, images=torch.stack(moved))

    return at


def _shapes_spec(about: str, **architecture: Any) -> Spec:
    return Spec(
        about,
        {"image_size": 64, "patch_size": 8, "classes": 10, "dim": 128, "depth": 6, "heads": 4} | architecture,
        Recipe(steps=7000, optimizer="muon", lr=3e-3, weight_decay=0.01, precision="bfloat16"),
        32,
        _shapes,
        lambda: data.shapes("test", 4000),
        token_label_loss,
    )


SPECS = {
    "shapes-vit": _shapes_spec("plain patches, class token: the default model of the course"),
    "shapes-vit-gap": _shapes_spec("the same with the mean of the patches in place of the class token", pool="avg"),
    "shapes-vit-flexi": replace(
        _shapes_spec("shapes-vit trained on with patches of 8 and of 16 pixels: see labkit.patching.flexi"),
        recipe=Recipe(steps=1800, optimizer="muon", lr=1.5e-3, weight_decay=0.01, precision="bfloat16"),
        batches=_more_shapes,
        start="shapes-vit",
        patches=(8, 16),
    ),
    "digits-vit": Spec(
        "a very small ViT that reads real handwriting",
        {"image_size": 32, "patch_size": 4, "classes": 10, "dim": 64, "depth": 4, "heads": 4},
        Recipe(steps=1500, optimizer="muon", lr=3e-3, weight_decay=0.05, ema=0.99),
        64,
        _digits,
        lambda: data.digits("val"),
    ),
}
