"""Labels in a CSV, and audits beside each other: texts with something wrong in them."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from labkit.audit import audit
from labkit.audit.subject import Subject, subject
from labkit.errors import LabkitError
from tests.hostile import Case, Cases, command
from tests.hostile.words import spoil

CSV = "\n".join(f"{i:02d}.png,{i % 10}" for i in range(18))
WHOLE_TABLES = {
    "marked": b"\xef\xbb\xbf" + CSV.encode(),
    "windows": CSV.replace("\n", "\r\n").encode(),
    "old mac": CSV.replace("\n", "\r").encode(),
    "headed": b"file,class\n" + CSV.encode(),
    "quoted": "\n".join(f'"{line.split(",")[0]}","{line.split(",")[1]}"' for line in CSV.split("\n")).encode(),
    "twice the same": f"{CSV}\n{CSV}\n\n".encode(),
    "two lines": f'{CSV}\n"a name\nof two lines.png",3\n'.encode(),
    "spaced": CSV.replace(",", " , ").encode(),
    "long": (CSV + "".join(f"\n{i}.jpg,{i % 10}" for i in range(100_000))).encode(),
}
WRONG_TABLES = {
    "no label": b"",
    'the first is "': b"file,class\n",
    "both 0 and 7": f"{CSV}\n00.png,7\n".encode(),
    "no label for": CSV.replace("\n", "\n ./").encode(),
    "expected a file name and a class": CSV.replace(",", ";").encode() + b"\nx;y",
    "cannot be read": CSV.encode("utf-16"),
    "expected a file name": f'{CSV}\n"unclosed,3\n04.png,2'.encode(),
}


def tables(folder: Path, count: int) -> Cases:
    place = folder / "tabled"
    place.mkdir()
    for i in range(18):
        Image.new("RGB", (20, 20), (9 * i, 0, 0)).save(place / f"{i:02d}.png")
    file = folder / "labels.csv"

    def read() -> Subject:
        return subject(images=str(place), labels=str(file), limit=4)

    def refused(case: Case, said: str) -> None:
        with pytest.raises(LabkitError, match=said) as told:
            case()
        raise told.value

    def right() -> None:
        found = read()
        assert found.truth.tolist() == [int(name[:2]) % 10 for name in found.images.names]

    for text in WHOLE_TABLES.values():
        file.write_bytes(text)
        yield right
    for said, text in WRONG_TABLES.items():
        file.write_bytes(text)
        yield lambda said=said: refused(read, said)
    for seed in range(count):
        dice = random.Random(seed)
        file.write_bytes(spoil(CSV, dice, dice.randrange(6)).encode("utf-16" if dice.random() < 0.1 else "utf-8"))
        yield read


# --- audits ---------------------------------------------------------------------------------------------------------
SHARE = {"share": 0.9, "low": 0.8, "high": 0.95, "images": 20}
ROW = SHARE | {"name": "int8", "describe": "8 bits", "stack": {}, "difference": -0.01, "difference_low": -0.03}
ROW |= {"difference_high": 0.01, "lost": 1, "gained": 1, "macs": 10}
ROW |= {"ms": 3.0, "ms_low": 2.9, "ms_high": 3.1, "ratio": 0.5, "ratio_low": 0.4, "ratio_high": 0.6}
AUDIT: dict[str, Any] = {"schema": 1, "labkit": "0", "made": "x", "model": "m", "images": 20, "word": "accuracy"}
AUDIT |= {"notes": [], "fast": True, "tolerance": 0.01}
AUDIT |= {"recommendation": {"verdict": "not measured", "sentence": "."}}
JUDGED = {"word": "accuracy", "untouched": SHARE}
WHAT = {"name": "m", "plain": None, "image": [64, 64], "parameters": 5, "macs": 7, "bytes": 20, "parts": {}}
WHAT |= {"images": 20, "classes_seen": 2, "notes": []} | JUDGED
BITS = {"batch": 8, "candidates": [ROW], "simulated": {}, "sensitivity": {"head": 0.1}, "in_float": []} | JUDGED
AUDIT |= {"sections": {"what": WHAT, "bits": BITS, "tokens": {"skipped": "No class token."}}}
ODD: tuple[object, ...] = (10**400, -1, 0, 1e308, float("inf"), float("nan"), True, 2, None, "many", "</td>", [], {})


def audits(folder: Path, count: int) -> Cases:
    whole = json.dumps(AUDIT)
    for seed in range(count):
        dice, file = random.Random(seed), folder / f"audit{seed}.json"
        file.write_text(spoil(whole, dice, dice.randrange(4)), encoding="utf-8")
        yield lambda file=file: audit.read(file)


def spots(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything inside."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in pairs:
        yield (*way, key)
        yield from spots(inside, (*way, key))


def compare(folder: Path, count: int) -> Cases:
    """One value of a whole audit replaced or taken out, beside a whole one; and files that are no audit."""
    good, file = folder / "good.json", folder / "other.json"
    good.write_text(json.dumps(AUDIT))
    texts = ["", "[]", "null", '"', json.dumps(AUDIT | {"schema": 2}), json.dumps(AUDIT | {"word": "agreement"})]
    texts += ["<!doctype html>", json.dumps({"cells": [], "nbformat": 4}), "\ufeff" + json.dumps(AUDIT), "{" * 300]
    for seed in range(count - len(texts)):
        dice, values = random.Random(seed), copy.deepcopy(AUDIT)
        *way, last = dice.choice(list(spots(AUDIT)))
        inside = values
        for key in way:
            inside = inside[key]
        if dice.random() < 0.3:
            inside.pop(last)
        else:
            inside[last] = dice.choice(ODD)
        texts.append(json.dumps(values))
    for text in texts:
        file.write_text(text, encoding="utf-8")
        yield lambda: command("report", "compare", good, file)
    for first, second in ((folder, good), (good, folder / "nowhere.json"), ("\udcff", good)):
        yield lambda first=first, second=second: command("report", "compare", first, second)
