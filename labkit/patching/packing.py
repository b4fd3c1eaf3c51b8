"""Images of any size in one sequence: pack their patches end to end and let each attend only to its own image.

No image is resized or padded to another's size. The mask is block-diagonal, and packed images come out as they
would alone. "Patch n' Pack: NaViT, a Vision Transformer for any Aspect Ratio and Resolution", 2023, and
"UniViTAR: Unified Vision Transformer with Native Resolution", 2025 (S374).

    packed = pack(images, patch=8, length=256)  # .x, .coords, .segments; unpack(packed.x, packed.segments)
    logits = packed_forward(vit, images, length=256)  # images: a list of (c, h, w)
    bills([len(x) for x in unpack(packed.x, packed.segments)], length=256)

A mask saves no arithmetic by itself: r rows of L tokens score r L² pairs, so a row of all images is the dearest.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Grid
from labkit.patching.patches import cut
from labkit.vit import Attention, Block, ViT


class Packed(NamedTuple):
    """Rows of equal length; `segments` tells whose each token is, -1 where there is none."""

    x: Tensor  # (rows, length, c * p * p), the pixels of each patch
    coords: Tensor  # (rows, length, 2), the row and the column of the patch in its image
    segments: Tensor  # (rows, length)


class Bill(NamedTuple):
    """What a way to batch images costs: tokens through the MLPs, pairs of tokens through attention."""

    tokens: int
    pairs: int


def layout(lengths: Sequence[int], length: int | None = None) -> Tensor:
    """Segments (rows, length) for sequences of these lengths: longest first, each into the first row with room."""
    length = sum(lengths) if length is None else length
    if not lengths or min(lengths) < 1 or max(lengths) > length:
        raise LabkitError(f"Sequences of {list(lengths)} tokens do not fit into rows of {length}; choose longer rows.")
    rows: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((row for row in rows if len(row) + lengths[i] <= length), None)
        if row is None:
            rows.append(row := [])
        row += [i] * lengths[i]
    return torch.tensor([row + [-1] * (length - len(row)) for row in rows])


def places(segments: Tensor) -> list[tuple[int, slice]]:
    """Where each sequence lies: its row, and from where to where in it."""
    found = []
    for i in range(int(segments.max()) + 1):
        rows, columns = (segments == i).nonzero().unbind(dim=1)
        found.append((int(rows[0]), slice(int(columns[0]), int(columns[-1]) + 1)))
    return found


def fill(parts: Sequence[Tensor], segments: Tensor) -> Tensor:
    """Lay sequences (n_i, ...) where `segments` wants them; zeros where nobody is."""
    x = parts[0].new_zeros(*segments.shape, *parts[0].shape[1:])
    for part, where in zip(parts, places(segments), strict=True):
        x[where] = part
    return x


def unpack(x: Tensor, segments: Tensor) -> list[Tensor]:
    """The sequences (n_i, ...) again, in the order in which they were given."""
    return [x[where] for where in places(segments)]


def pack(images: Sequence[Tensor], patch: int, length: int | None = None) -> Packed:
    """Images (c, h_i, w_i) cut into patches and packed into rows of `length` tokens, by default into one row."""
    patches, coords = [], []
    for image in images:
        patches.append(cut(image[None], patch)[0])
        sides = (torch.arange(side // patch, device=image.device) for side in image.shape[-2:])
        coords.append(torch.cartesian_prod(*sides))
    segments = layout([len(part) for part in patches], length).to(patches[0].device)
    return Packed(fill(patches, segments), fill(coords, segments), segments)


def block_diagonal_bias(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """(rows, 1, length, length): 0 within a sequence, -inf between two; empty places see only each other."""
    apart = segments[:, :, None] != segments[:, None, :]
    return torch.zeros(apart.shape, dtype=dtype, device=apart.device).masked_fill(apart, -torch.inf)[:, None]


def bills(lengths: Sequence[int], length: int | None = None) -> dict[str, Bill]:
    """Tokens and pairs for the images one by one, packed into rows, and padded to the longest."""
    rows, row = layout(lengths, length).shape
    return {
        "alone": Bill(sum(lengths), sum(n * n for n in lengths)),
        "packed": Bill(rows * row, rows * row**2),
        "padded": Bill(len(lengths) * max(lengths), len(lengths) * max(lengths) ** 2),
    }


class EachAlone(nn.Module):
    """A position module of the scores, applied to each packed image on its own grid."""

    def __init__(self, position: nn.Module, segments: Tensor, grids: Sequence[Grid]) -> None:
        super().__init__()
        self.position, self.places, self.grids = position, places(segments), grids

    def forward(self, q: Tensor, k: Tensor, bias: Tensor, _: Grid, prefix: int) -> tuple[Tensor, Tensor, Tensor]:
        new_q, new_k, bias = q.clone(), k.clone(), bias.repeat(1, q.shape[1], 1, 1)
        for (row, where), grid in zip(self.places, self.grids, strict=True):
            one = (slice(row, row + 1), slice(None), where)
            new_q[one], new_k[one], extra = self.position(q[one], k[one], None, grid, prefix)
            if extra is not None:
                bias[(*one, where)] += extra
        return new_q, new_k, bias


def packed_forward(vit: ViT, images: Sequence[Tensor], length: int | None = None) -> Tensor:
    """Logits (images, classes) of images (c, h_i, w_i), the same as one by one; rows of `length` tokens.

    Each image has its own class token, and its own positions resampled to its grid.
    """
    embedded = [vit.embed(image[None]) for image in images]
    grids, x = [grid for _, grid in embedded], [x[0] for x, _ in embedded]
    segments = layout([len(part) for part in x], length).to(x[0].device)
    rows = fill(x, segments)
    bias = block_diagonal_bias(segments, rows.dtype)
    for block in vit.blocks:
        if not isinstance(block, Block) or not isinstance(block.attn, Attention) or block.reducer is not None:
            raise LabkitError("Only blocks with plain attention and no token reducer can tell packed images apart.")
        attn = _alone(block.attn, segments, grids)
        rows = rows + block.ls1(attn.attend(block.norm1(rows), bias, prefix=vit.prefix)[0])
        rows = rows + block.ls2(block.mlp(block.norm2(rows)))
        if block.after is not None:
            rows = fill(_after(block.after, unpack(rows, segments), grids, vit.prefix), segments)
    return torch.cat([vit.read(part[None]) for part in unpack(rows, segments)])


def _alone(attn: Attention, segments: Tensor, grids: Sequence[Grid]) -> Attention:
    """The attention itself, or a copy that shares its weights and whose positions are those of each image."""
    if attn.position is None:
        return attn
    copied = copy.copy(attn)
    copied._modules = {**attn._modules, "position": EachAlone(attn.position, segments, grids)}
    return copied


def _after(after: nn.Module, parts: Sequence[Tensor], grids: Sequence[Grid], prefix: int) -> list[Tensor]:
    """A position module behind a block, on the patch tokens of each image."""
    each = zip(parts, grids, strict=True)
    return [torch.cat([x[:prefix], after(x[None, prefix:], grid)[0]]) for x, grid in each]
