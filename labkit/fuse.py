"""A residual block of convolutions, tile by tile: what lies between its layers never leaves the tile.

Layer after layer, every intermediate image is written to memory and read back. Tile after tile, a small piece
goes through all layers while it is warm; its rim (the halo, as wide as the kernels reach) is computed twice.
"On the Efficiency of Convolutional Neural Networks", 2024 (S383), there in one kernel, here in plain torch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.errors import LabkitError

POINTWISE = (nn.ReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Identity)

Span = tuple[int, int]  # from, to
Region = tuple[Span, Span]  # rows, columns


class ResidualBlock(nn.Module):
    """x + body(x): a depthwise convolution, then an MLP at each pixel, written as pointwise convolutions."""

    def __init__(self, dim: int, kernel: int = 3, ratio: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim),
            nn.Conv2d(dim, ratio * dim, 1),
            nn.ReLU(),
            nn.Conv2d(ratio * dim, dim, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Tiled(NamedTuple):
    """The block's output, and the most bytes that were alive at once between its input and its output."""

    out: Tensor
    live_bytes: int


def tile_fused_block(block: ResidualBlock, x: Tensor, tile: int) -> Tiled:
    """`block(x)` in tiles of `tile` by `tile` pixels; a tile as large as x is the usual way, by layers."""
    if tile < 1:
        raise LabkitError(f"A tile of {tile} pixels holds nothing; choose tile=1 or more.")
    halos = [_halo(layer) for layer in block.body]
    (h, w), out, live_bytes = x.shape[-2:], torch.empty_like(x), 0
    for top in range(0, h, tile):
        for left in range(0, w, tile):
            rows, columns = (top, min(top + tile, h)), (left, min(left + tile, w))
            piece, live = _one_tile(block.body, halos, x, rows, columns)
            here = ..., slice(*rows), slice(*columns)
            out[here] = x[here] + piece
            live_bytes = max(live_bytes, live)
    return Tiled(out, live_bytes)


def _one_tile(
    body: nn.Sequential, halos: list[tuple[int, int]], x: Tensor, rows: Span, columns: Span
) -> tuple[Tensor, int]:
    """body(x) in these rows and columns, and the most bytes that one layer read and wrote on the way."""
    h, w = x.shape[-2:]
    needs = [(rows, columns)]  # what each layer must be given, from the last one back to the first
    for down, across in reversed(halos):
        rows, columns = needs[0]
        needs.insert(0, (_grow(rows, down, h), _grow(columns, across, w)))
    piece, live = x[..., slice(*needs[0][0]), slice(*needs[0][1])], 0
    for layer, halo, given, wanted in zip(body, halos, needs[:-1], needs[1:], strict=True):
        made = _apply(layer, halo, piece, given, wanted)
        live = max(live, piece.nbytes + made.nbytes)
        piece = made
    return piece, live


def _apply(layer: nn.Module, halo: tuple[int, int], piece: Tensor, given: Region, wanted: Region) -> Tensor:
    if not isinstance(layer, nn.Conv2d):
        return layer(piece)
    # Where the halo reaches over the border of the image there are zeros, for every layer anew.
    sides: list[int] = []
    for axis in (1, 0):
        start, end = wanted[axis][0] - given[axis][0], given[axis][1] - wanted[axis][1]
        sides += [halo[axis] - start, halo[axis] - end]
    return F.conv2d(F.pad(piece, sides), layer.weight, layer.bias, dilation=layer.dilation, groups=layer.groups)


def _grow(span: Span, halo: int, size: int) -> Span:
    return max(span[0] - halo, 0), min(span[1] + halo, size)


def _halo(layer: nn.Module) -> tuple[int, int]:
    """How many pixels a layer looks beyond its own, down and across."""
    if isinstance(layer, POINTWISE):
        return 0, 0
    if isinstance(layer, nn.Conv2d) and layer.stride == (1, 1) and layer.padding_mode == "zeros":
        reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        if layer.padding == (reach[0] // 2, reach[1] // 2) and not any(r % 2 for r in reach):
            return reach[0] // 2, reach[1] // 2
    raise LabkitError(
        f"A tile cannot pass through {layer}; expected convolutions of stride 1 that keep the size of the "
        "image by padding with zeros, and activations. Fold a batch norm into its convolution first."
    )
