"""A white sheet to draw an explorer's picture on: text, images, heat, outlines and colour bars, by numpy and PIL.

Whatever is drawn on a picture has a light and a dark stroke, so that it shows on any colour.
"""

from __future__ import annotations

import io
import textwrap
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from labkit.viz.colour import table
from labkit.viz.explorer_words import percent

if TYPE_CHECKING:
    from labkit.evidence import Grid


WIDTH, TOP, GAP, BAR = 880, 34, 16, 14
ORANGE, INK = (255, 127, 14), (27, 27, 31)
Box = tuple[float, float, float, float]  # left, top, width, height


def cell_box(box: Box, row: int, column: int, grid: Grid) -> Box:
    left, top, w, h = box
    return left + column * w / grid[1], top + row * h / grid[0], w / grid[1], h / grid[0]


def border(mask: np.ndarray) -> np.ndarray:
    """float32 (lines, 4): x, y and x, y of every pixel side that is between inside and outside."""
    inside = np.pad(mask.astype(bool), 1)
    y, x = np.nonzero(inside[1:, :] != inside[:-1, :])
    across = np.stack([x - 1, y, x, y], axis=1)
    y, x = np.nonzero(inside[:, 1:] != inside[:, :-1])
    return np.concatenate([across, np.stack([x, y - 1, x, y], axis=1)]).astype(np.float32)


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which knows most alphabets; it comes with matplotlib, found without the wait of importing it."""
    spec = find_spec("matplotlib")
    assert spec is not None and spec.origin is not None
    return ImageFont.truetype(Path(spec.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf", size)


class Sheet:
    """Draws at a place; `height` is what the caller has planned."""

    def __init__(self, height: float) -> None:
        self.image = Image.new("RGB", (WIDTH, round(height)), "white")
        self.pen = ImageDraw.Draw(self.image)

    def text(self, words: str, x: float, y: float, size: int = 14, anchor: str = "lm") -> None:
        self.pen.text((x, y), words, font=font(size), fill=INK, anchor=anchor)

    def pixels(self, array: np.ndarray, box: Box, sharp: bool = True) -> None:
        """uint8 (h, w, 3) stretched over a box; few large pixels stay as they are."""
        left, top, w, h = (round(side) for side in box)
        how = Image.Resampling.NEAREST if sharp or array.shape[1] * 3 <= w else Image.Resampling.LANCZOS
        self.image.paste(Image.fromarray(array).resize((w, h), how), (left, top))

    def heat(self, array: np.ndarray, box: Box, opacity: float) -> None:
        left, top, w, h = (round(side) for side in box)
        area = (left, top, left + w, top + h)
        over = Image.fromarray(array).resize((w, h), Image.Resampling.NEAREST)
        self.image.paste(Image.blend(self.image.crop(area), over, opacity), area)

    def outline(self, box: Box, fill: str | tuple[int, int, int] = "white", width: int = 2) -> None:
        """Light inside dark, so that it shows on any colour."""
        left, top, w, h = box
        strokes: tuple[tuple[int, str | tuple[int, int, int], int], ...] = ((2, "black", width + 3), (0, fill, width))
        for grow, colour, line in strokes:
            self.pen.rectangle((left - grow, top - grow, left + w + grow, top + h + grow), outline=colour, width=line)

    def border(self, mask: np.ndarray, box: Box) -> None:
        """The border of the true object, from its mask (h, w)."""
        left, top, w, h = box
        scale = np.array([w / mask.shape[1], h / mask.shape[0]] * 2)
        for colour, width in (("black", 4), (ORANGE, 2)):
            for line in border(mask) * scale + [left, top, left, top]:
                self.pen.line(tuple(line), fill=colour, width=width)

    def bar(self, x: float, y: float, w: float, low: float, high: float, words: str, name: str = "cividis") -> None:
        """A colour bar with numbers at both ends and in the middle."""
        self.pixels(np.broadcast_to(table(name), (1, 256, 3)).copy(), (x, y, w, BAR))
        for value, at, anchor in ((low, 0, "lm"), ((low + high) / 2, w / 2, "mm"), (high, w, "rm")):
            sign = "−" if value < 0 else "+" if low < 0 < value else ""
            self.text(sign + percent(abs(value)), x + at, y + BAR + 12, 12, anchor)
        self.text(words, x, y + BAR + 31, 12)

    def png(self, words: str) -> bytes:
        """The sheet with these words below it, as a PNG."""
        lines = textwrap.wrap(words, 116)
        whole = Image.new("RGB", (WIDTH + 24, self.image.height + 24 + 20 * len(lines)), "white")
        whole.paste(self.image, (12, 8))
        pen = ImageDraw.Draw(whole)
        for i, line in enumerate(lines):
            pen.text((12, self.image.height + 14 + 20 * i), line, font=font(14), fill=INK)
        stream = io.BytesIO()
        whole.save(stream, "PNG", optimize=True)
        return stream.getvalue()
