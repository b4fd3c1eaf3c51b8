"""What a trace may cost: maps are kept as float32, float16 or one byte a number, and never more than a limit.

A byte counts in steps of 1/255 of its row's largest value; decoded, each row again has the sum it had.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.errors import LabkitError

Keep = Literal["uint8", "float16", "float32"]
BYTES = {"uint8": 1, "float16": 2, "float32": 4}


def encode(attn: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes (..., queries, keys) and a scale (..., queries, 1) for each row; `codes * scale` has the row's sum.

    What one number loses by rounding is given to the next: many shares that are each too small for a step are not
    lost together, a zero stays zero, and no number is two steps off.
    """
    top = attn.amax(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    steps = (attn * (255 / top)).cumsum(dim=-1).round()
    codes = steps.diff(dim=-1, prepend=torch.zeros_like(top)).clamp(0, 255).to(torch.uint8)
    total = codes.sum(dim=-1, keepdim=True, dtype=torch.float32).clamp_min(1)
    return codes, attn.sum(dim=-1, keepdim=True) / total


@dataclass
class Kept:
    """The maps of one layer, batch after batch, on the CPU."""

    keep: Keep
    parts: list[Tensor] = field(default_factory=list)
    scales: list[Tensor] = field(default_factory=list)

    def add(self, attn: Tensor) -> None:
        attn = attn.detach().to("cpu", torch.float32, copy=True)  # the model may go on to change its own in place
        if self.keep == "uint8":
            attn, scale = encode(attn)
            self.scales.append(scale)
        self.parts.append(attn.half() if self.keep == "float16" else attn)

    def maps(self, images: slice = slice(None)) -> Tensor:
        """float32, (images, heads, ..., queries, keys)."""
        maps = self.joined(self.parts)[images].float()
        return maps * self.joined(self.scales)[images] if self.scales else maps

    def joined(self, parts: list[Tensor]) -> Tensor:
        """One tensor, joined when it is first asked for."""
        if len(parts) > 1:
            parts[:] = [stacked(parts)]
        return parts[0]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts + self.scales)


@dataclass
class Budget:
    """Adds up what all images will need while the first batch runs; beyond the limit nothing more is kept."""

    keep: Keep
    limit: float
    images: int
    thrifty: Keep = "uint8"  # the smallest way to keep that may be advised
    record: bool = True  # False: only add up
    beside: int = 0  # bytes that are kept beside the maps
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)  # of each layer: numbers and rows, for all images

    def __post_init__(self) -> None:
        if self.keep not in BYTES:
            raise LabkitError(f'keep={self.keep!r} is unknown; choose "uint8", "float16" or "float32".')

    def admits(self, layer: int, shape: tuple[int, ...], batch: int) -> bool:
        """May this layer be kept, whose map has this shape for the first `batch` images?"""
        rows = math.prod(shape[:-1]) // batch * self.images
        self.sizes.setdefault(layer, (rows * shape[-1], rows))
        return self.record and self.need(self.keep) <= self.limit

    def need(self, keep: Keep, layers: Iterable[int] | None = None) -> int:
        """Bytes for all images; as uint8, each row has a scale beside it."""
        chosen = [self.sizes[layer] for layer in (self.sizes if layers is None else layers)]
        maps = sum(numbers * BYTES[keep] + (4 * rows if keep == "uint8" else 0) for numbers, rows in chosen)
        return maps + self.beside

    def check(self) -> None:
        """Refuse what does not fit, with the option that would."""
        if self.need(self.keep) > self.limit:
            raise LabkitError(
                f"These maps would need {megabytes(self.need(self.keep))} ({self.amount()}, {self.keep}), and the "
                f"limit is {megabytes(self.limit)}: {self.advice()}; limit=… raises the limit."
            )

    def advice(self) -> str:
        how = f'keep="{self.thrifty}"'
        if (need := self.need(self.thrifty)) <= self.limit:
            return f"{how} needs {megabytes(need)}"
        if fit := int(self.limit * self.images // need):
            return f"with {how}, {images(fit)} at a time would fit"
        smallest = min(self.sizes, key=self.sizes.__getitem__)
        if fit := min(self.images, int(self.limit * self.images // self.need(self.thrifty, [smallest]))):
            return f"with layers=[{smallest}] and {how}, {images(fit)} at a time would fit"
        return "not even one layer of one image fits"

    def amount(self) -> str:
        return f"{len(self.sizes)} layer{'s' * (len(self.sizes) != 1)}, {images(self.images)}"

    def sentence(self) -> str:
        sizes = ", ".join(f"{megabytes(self.need(keep))} as {keep}" for keep in ("float32", "float16", "uint8"))
        return f"{self.amount()}: {sizes}."


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """Batch behind batch; one that held fewer tokens, as its images needed, gets empty places (zeros)."""
    longest = [max(lengths) for lengths in zip(*(part.shape[1:] for part in parts), strict=True)]

    def padded(part: Tensor) -> Tensor:
        gaps = [(0, most - n) for most, n in zip(longest, part.shape[1:], strict=True)]
        return F.pad(part, [side for gap in reversed(gaps) for side in gap])

    return torch.cat([padded(part) for part in parts])


def images(number: int) -> str:
    return f"{number} image{'s' * (number != 1)}"


def megabytes(number: float) -> str:
    return f"{number / 1e6:,.1f} MB"
