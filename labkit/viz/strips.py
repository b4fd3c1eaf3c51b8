"""Strips of pictures, painted in hundredths of a second: heat through the layers, tokens through depth, every head.

Each is a function from numbers to a PIL image. Panels share one colour scale, which is in percent, as attention is;
`figures.heat_on_image` draws maps of any other quantity. A merged token keeps its colour.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import ImageChops
from PIL.Image import Image

from labkit.errors import LabkitError
from labkit.viz.colour import colours
from labkit.viz.paint import numbers, picture, scale
from labkit.viz.sheet import GAP, WIDTH, Box, Sheet

BELOW = 46  # for two lines of words under a panel
SCALE = 62  # for a colour bar with its numbers and its name
GREY = (0.299, 0.587, 0.114)  # how bright red, green and blue look


def overlay_strip(image: Any, maps: Any, titles: Sequence[str] | None = None, label: str = "attention") -> Image:
    """An image (3, h, w) in grey under each of several maps (layers, gh, gw), in one scale; the image itself first."""
    pixels, heat = picture(image), numbers(maps)
    if heat.ndim != 3:
        raise LabkitError(f"A strip needs maps of shape (layers, gh, gw); these have {heat.shape}.")
    titles = [f"layer {i}" for i in range(len(heat))] if titles is None else titles
    if len(titles) != len(heat):
        raise LabkitError(f"{len(titles)} titles for {len(heat)} maps; give one for each.")
    low, high = scale(heat)
    sheet, boxes = panels(len(heat) + 1, pixels.shape, SCALE)
    grey = np.broadcast_to((pixels @ GREY)[..., None], pixels.shape)
    for box, title, cells in zip(boxes, ["image", *titles], [None, *heat], strict=True):
        sheet.pixels(bytes_of(pixels if cells is None else grey), box, sharp=False)
        if cells is not None:
            sheet.heat(colours(cells, low, high), box, 0.7)
        sheet.text(title, box[0], box[1] + box[3] + 14, 13)
    return with_scale(sheet, 0, low, high, label)


def film_strip(image: Any, labels: Any, grid: tuple[int, int]) -> Image:
    """Tokens through depth: `labels` (steps, patches) says which token each patch is in, -1 for a dropped patch."""
    pixels, steps = picture(image), np.asarray(labels)
    if steps.ndim != 2 or steps.shape[1] != grid[0] * grid[1]:
        raise LabkitError(
            f"A film of {grid[0]} x {grid[1]} patches has a label for each, (steps, patches); these have {steps.shape}."
        )
    sheet, boxes = panels(len(steps), pixels.shape)
    for step, (box, now) in enumerate(zip(boxes, steps, strict=True)):
        sheet.pixels(bytes_of(tokens_on(pixels, now, grid)), box, sharp=False)
        title = "at the end" if step == len(steps) - 1 else f"before layer {step}"
        sheet.text(title, box[0], box[1] + box[3] + 14, 13)
        sheet.text(f"{len(np.unique(now[now >= 0]))} tokens", box[0], box[1] + box[3] + 31, 13)
    return trimmed(sheet.image)


def head_montage(attn: Any, grid: tuple[int, int], label: str = "attention") -> Image:
    """Where one query looks, in every head of every layer: attn (layers, heads, h * w), in one scale."""
    values = numbers(attn)
    h, w = grid
    if values.ndim != 3 or values.shape[-1] != h * w:
        raise LabkitError(
            f"A montage of {h} x {w} patches needs attention (layers, heads, {h * w}); got {values.shape}. "
            "Leave the class token out: attn[..., 1:]."
        )
    layers, heads, _ = values.shape
    low, high = scale(values)
    left, top = 66, 22
    wide = min(84, (WIDTH - left) / heads - 3)
    tall = wide * h / w
    sheet = Sheet(top + layers * (tall + 3) + SCALE)
    for head in range(heads):
        sheet.text(f"head {head}" if wide > 48 else f"{head}", left + head * (wide + 3) + wide / 2, 11, 13, "mm")
    for layer, row in enumerate(colours(values, low, high).reshape(layers, heads, h, w, 3)):
        down = top + layer * (tall + 3)
        sheet.text(f"layer {layer}", left - 8, down + tall / 2, 13, "rm")
        for head, cells in enumerate(row):
            sheet.pixels(cells, (left + head * (wide + 3), down, wide, tall))
    return with_scale(sheet, left, low, high, label)


def tokens_on(pixels: np.ndarray, labels: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The image (h, w, 3) with dropped patches dark and those of a merged token in its colour; labels (patches,)."""
    sizes = np.bincount(labels[labels >= 0], minlength=labels.size)
    merged = (labels >= 0) & (sizes[labels] > 1)
    paint = np.array([tint(label) if joined else (0, 0, 0) for label, joined in zip(labels, merged, strict=True)])
    strength = np.where(labels < 0, 0.86, np.where(merged, 0.75, 0))[:, None]
    rows, columns = (np.arange(n) * cells // n for n, cells in zip(pixels.shape, grid, strict=False))
    patch = rows[:, None] * grid[1] + columns
    return pixels * (1 - strength[patch]) + paint[patch] * strength[patch]


def tint(label: int) -> tuple[float, float, float]:
    """A colour for each token, and the same one wherever it is drawn: neighbours are a golden angle apart."""
    return colorsys.hls_to_rgb(label * 137.508 % 360 / 360, (45 + 12 * (label % 3)) / 100, 0.75)


def panels(count: int, shape: tuple[int, ...], more: int = 0, columns: int = 7) -> tuple[Sheet, Iterator[Box]]:
    """A sheet for `count` images of `shape`, at most `columns` to a row, and where each goes."""
    columns = min(count, columns)
    wide = min((WIDTH - GAP * (columns - 1)) / columns, 200)
    tall = wide * shape[0] / shape[1]
    rows = -(-count // columns)
    places = ((i % columns * (wide + GAP), i // columns * (tall + BELOW), wide, tall) for i in range(count))
    return Sheet(rows * (tall + BELOW) + more), places


def with_scale(sheet: Sheet, left: float, low: float, high: float, label: str) -> Image:
    sheet.bar(left, sheet.image.height - SCALE + 8, 260, low, high, label)
    return trimmed(sheet.image)


def trimmed(image: Image) -> Image:
    """Without the empty part on the right."""
    _, _, right, _ = ImageChops.invert(image).getbbox() or (0, 0, image.width, 0)
    return image.crop((0, 0, right, image.height))


def bytes_of(pixels: np.ndarray) -> np.ndarray:
    return np.rint(255 * pixels).astype(np.uint8)
