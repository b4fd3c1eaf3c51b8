"""Input that nobody should give: images, weights, names, tables and parameters, generated from seeds.

Each case is a call. It has to end in a result or in one clear sentence, never in a traceback, a hang or a half-written
file. `python -m tests.hostile` runs all of them and prints how many there were and how they ended.
"""

from __future__ import annotations

import io
import json
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import labkit
from labkit import paths, report
from labkit.audit import audit, run
from labkit.audit.subject import subject
from labkit.errors import LabkitError

Case = Callable[[], object]
NAMES = (
    "ünïcödé 日本",
    "a b\tc",
    'it\'s "quoted"',
    "x" * 180,
    "<script>alert(1)</script>",
    "-rf",
    "%s{0}$HOME",
    "..",
    "\u202egnp",
)
NUMBERS = ("-1", "0", "1e9", "99999999999999999999", "nan", "inf", "-0.5", "1e-300", "1_0", "٣", "0x10")
WORDS = (
    "",
    " ",
    "None",
    "[]",
    "{}",
    "'",
    '"',
    "\\",
    "true",
    "False",
    "__import__('os')",
    "é",
    "a=b",
    "\x00",
    "1; 2",
    "lambda: 0",
)


# --- images ---------------------------------------------------------------------------------------------------------
def pictures(dice: random.Random) -> dict[str, bytes]:
    """Some files of one kind each, whole ones among them."""
    noise = np.random.default_rng(dice.randrange(2**32))

    def encoded(kind: str, size: tuple[int, int], mode: str = "RGB", **how: object) -> bytes:
        depth = len(mode) if mode in ("RGB", "RGBA", "CMYK") else 1
        shape = (size[1], size[0], depth) if depth > 1 else (size[1], size[0])
        deep = mode == "I;16"
        pixels = noise.integers(0, 65536 if deep else 256, shape).astype("uint16" if deep else "uint8")
        picture = Image.frombytes(mode, size, pixels.tobytes())
        file = io.BytesIO()
        picture.save(file, kind, **how)
        return file.getvalue()

    jpeg, png = encoded("JPEG", (40, 30)), encoded("PNG", (33, 48))
    frames = [Image.new("P", (20, 20), i) for i in range(4)]
    animated = io.BytesIO()
    frames[0].save(animated, "GIF", save_all=True, append_images=frames[1:])
    cut = {"cut.jpg": jpeg, "cut.png": png, "cut.gif": animated.getvalue()}
    files = {name: data[: dice.randrange(len(data))] for name, data in cut.items()}
    spoiled = bytearray(jpeg)
    for _ in range(20):
        spoiled[dice.randrange(len(spoiled))] = dice.randrange(256)
    return files | {
        "empty.png": b"",
        "dot.png": encoded("PNG", (1, 1)),
        "thin.png": encoded("PNG", (dice.choice([2000, 20000]), 2)),
        "print.jpg": encoded("JPEG", (24, 24), "CMYK"),
        "moving.gif": animated.getvalue(),
        "deep.png": encoded("PNG", (30, 30), "I;16"),
        "wrong.txt": png,
        "text.jpg": b"<html>" + bytes(dice.randrange(256) for _ in range(100)),
        "spoiled.jpg": bytes(spoiled),
        "alpha.webp": encoded("WEBP", (25, 31), "RGBA"),
        "grey.bmp": encoded("BMP", (9, 9), "L"),
    }


def images(folder: Path, count: int) -> Iterator[Case]:
    for seed in range(count):
        dice, place = random.Random(seed), folder / f"images{seed}"
        classes = dice.choice([[""], ["3", "7"], ["cats", "dogs"], [dice.choice(NAMES[:5])], [".hidden", "1"]])
        for name in classes:
            (place / name.replace("/", "_")).mkdir(parents=True, exist_ok=True)
        files = pictures(dice)
        for name in dice.sample(sorted(files), dice.randrange(len(files))):
            target = place / dice.choice(classes).replace("/", "_") / (dice.choice(["", "ü ", "'"]) + name)
            target.write_bytes(files[name])
        if dice.random() < 0.3:
            os.symlink(place, place / "loop")
        if dice.random() < 0.2:
            os.symlink(place / "nothing.png", place / "dead.png")
        if dice.random() < 0.1:
            os.mkfifo(place / "pipe.png")
        yield lambda place=place, dice=dice: subject(images=str(place), limit=dice.choice([1, 3, 20]))
    many = folder / "many"
    many.mkdir()
    for i in range(10_000):
        (many / f"{i}.jpg").touch()
    yield lambda: subject(images=str(many), limit=4)


