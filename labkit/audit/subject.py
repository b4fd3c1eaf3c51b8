"""What is audited: a model, images it has to answer for, and what counts as a right answer.

With labels a right answer is the label, and shares are called accuracy. Without, it is what the untouched model says,
and shares are called agreement: nobody knows whether the untouched model was right.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from labkit import data, zoo
from labkit.audit.index import Index
from labkit.audit.labels import right_answers
from labkit.audit.network import Network, network
from labkit.data.batch import ImageSet
from labkit.errors import LabkitError
from labkit.vit import ViT

SMALL = 128  # pixels of a side, up to which a thousand images take no longer than 64 of 224 pixels
NO_HEAD = (
    "This model has no head: its answer to an image is the most similar of the other test images, as the untouched "
    "model sees those, or the class of that image where there are labels."
)


@dataclass(frozen=True)
class Subject:
    """The model's `scores` of the test images are its answers; `inputs` and `calibration` are normalised for it."""

    name: str
    model: nn.Module  # ours where it is a plain ViT, else timm's; in eval mode
    plain: str  # empty, or the sentence that says which part is not a plain ViT's
    images: ImageSet  # pixels in [0, 1], as they are shown
    inputs: Tensor
    calibration: Tensor  # other images than those tested
    truth: Tensor  # (n,) the right answers
    labelled: bool
    mean: Tensor  # of the pixels the weights were trained with
    std: Tensor
    index: Index | None = None  # of a model without a head
    batch: int = 8  # images that are timed at once
    notes: tuple[str, ...] = ()  # what the reader of the page has to know about the images
    asked: dict[str, Any] = field(default_factory=dict)  # the arguments of `subject` that made it, without defaults

    @property
    def word(self) -> str:
        return "accuracy" if self.labelled else "agreement"

    @property
    def vit(self) -> ViT:
        if not isinstance(self.model, ViT):
            raise LabkitError(self.plain)
        return self.model

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.inputs.shape[-2:]
        return int(height), int(width)

    def to(self, device: torch.device) -> Subject:
        tensors = ("inputs", "calibration", "truth", "mean", "std")
        moved: dict[str, Any] = {name: getattr(self, name).to(device) for name in tensors}
        index = self.index and self.index.to(device)
        return replace(self, model=self.model.to(device), images=self.images.to(device), index=index, **moved)

    def normal(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1] as the model reads them."""
        return normalised(pixels, self.mean, self.std)

    def right(self, model: nn.Module | None = None, inputs: Tensor | None = None) -> Tensor:
        """(n,) bool: which test images the model answers rightly."""
        out = logits(model or self.model, self.inputs if inputs is None else inputs)
        return self.scores(out).argmax(dim=1) == self.truth

    def scores(self, out: Tensor) -> Tensor:
        """(n, answers): how much speaks for each answer, from what a model says of the first n test images."""
        return out if self.index is None else self.index.scores(out)


def normalised(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return (pixels - mean[:, None, None]) / std[:, None, None]


@torch.inference_mode()
def logits(model: nn.Module, inputs: Tensor, batch: int = 32) -> Tensor:
    return torch.cat([model(part) for part in inputs.split(batch)])


def subject(
    model: str = "shapes-vit",
    weights: str = "",
    images: str = "",
    labels: str = "",
    limit: int = 0,
    seed: int = 0,
    batch: int = 8,
    fast: bool = False,
) -> Subject:
    """Everything the sections need, read and checked before any of them runs; `limit` 0 is as many as time allows."""
    asked: dict[str, Any] = {"model": model, "weights": weights, "images": images, "labels": labels}
    asked |= {"limit": limit, "seed": seed, "batch": batch, "fast": fast}
    if limit < 0 or batch < 1:
        raise LabkitError(f"limit={limit}, batch={batch}; expected a limit of 0 or more and a batch of 1 or more.")
    net = network(model, weights)
    limit = limit or (64 if net.size > SMALL else 320 if fast else 1000)
    test, calibration, notes = pictures(model, images, net, limit, seed)

    inputs = normalised(test.images, net.mean, net.std)
    out = logits(net.model, inputs)
    if not out.isfinite().all():
        raise LabkitError(f"{model} answers with NaN or infinite numbers: its weights are damaged; fetch them again.")
    truth, why = right_answers(test, labels, 0 if net.headless else out.shape[1])
    labelled = truth is not None
    index = Index.of(out, truth) if net.headless else None
    if truth is None:
        truth = (out if index is None else index.scores(out)).argmax(dim=1)
    return Subject(
        name=model,
        model=net.model,
        plain=net.plain,
        images=test,
        inputs=inputs,
        calibration=normalised(calibration, net.mean, net.std),
        truth=truth,
        labelled=labelled,
        index=index,
        batch=batch,
        mean=net.mean,
        std=net.std,
        notes=(*([NO_HEAD] if net.headless else []), *notes, *([why] if why else []), *test.skipped),
        asked={name: value for name, value in asked.items() if value != signature(subject).parameters[name].default},
    )


def pictures(name: str, path: str, net: Network, limit: int, seed: int) -> tuple[ImageSet, Tensor, list[str]]:
    """(test images, calibration images, what to know about them)."""
    if name in zoo.SPECS and not path:
        return *held_out(name, limit, seed), []
    around = int(net.size / net.crop)  # rounded down, as timm does it
    if path:
        return split(centre(data.folder(path, around, limit + calibration_size(limit), seed), net.size), limit)
    shown = centre(data.samples(around), net.size)
    note = "No images were named: these are the ten pictures that ship with labkit, and none of them has a label."
    return shown[: min(limit, len(shown))], shown.images, [note]


def held_out(name: str, limit: int, seed: int) -> tuple[ImageSet, Tensor]:
    """Images that a shipped model has not been trained on, and others for calibration."""
    if name == "digits-vit":
        found = data.digits("val")
        drawn = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))[:limit]
        return found[drawn], data.digits("train").images[:64]
    return data.shapes("test", limit, seed=seed), data.shapes("train", 64, start=10_000_000).images


def centre(images: ImageSet, size: int) -> ImageSet:
    """The square in the middle."""
    start = (images.images.shape[-1] - size) // 2
    return replace(images, images=images.images[..., start : start + size, start : start + size])


def calibration_size(limit: int) -> int:
    return min(64, max(8, limit // 4))


def split(found: ImageSet, limit: int) -> tuple[ImageSet, Tensor, list[str]]:
    """Images for calibration are not tested, unless there are too few to spare any."""
    spare = min(calibration_size(limit), len(found) // 4)
    if len(found) < 16:
        note = f"{len(found)} images are too few to set any aside: bits are calibrated on the images that are tested."
        return found[:limit], found.images, [note]
    rest = len(found) - spare
    return found[: min(rest, limit)], found.images[rest:], []


def subset(found: Subject, count: int) -> Subject:
    """The first `count` test images: what is slow needs no more."""
    return replace(found, images=found.images[:count], inputs=found.inputs[:count], truth=found.truth[:count])
