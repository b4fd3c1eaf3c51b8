"""What is audited: a model, images it has to answer for, and what counts as a right answer.

With labels a right answer is the label, and shares are called accuracy. Without, it is what the untouched model says,
and shares are called agreement: nobody knows whether the untouched model was right.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labkit import convert, data, zoo
from labkit.data.batch import ImageSet
from labkit.errors import LabkitError, closest
from labkit.vit import ViT

SHAPES = ("shapes-vit", "shapes-vit-gap", "shapes-vit-flexi")


@dataclass(frozen=True)
class Subject:
    """`logits(model)` are the answers to the test images; `inputs` and `calibration` are normalised for the model."""

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
    batch: int = 8  # images that are timed at once
    notes: tuple[str, ...] = ()  # what the reader of the page has to know about the images

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
        return replace(self, model=self.model.to(device), images=self.images.to(device), **moved)

    def normal(self, pixels: Tensor) -> Tensor:
        """Pixels in [0, 1] as the model reads them."""
        return normalised(pixels, self.mean, self.std)

    def right(self, model: nn.Module | None = None, inputs: Tensor | None = None) -> Tensor:
        """(n,) bool: which test images the model answers rightly."""
        return logits(model or self.model, self.inputs if inputs is None else inputs).argmax(dim=1) == self.truth


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
) -> Subject:
    """Everything the sections need, read and checked before any of them runs; `limit` 0 is as many as time allows."""
    if limit < 0 or batch < 1:
        raise LabkitError(f"limit={limit}, batch={batch}; expected a limit of 0 or more and a batch of 1 or more.")
    net, plain, mean, std, size = network(model, weights)
    limit = limit or (64 if size > 128 else 320)
    test, calibration, notes = pictures(model, images, size, limit, seed)

    inputs = normalised(test.images, mean, std)
    answers = logits(net, inputs)
    if not answers.isfinite().all():
        raise LabkitError(f"{model} answers with NaN or infinite numbers: its weights are damaged; fetch them again.")
    truth, why = right_answers(test, labels, answers.shape[1])
    labelled = truth is not None
    return Subject(
        name=model,
        model=net,
        plain=plain,
        images=test,
        inputs=inputs,
        calibration=normalised(calibration, mean, std),
        truth=answers.argmax(dim=1) if truth is None else truth,
        labelled=labelled,
        batch=batch,
        mean=mean,
        std=std,
        notes=(*notes, *([why] if why else []), *test.skipped),
    )


def network(name: str, weights: str) -> tuple[nn.Module, str, Tensor, Tensor, int]:
    """(model, why it is not plain or "", mean and std of its pixels, side of its images)."""
    as_is = torch.zeros(3), torch.ones(3)
    if name in zoo.SPECS or name.endswith(".safetensors"):
        if weights:
            raise LabkitError(f"{name} brings its own weights; leave --weights out, or name a model of timm.")
        net = zoo.load(name).eval()
        return net, "", *as_is, side(net)
    import timm

    timm_name = name.removeprefix("timm:")
    if not timm.is_model(timm_name.partition(".")[0]):
        known = [*zoo.SPECS, *timm.list_models()]
        raise LabkitError(
            f'The model "{name}" is unknown; expected one of {", ".join(zoo.SPECS)}, a name of timm, or a .safetensors '
            f"file that labkit.save wrote.{closest(timm_name, known)}"
        )
    theirs = convert.create(timm_name, not weights, weights or None, {}).eval()
    if bad := [key for key, value in theirs.state_dict().items() if not torch.isfinite(value.double()).all()]:
        raise LabkitError(
            f"{len(bad)} tensors of {weights or name} hold NaN or infinite numbers, the first is {bad[0]}."
        )
    config: Any = theirs.pretrained_cfg
    mean, std = torch.tensor(config["mean"]), torch.tensor(config["std"])
    try:
        return ViT.from_timm(theirs).eval(), "", mean, std, int(config["input_size"][-1])
    except LabkitError as reason:
        return theirs, str(reason), mean, std, int(config["input_size"][-1])


def side(model: ViT) -> int:
    proj: Any = getattr(model.patch_embed, "proj", None)
    return int(model.grid[0] * proj.stride[0])


def pictures(name: str, path: str, size: int, limit: int, seed: int) -> tuple[ImageSet, Tensor, list[str]]:
    """(test images, calibration images, what to know about them)."""
    if path:
        found = data.folder(path, size, limit + calibration_size(limit))
        return split(found, limit)
    if name in SHAPES:
        return data.shapes("test", limit, seed=seed), data.shapes("train", 64, start=10_000_000).images, []
    shown = data.samples(size)
    note = "No images were named: these are the ten pictures that ship with labkit, and none of them has a label."
    return shown[: min(limit, len(shown))], shown.images, [note]


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


def right_answers(test: ImageSet, labels: str, classes: int) -> tuple[Tensor | None, str]:
    """(the label of each image, or None; why there are none)."""
    if labels:
        return from_csv(Path(labels), test, classes), ""
    if test.labels is None:
        return None, "The images have no labels: shares are of agreement with the untouched model, not of accuracy."
    known = class_numbers(test.names, classes)
    if known is None:
        return None, (
            f"The {len(test.names)} folder names are not the {classes} classes of the model (numbers, WordNet ids, or "
            "one folder for each class): shares are of agreement with the untouched model, not of accuracy."
        )
    return torch.tensor(known)[test.labels], ""


def class_numbers(names: Sequence[str], classes: int) -> list[int] | None:
    """Which output of the model each folder is: by number, by WordNet id, or by order when there are as many."""
    if all(name.isdecimal() and int(name) < classes for name in names):
        return [int(name) for name in names]
    if classes == 1000:
        from timm.data import ImageNetInfo

        ids = {name: i for i, name in enumerate(ImageNetInfo().label_names())}
        if all(name in ids for name in names):
            return [ids[name] for name in names]
    return list(range(classes)) if len(names) == classes else None


def from_csv(path: Path, test: ImageSet, classes: int) -> Tensor:
    """A line for each image: its file name, and the number of its class."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [line for line in csv.reader(file) if line]
    except (OSError, ValueError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise LabkitError(
            f"The labels {path} cannot be read ({why}); expected a CSV: file name, class number."
        ) from None
    known: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if len(line) != 2 or not line[1].strip().isdecimal() or int(line[1]) >= classes:
            if number == 1:  # a heading
                continue
            raise LabkitError(
                f"Line {number} of {path.name} is {','.join(line)[:80]!r}; expected a file name and a class from 0 to "
                f"{classes - 1}."
            )
        known[line[0].strip()] = int(line[1])
    if test.labels is not None:
        raise LabkitError("The images lie in folders by class; give either class folders or a CSV of labels.")
    if missing := [name for name in test.names if name not in known]:
        raise LabkitError(f'{path.name} has no label for {len(missing)} of the images, the first is "{missing[0]}".')
    return torch.tensor([known[name] for name in test.names])


def subset(found: Subject, count: int) -> Subject:
    """The first `count` test images: what is slow needs no more."""
    return replace(found, images=found.images[:count], inputs=found.inputs[:count], truth=found.truth[:count])
