"""What a model costs on paper: parameters, multiply-accumulates (MACs) and bytes, part by part.

The model runs once and its operations are counted from the tokens that really flow: a token that was dropped
costs nothing, and fused attention has the MACs of written-out attention (which moves its n² scores as well).
One MAC is two floating-point operations. A block on n tokens of width d, of which r <= n rows are read:

    qkv         (r + 2n) d²        3nd² when every row is read
    attention   2 r n d            each pair meets twice: q kᵀ, then attn v
    proj        r d²
    mlp         2 ratio r d²       the MLP is `ratio` times as wide as the tokens

The patches cost d c p² each, the head d per class ("An Image is Worth 16x16 Words: Transformers for Image
Recognition at Scale", 2020, S207). A head that reads only the class token lets the last block run with r = 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from labkit.errors import LabkitError
from labkit.operations import Operation, operations, part_of
from labkit.tables import Table

PARTS = ("patch", "qkv", "attention", "proj", "mlp", "head", "other")
COLUMNS = {
    "params": ("parameters", ""),
    "macs": ("MACs", ""),
    "weight_bytes": ("weights", "B"),
    "activation_bytes": ("activations", "B"),
}


@dataclass(frozen=True, repr=False)
class Cost:
    """`.macs`, `.params` and `.bytes` in all, `.parts["mlp"]["macs"]` part by part, `.table()` to look at."""

    parts: dict[str, dict[str, int]]  # part -> params, macs, weight_bytes, activation_bytes
    operations: tuple[Operation, ...]  # of the whole batch, in the order they ran

    @property
    def macs(self) -> int:
        return self.total("macs")

    @property
    def params(self) -> int:
        return self.total("params")

    @property
    def bytes(self) -> int:
        """Every weight read once, and all that products and convolutions read and write besides."""
        return self.total("weight_bytes") + self.total("activation_bytes")

    def total(self, column: str) -> int:
        return sum(part[column] for part in self.parts.values())

    def table(self) -> Table:
        """Aligned text in a terminal, an HTML table in a notebook; each column's unit follows its total."""
        total = {column: self.total(column) for column in COLUMNS}
        units = {column: _unit(total[column]) for column in COLUMNS}
        headers = [f"{name} ({units[c][1]}{of})" if units[c][1] + of else name for c, (name, of) in COLUMNS.items()]
        rows = []
        for name, part in [*self.parts.items(), ("total", total)]:
            cells = [f"{part[column] / units[column][0]:.3f}" for column in COLUMNS]
            share = f"{100 * part['macs'] / max(self.macs, 1):.1f} %"
            rows.append([name, *cells[:2], share, *cells[2:]])
        return Table(["part", *headers[:2], "share", *headers[2:]], rows, [False] + [True] * 5)

    def __repr__(self) -> str:
        return repr(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def count(
    model: nn.Module, image_size: int | tuple[int, int] | None = None, batch: int = 1, channels: int | None = None
) -> Cost:
    """What `model(images)` costs at inference, counted on one black image of `image_size` or the model's own.

    A batch costs `batch` times the MACs and activations of one image, and reads the weights once. Unless `channels`
    are given, the image has those of the first layer that names any. Any torch model of images can be counted; what
    the paths of its layers do not tell apart goes to "other". On the device "meta" a model of any size is counted
    without memory and without arithmetic.
    """
    if not isinstance(model, nn.Module):
        raise LabkitError(
            f"count takes a torch model, got {type(model).__name__}; for functions see labkit.operations."
        )
    if batch < 1:
        raise LabkitError(f"A batch of {batch} images costs nothing; choose batch=1 or more.")
    h, w = _image_size(model) if image_size is None else _pair(image_size)
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    read: Any = next((m.in_channels for m in model.modules() if hasattr(m, "in_channels")), 3)
    images = torch.zeros(1, channels or read, h, w, dtype=weight.dtype, device=weight.device)
    seen = [
        replace(step, macs=batch * step.macs, activation_bytes=batch * step.activation_bytes)
        for step in operations(model, images)
    ]
    parts = {part: dict.fromkeys(COLUMNS, 0) for part in PARTS}
    for name, parameter in model.named_parameters():
        part = parts[part_of(name)]
        part["params"] += parameter.numel()
        part["weight_bytes"] += parameter.numel() * parameter.element_size()
    for name, module in model.named_modules():
        codes = getattr(module, "codes", None)  # a weight as integers is no parameter
        if isinstance(codes, torch.Tensor) and hasattr(module, "weight_bytes"):
            parts[part_of(name)]["params"] += codes.numel()
            parts[part_of(name)]["weight_bytes"] += math.ceil(module.weight_bytes)
    for step in seen:
        parts[step.part]["macs"] += step.macs
        parts[step.part]["activation_bytes"] += step.activation_bytes
    return Cost(parts, tuple(seen))


def block_macs(n: int, d: int, ratio: float = 4.0, rows: int | None = None) -> dict[str, int]:
    """The law at the top of this file: MACs of a block on n tokens; `rows` of them (None: all) are read."""
    r = n if rows is None else rows
    qkv, attention, proj, mlp = (r + 2 * n) * d * d, 2 * r * n * d, r * d * d, 2 * r * d * int(ratio * d)
    return {"qkv": qkv, "attention": attention, "proj": proj, "mlp": mlp}


def _unit(total: int) -> tuple[float, str]:
    return next(((size, name) for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if total >= size), (1.0, ""))


def _pair(size: Any) -> tuple[int, int]:
    """(height, width) of a square's side or of a pair."""
    h, w = size if isinstance(size, tuple | list) and len(size) == 2 else (size, size)
    if not (isinstance(h, int) and isinstance(w, int) and h > 0 and w > 0):
        raise LabkitError(f"image_size={size!r} is not a size in pixels; expected 224, or (height, width).")
    return h, w


def _image_size(model: Any) -> tuple[int, int]:
    """The size the model was made for: our grid times its patches, or what timm noted."""
    embed: Any = getattr(model, "patch_embed", None)
    if hasattr(model, "grid") and hasattr(embed, "proj"):
        (rows, columns), (ph, pw) = model.grid, embed.proj.stride
        return rows * ph, columns * pw
    noted = getattr(model, "pretrained_cfg", None) or {}
    size = getattr(embed, "img_size", None) or noted.get("input_size", ())[1:]
    if not size:
        raise LabkitError(f"{type(model).__name__} does not say how large its images are; pass image_size=224, say.")
    return _pair(size)
