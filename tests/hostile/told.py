"""What is typed: names of models and folders, parameters of the audit and of lessons, files of parameters, --out."""

from __future__ import annotations

import functools
import json
import os
import random
from pathlib import Path
from unittest import mock

import papermill

from labkit import choices, paths, report
from labkit.audit import run
from labkit.audit.subject import subject
from tests.hostile import Cases
from tests.hostile.words import NAMES, NUMBERS, WORDS, spoil

AUDIT = paths.NOTEBOOKS / "reports" / run.NOTEBOOK
MODELS = ("timm:", "shapes-vit ", "SHAPES-VIT", "shapes-vit.safetensors", "a" * 5000)
OF_THE_AUDIT = ("model", "weights", "images", "labels", "limit", "batch", "tolerance", "seed", "device", "fast", "out")
LESSONS = {
    "02_images_to_tokens": ("image", "device", "fast"),
    "07_token_pruning": ("seed", "model", "fast"),
    "11_one_budget": ("budget", "patch", "mixer"),
}


def names(folder: Path, count: int) -> Cases:
    for seed in range(count):
        dice = random.Random(seed)
        told = dice.choice([*NAMES, *WORDS, *MODELS])
        field = dice.choice(["model", "images", "labels", "weights"])
        how = {"model": "vit_tiny_patch16_224"} if field == "weights" and told else {}
        yield lambda field=field, told=told, how=how: subject(**({"limit": 2} | how | {field: told}))


def inspected() -> mock._patch:
    """Every case asks the same notebook for its parameters; to read it takes longer than the case."""
    return mock.patch.object(papermill, "inspect_notebook", functools.cache(papermill.inspect_notebook))


def parameters(folder: Path, count: int) -> Cases:
    known = (*OF_THE_AUDIT, "magic")
    with inspected():
        for seed in range(count):
            dice = random.Random(seed)
            asked = [dice.choice(known) for _ in range(dice.choice([1, 1, 3]))]
            values = {name: dice.choice([*NUMBERS, *WORDS, *NAMES]) for name in asked}
            yield lambda values=values: run.refuse(report.parameters(AUDIT, values))


def lessons(folder: Path, count: int) -> Cases:
    """Typed and in a file at once."""
    with inspected():
        for seed in range(count):
            dice = random.Random(seed)
            name = dice.choice(sorted(LESSONS))
            typed = {dice.choice(LESSONS[name]): dice.choice([*NUMBERS, *WORDS])} if dice.random() < 0.7 else {}
            parameter = dice.choice([*LESSONS[name], "seed", "magic"])
            text = json.dumps({parameter: dice.choice([1, 1.5, True, None, [], "x"])})
            text = spoil(text, dice, dice.choice([0, 0, 1, 3]))
            file = folder / f"{seed}.json"
            file.write_bytes(text.encode("utf-16" if dice.random() < 0.1 else "utf-8"))
            source = report.find(name)
            yield lambda source=source, typed=typed, file=file: report.parameters(
                source, typed, choices.read_object(file)
            )


def outs(folder: Path, count: int) -> Cases:
    """Where a report goes: `prepare` says so when it cannot, and a second report needs --force."""
    below = folder / "below"
    (below / "taken" / "audit.html").mkdir(parents=True)
    (below / "full").mkdir()
    (below / "full" / "audit.json").write_text("{}")
    (below / "file").write_text("mine")
    os.symlink(below / "itself", below / "itself")
    os.symlink(below / "nowhere", below / "dead")
    places = [*NAMES, "itself", "dead", "file", "file/below", "taken", "full"]
    places += ["x" * 300, "/".join("x" * 2100), "/proc/x"]
    for seed in range(count):
        dice = random.Random(seed)
        place, force = below / dice.choice(places), dice.random() < 0.5
        targets = [place / f"audit.{kind}" for kind in ("ipynb", "html", "json")]
        yield lambda targets=targets, force=force: report.prepare(AUDIT, *targets, force=force)
        assert (below / "file").read_text() == "mine"