# --- weights --------------------------------------------------------------------------------------------------------
def weights(folder: Path, count: int) -> Iterator[Case]:
    """Files of `labkit.save` with something wrong in them: a truncated or spoiled file, tensors of another model."""
    whole = (paths.CHECKPOINTS / "digits-vit.safetensors").read_bytes()
    state = labkit.load("digits-vit").state_dict()
    told = {"architecture": json.dumps(labkit.zoo.card("digits-vit")["architecture"])}
    for seed in range(count):
        dice, file = random.Random(seed), folder / f"weights{seed}.safetensors"
        kind = seed % 6
        if kind == 0:
            file.write_bytes(whole[: dice.randrange(len(whole))])
        elif kind == 1:
            spoiled = bytearray(whole)
            for _ in range(dice.choice([1, 5, 50])):
                spoiled[dice.randrange(3000)] = dice.randrange(256)
            file.write_bytes(spoiled)
        elif kind == 2:
            torch.save(dict(state), file)
        else:
            wrong = dict(state)
            key = dice.choice(sorted(wrong))
            if kind == 3:
                wrong.pop(key)
            elif kind == 4:
                wrong[key] = torch.full_like(wrong[key], dice.choice([float("nan"), float("inf")]))
            else:
                wrong[key] = torch.zeros(dice.randrange(5), dice.randrange(5))
            extra = dice.choice([told, None, {"architecture": dice.choice(WORDS)}, {"architecture": '{"dim": -3}'}])
            save_file(wrong, file, extra)
        yield lambda file=file: subject(str(file), images=str(paths.DATA / "images"), limit=2)


# --- names, parameters, tables --------------------------------------------------------------------------------------
def names(folder: Path, count: int) -> Iterator[Case]:
    for seed in range(count):
        dice = random.Random(seed)
        told = dice.choice([*NAMES, *WORDS, "timm:", "shapes-vit ", "SHAPES-VIT", "shapes-vit.safetensors", "a" * 5000])
        field = dice.choice(["model", "images", "labels", "weights"])
        how = {"model": "vit_tiny_patch16_224"} if field == "weights" and told else {}
        yield lambda field=field, told=told, how=how: subject(**({"limit": 2} | how | {field: told}))


def parameters(folder: Path, count: int) -> Iterator[Case]:
    source = paths.NOTEBOOKS / "reports" / run.NOTEBOOK
    known = (
        "model",
        "weights",
        "images",
        "labels",
        "limit",
        "batch",
        "tolerance",
        "seed",
        "device",
        "fast",
        "out",
        "magic",
    )
    for seed in range(count):
        dice = random.Random(seed)
        values = {dice.choice(known): dice.choice([*NUMBERS, *WORDS, *NAMES]) for _ in range(dice.choice([1, 1, 3]))}

        def case(values: dict[str, str] = values) -> object:
            run.refuse(report.parameters(source, values))
            return values

        yield case


def tables(folder: Path, count: int) -> Iterator[Case]:
    place = folder / "tabled"
    place.mkdir()
    for i in range(18):
        Image.new("RGB", (20, 20), (9 * i, 0, 0)).save(place / f"{i:02d}.png")
    lines = [f"{i:02d}.png,{i % 10}" for i in range(18)]
    for seed in range(count):
        dice, file = random.Random(seed), folder / f"labels{seed}.csv"
        text = "\n".join(lines)
        for _ in range(dice.randrange(6)):
            at = dice.randrange(len(text) + 1)
            text = (
                text[:at] + dice.choice([*WORDS, *NUMBERS, ",", "\n", '"', "\r", ";"]) + text[at + dice.randrange(4) :]
            )
        file.write_bytes(text.encode("utf-16" if dice.random() < 0.1 else "utf-8"))
        yield lambda file=file: subject(images=str(place), labels=str(file), limit=4)


def audits(folder: Path, count: int) -> Iterator[Case]:
    whole = json.dumps(
        {
            "schema": 1,
            "labkit": "0",
            "made": "x",
            "model": "m",
            "images": 1,
            "word": "accuracy",
            "notes": [],
            "fast": True,
        }
        | {"tolerance": 0.01, "recommendation": {"verdict": "not measured", "sentence": "."}, "sections": {}}
    )
    for seed in range(count):
        dice, file = random.Random(seed), folder / f"audit{seed}.json"
        text = whole
        for _ in range(dice.randrange(4)):
            at = dice.randrange(len(text))
            text = text[:at] + dice.choice([*WORDS, *NUMBERS, "}", "[", ","]) + text[at + dice.randrange(8) :]
        file.write_text(text, encoding="utf-8")
        yield lambda file=file: audit.read(file)


FAMILIES: dict[str, tuple[Callable[[Path, int], Iterator[Case]], int]] = {
    "images": (images, 60),
    "weights": (weights, 120),
    "names": (names, 80),
    "parameters": (parameters, 160),
    "tables": (tables, 60),
    "audits": (audits, 200),
}


def ending(case: Case) -> str:
    """ "result" or "sentence"; whatever else it ends in goes through."""
    try:
        case()
    except LabkitError as error:
        said = str(error)
        assert 10 < len(said) < 6000 and "Traceback" not in said and "\n" not in said.strip(), repr(said)
        return "sentence"
    return "result"


def run_family(name: str, folder: Path) -> Counter[str]:
    make, count = FAMILIES[name]
    return Counter(ending(case) for case in make(folder, count))


def main() -> int:
    total: Counter[str] = Counter()
    for name in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            found = run_family(name, Path(folder))
        print(f"{name:12} {sum(found.values()):4} cases: {found['sentence']:4} sentences, {found['result']:4} results")
        total += found
    print(f"{'all':12} {sum(total.values()):4} cases: {total['sentence']:4} sentences, {total['result']:4} results")
    return 0


if __name__ == "__main__":
    sys.exit(main())
