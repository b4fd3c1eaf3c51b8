"""Folders and tables that are right, generated: every image must meet its own label, and no other one's."""

from __future__ import annotations

import html
import json
import random
from dataclasses import replace
from pathlib import Path

from PIL import Image
from torch import Tensor

from labkit.audit.audit import Audit, read
from labkit.audit.subject import Subject, subject
from tests.hostile import Cases
from tests.hostile.words import NAMES

MARKUP = ("<b>bold</b>", "<img src=x onerror=alert(1)>", '"><script>alert(1)</script>', "a&lt;b", "</title>", "{{7*7}}")


def paint(file: Path, answer: int, number: int) -> None:
    """One colour that says which class it is of, and which image."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (31, 23), (20 * answer, 3 * number, 7)).save(file)


def painted(pixels: Tensor) -> list[tuple[int, int]]:
    """(class, number) of each image, as its colour says."""
    red, green, _ = (255 * pixels[:, :, 9, 9]).round().int().unbind(dim=1)
    return list(zip((red // 20).tolist(), (green // 3).tolist(), strict=True))


def check(found: Subject, limit: int, broken: int) -> None:
    """Labels are the images' own; what is tested does not calibrate; what is broken is named and not counted."""
    tested, calibrating = painted(found.images.images), painted(found.calibration)
    assert [answer for answer, _ in tested] == found.truth.tolist() and found.word == "accuracy"
    assert len(found.inputs) == len(tested) <= limit and len(set(tested)) == len(tested)
    apart = not any("too few to set any aside" in note for note in found.notes)
    assert apart == (not set(tested) & set(calibrating)) and calibrating
    assert sum("broken" in note for note in found.notes) <= broken
    if len(tested) + len(calibrating) * apart < limit:
        assert sum("broken" in note for note in found.notes) == broken


def folders(place: Path, dice: random.Random) -> int:
    """Images in folders by class number; how many files among them are none."""
    numbers = dice.sample(range(10), dice.randrange(2, 6))
    count, broken = dice.randrange(3, 60), dice.randrange(4)
    for i in range(count):
        answer = numbers[i] if i < len(numbers) else dice.choice(numbers)
        paint(place / str(answer) / dice.choice(["", "below", "ü"]) / f"{dice.random()}.png", answer, i)
    for i in range(broken):
        (place / str(dice.choice(numbers[: min(count, len(numbers))])) / f"broken{i}.jpg").write_bytes(b"no image")
    return broken


def table(place: Path, dice: random.Random) -> int:
    """Images in one folder and a CSV beside it, its lines in any order, some of them of files that are not there."""
    count, broken = dice.randrange(1, 60), dice.randrange(4)
    lines = [f"gone{i}.png,3" for i in range(dice.randrange(3))]
    for i in range(count):
        answer, name = dice.randrange(10), f"{dice.choice(['', 'é ', 'a, b '])}{dice.random()}.png"
        paint(place / name, answer, i)
        lines.append(f'"{name}",{answer}')
    for i in range(broken):
        (place / f"broken{i}.jpg").write_bytes(b"no image")
    dice.shuffle(lines)
    text = dice.choice(["", "\ufefffile,class\n"]) + dice.choice(["\n", "\r\n"]).join(lines)
    place.with_suffix(".csv").write_bytes(text.encode())
    return broken


def subjects(folder: Path, count: int) -> Cases:
    for seed in range(count):
        dice, place = random.Random(seed), folder / f"right{seed}"
        kind = dice.choice([folders, table])
        broken = kind(place, dice)
        labels = str(place.with_suffix(".csv")) if kind is table else ""
        limit = dice.choice([1, 5, 20, 100])

        def case(place: Path = place, labels: str = labels, limit: int = limit, broken: int = broken) -> None:
            check(subject(images=str(place), labels=labels, limit=limit), limit, broken)

        yield case


def pages(folder: Path, count: int) -> Cases:
    """Names that are markup stay text in the page, and come back unchanged from the numbers."""
    for seed in range(count):
        dice, place = random.Random(seed), folder / f"page{seed}"
        name = dice.choice([*MARKUP, *NAMES[:5]])
        classes = [name.replace("/", "∕"), "1"]
        for i in range(8):
            paint(place / classes[i % 2] / f"{i}.png", 1, i)
        (place / "1" / f"{classes[0][:100]}.jpg").write_bytes(b"broken")

        def case(place: Path = place, name: str = name) -> None:
            found = subject(images=str(place), limit=4)
            found = replace(found, name=name, notes=(*found.notes, name))
            made = Audit(found, fast=True)
            kept, page = read(made.to_json(place / "audit.json")), made.to_html(place / "audit.html").read_text()
            assert kept["model"] == name and kept["notes"] == json.loads(json.dumps(list(found.notes)))
            assert html.escape(name) in page
            for odd in (text for text in (name, *kept["notes"]) if "<" in text):
                assert odd not in page

        yield case
