"""Folders of images: torn, empty, huge, tiny, moving and mislabelled files, links in circles, ten thousand files."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import numpy as np
from PIL import Image

from labkit.audit.subject import subject
from tests.hostile import Cases
from tests.hostile.words import NAMES

CLASSES = ([""], ["3", "7"], ["cats", "dogs"], [".hidden", "1"])


def encoded(noise: np.random.Generator, kind: str, size: tuple[int, int], mode: str = "RGB") -> bytes:
    """A whole picture of noise."""
    depth = len(mode) if mode in ("RGB", "RGBA", "CMYK") else 1
    shape = (size[1], size[0], depth) if depth > 1 else (size[1], size[0])
    deep = mode == "I;16"
    pixels = noise.integers(0, 65536 if deep else 256, shape).astype("uint16" if deep else "uint8")
    file = io.BytesIO()
    Image.frombytes(mode, size, pixels.tobytes()).save(file, kind)
    return file.getvalue()


def pictures(dice: random.Random) -> dict[str, bytes]:
    """Some files of one kind each, whole ones among them."""
    noise = np.random.default_rng(dice.randrange(2**32))
    jpeg, png = encoded(noise, "JPEG", (40, 30)), encoded(noise, "PNG", (33, 48))
    frames = [Image.new("P", (20, 20), i) for i in range(4)]
    moving = io.BytesIO()
    frames[0].save(moving, "GIF", save_all=True, append_images=frames[1:])
    cut = {"cut.jpg": jpeg, "cut.png": png, "cut.gif": moving.getvalue()}
    files = {name: data[: dice.randrange(len(data))] for name, data in cut.items()}
    spoiled = bytearray(jpeg)
    for _ in range(20):
        spoiled[dice.randrange(len(spoiled))] = dice.randrange(256)
    return files | {
        "empty.png": b"",
        "dot.png": encoded(noise, "PNG", (1, 1)),
        "thin.png": encoded(noise, "PNG", (dice.choice([2000, 20000]), 2)),
        "print.jpg": encoded(noise, "JPEG", (24, 24), "CMYK"),
        "moving.gif": moving.getvalue(),
        "deep.png": encoded(noise, "PNG", (30, 30), "I;16"),
        "wrong.txt": png,
        "text.jpg": b"<html>" + bytes(dice.randrange(256) for _ in range(100)),
        "spoiled.jpg": bytes(spoiled),
        "alpha.webp": encoded(noise, "WEBP", (25, 31), "RGBA"),
        "grey.bmp": encoded(noise, "BMP", (9, 9), "L"),
    }


def fill(place: Path, dice: random.Random) -> None:
    classes = [name.replace("/", "_") for name in dice.choice([*CLASSES, [dice.choice(NAMES[:5])]])]
    for name in classes:
        (place / name).mkdir(parents=True, exist_ok=True)
    files = pictures(dice)
    for name in dice.sample(sorted(files), dice.randrange(len(files))):
        (place / dice.choice(classes) / (dice.choice(["", "ü ", "'"]) + name)).write_bytes(files[name])
    if dice.random() < 0.3:
        os.symlink(place, place / "loop")
    if dice.random() < 0.2:
        os.symlink(place / "nothing.png", place / "dead.png")
    if dice.random() < 0.2:
        os.symlink(place / "itself", place / "itself")
    if dice.random() < 0.1:
        os.mkfifo(place / "pipe.png")


def images(folder: Path, count: int) -> Cases:
    for seed in range(count):
        dice, place = random.Random(seed), folder / f"images{seed}"
        fill(place, dice)
        yield lambda place=place, dice=dice: subject(images=str(place), limit=dice.choice([1, 3, 20]))
    many = folder / "many"
    many.mkdir()
    for i in range(10_000):
        (many / f"{i}.jpg").touch()
    for place in (many, Path("/"), Path("/proc"), Path("/dev")):
        yield lambda place=place: subject(images=str(place), limit=4)
