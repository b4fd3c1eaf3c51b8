"""The right answer to each image: its folder's class or a line of a CSV, as a number of the model's outputs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from labkit.data.batch import ImageSet
from labkit.errors import LabkitError

ANY = 10**9  # more classes than there are
ONE = (
    "All images have the same label, which any image alike has too: shares are of agreement with the untouched model, "
    "not of accuracy."
)


def right_answers(test: ImageSet, labels: str, classes: int) -> tuple[Tensor | None, str]:
    """(the label of each image, or None; why there are none); 0 classes: it has no head, and any labels will do."""
    if not labels and test.labels is None:
        return None, "The images have no labels: shares are of agreement with the untouched model, not of accuracy."
    if not classes:
        truth = from_csv(Path(labels), test, ANY) if labels else test.labels
        assert truth is not None
        kinds, numbers = truth.unique(return_inverse=True)
        return (numbers, "") if len(kinds) > 1 else (None, ONE)
    if labels:
        return from_csv(Path(labels), test, classes), ""
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
        if len(line) != 2 or not line[1].strip().isdecimal() or len(line[1]) > 9 or int(line[1]) >= classes:
            if number == 1:  # a heading
                continue
            raise LabkitError(
                f"Line {number} of {path.name} is {','.join(line)[:80]!r}; expected a file name and a class from 0 to "
                f"{classes - 1}."
            )
        name, answer = line[0].strip(), int(line[1])
        if known.setdefault(name, answer) != answer:
            raise LabkitError(
                f"{path.name} says both {known[name]} and {answer} of {name!r}; keep one of the two lines."
            )
    if test.labels is not None:
        raise LabkitError("The images lie in folders by class; give either class folders or a CSV of labels.")
    if missing := [name for name in test.names if name not in known]:
        raise LabkitError(f'{path.name} has no label for {len(missing)} of the images, the first is "{missing[0]}".')
    return torch.tensor([known[name] for name in test.names])
