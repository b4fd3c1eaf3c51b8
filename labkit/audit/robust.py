"""How firm the answers are: patches painted over, a square hidden, a shift by one pixel, JPEG, less contrast.

Each disturbance is done to the pixels, so that any model can be asked, and compared on the same images as without it.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from labkit.audit.measure import change, percent, points
from labkit.audit.subject import Subject
from labkit.tables import Table
from labkit.viz import figures

TITLE = "How firm the answers are"
PATCH = 16  # pixels of an image of 224; a patch of most models
Disturb = Callable[[Tensor, torch.Generator], Tensor]


def painted(part: float) -> Disturb:
    """So many of the patches, drawn anew for each image, in the mean colour of the image."""

    def disturb(pixels: Tensor, dice: torch.Generator) -> Tensor:
        n, _, height, width = pixels.shape
        size = max(1, round(PATCH * width / 224))
        rows, columns = -(-height // size), -(-width // size)
        order = torch.rand(n, rows * columns, generator=dice).argsort(dim=1)
        hidden = (order < round(part * rows * columns)).reshape(n, 1, rows, columns)
        mask = hidden.repeat_interleave(size, 2).repeat_interleave(size, 3)[:, :, :height, :width].to(pixels.device)
        return torch.where(mask, pixels.mean(dim=(2, 3), keepdim=True), pixels)

    return disturb


def hidden_square(part: float) -> Disturb:
    """A square of this share of the area at a place drawn anew for each image."""

    def disturb(pixels: Tensor, dice: torch.Generator) -> Tensor:
        out, (height, width) = pixels.clone(), pixels.shape[-2:]
        side = round((part * height * width) ** 0.5)
        corners = torch.rand(len(pixels), 2, generator=dice)
        for image, (y, x) in zip(out, corners.tolist(), strict=True):
            top, left = round(y * (height - side)), round(x * (width - side))
            image[:, top : top + side, left : left + side] = image.mean(dim=(1, 2))[:, None, None]
        return out

    return disturb


def shifted(pixels: Tensor, dice: torch.Generator) -> Tensor:
    """By one pixel down or up and right or left; the edge is doubled."""
    around = torch.nn.functional.pad(pixels, (1, 1, 1, 1), mode="replicate")
    height, width = pixels.shape[-2:]
    corners = (2 * torch.randint(0, 2, (len(pixels), 2), generator=dice)).tolist()
    return torch.stack([im[:, y : y + height, x : x + width] for im, (y, x) in zip(around, corners, strict=True)])


def jpeg(quality: int) -> Disturb:
    def disturb(pixels: Tensor, dice: torch.Generator) -> Tensor:
        done = []
        for image in (255 * pixels.clamp(0, 1)).round().byte().permute(0, 2, 3, 1).cpu().numpy():
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG", quality=quality)
            done.append(torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1))
        return (torch.stack(done).float() / 255).to(pixels)

    return disturb


def faded(factor: float) -> Disturb:
    """Nearer to the mean grey of the image."""

    def disturb(pixels: Tensor, dice: torch.Generator) -> Tensor:
        mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
        return mean + factor * (pixels - mean)

    return disturb


DISTURBANCES: dict[str, Disturb] = {
    "a quarter of the patches painted over": painted(0.25),
    "half of the patches painted over": painted(0.5),
    "a square of a tenth hidden": hidden_square(0.1),
    "a square of a third hidden": hidden_square(1 / 3),
    "shifted by one pixel": shifted,
    "JPEG, quality 50": jpeg(50),
    "JPEG, quality 15": jpeg(15),
    "half the contrast": faded(0.5),
    "a quarter of the contrast": faded(0.25),
}


def measure(found: Subject, fast: bool = False) -> dict[str, Any]:
    before = found.right()
    rows = {}
    for name, disturb in DISTURBANCES.items():
        pixels = disturb(found.images.images, torch.Generator().manual_seed(0))
        rows[name] = change(found.right(inputs=found.normal(pixels)), before)
    return {"word": found.word, "disturbances": rows}


def table(values: dict[str, Any]) -> Table:
    rows = [[name, percent(row), points(row)] for name, row in values["disturbances"].items()]
    return Table(["done to the images", values["word"], "points, against untouched"], rows, [False, True, True])


def sentence(values: dict[str, Any]) -> str:
    rows, word = values["disturbances"], values["word"]
    worst = min(rows, key=lambda name: rows[name]["difference"])
    lost = [name for name, row in rows.items() if row["difference_high"] < 0]
    return (
        f"Most is lost with {worst}: {points(rows[worst])} points of {word}. A loss is certain in {len(lost)} of "
        f"{len(rows)} disturbances; a shift by one pixel changes {points(rows['shifted by one pixel'])} points."
    )


def figure(values: dict[str, Any]) -> Figure:
    rows = values["disturbances"]
    shares = [100 * row["share"] for row in rows.values()]
    ends = [(100 * row["low"], 100 * row["high"]) for row in rows.values()]
    return figures.bars(list(rows), shares, ends, label=f"{values['word']} (%)", digits=1)
