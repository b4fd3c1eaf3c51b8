"""One scale for each small block of numbers, whatever the tensor is, and functions as tables of integers.

"Blockwise Compression of Transformer-based Models without Retraining", 2023 (S171). An outlier spoils its own block
only, and a function of b bits needs no arithmetic: there are 2^b inputs, and the table holds the answer to each.

    small = quantize_blocks(weight, block=64, bits=4)
    small.restore(), small.ratio               # close to the weight, in a 7.5th of its memory
    gelu_table(inputs, outputs)(codes)         # codes in, codes out
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.errors import LabkitError
from labkit.quant.grids import Grid, Uniform, check_bits, prepared


@dataclass(frozen=True, eq=False)
class Blocks:
    """A tensor in codes (blocks, block), int8, with one scale (blocks, 1) of 16 bits for each block."""

    codes: Tensor
    scale: Tensor
    bits: int
    shape: torch.Size

    def restore(self) -> Tensor:
        """The values, in float32; the padding of the last block is cut off."""
        values = self.codes * self.scale.float()
        return values.flatten()[: self.shape.numel()].reshape(self.shape)

    @property
    def ratio(self) -> float:
        """How many times smaller than float32 it is: 32 / (bits + 16 / block), where the blocks are full."""
        return 32 * self.shape.numel() / (self.bits * self.shape.numel() + 16 * len(self.scale))


def quantize_blocks(x: Tensor, block: int = 64, bits: int = 8) -> Blocks:
    """Symmetric rounding in runs of `block` numbers, in the order of memory; the last run is padded with zeros.

    `block = x.numel()` is one scale for the tensor, `block = x.shape[-1]` one for each row. The scales are bfloat16,
    which has the range of float32; their rounding moves the largest number by a quarter of a step at most, which is
    why nothing is clipped and the error stays below scale / 2.
    """
    check_bits(bits, fewest=2, most=8)
    if block < 1 or x.numel() == 0:
        raise LabkitError(f"Blocks of {block} of {x.numel()} numbers: both must be at least 1.")
    runs = F.pad(prepared(x).flatten(), (0, -x.numel() % block)).reshape(-1, block)
    if not runs.isfinite().all():
        raise LabkitError("The tensor holds infinity, for which a block has no scale; clip it first.")
    top = runs.abs().amax(dim=1, keepdim=True)
    scale = (top / (2 ** (bits - 1) - 1)).clamp(min=torch.finfo(torch.float32).tiny).bfloat16()
    grid = Uniform(scale.to(runs.dtype), torch.zeros_like(scale, dtype=torch.int32), bits, signed=True)
    return Blocks(grid.encode(runs).to(torch.int8), scale, bits, x.shape)


@dataclass(frozen=True, eq=False)
class Table:
    """A function from codes to codes: one entry for every code of `inputs`, itself a code of `outputs`."""

    inputs: Uniform
    outputs: Grid
    entries: Tensor

    @classmethod
    def of(cls, function: Callable[[Tensor], Tensor], inputs: Uniform, outputs: Grid) -> Table:
        if inputs.scale.ndim:
            raise LabkitError("A table needs one scale for all its inputs; make the grid from x.amin() and x.amax().")
        return cls(inputs, outputs, outputs.encode(function(inputs.levels())))

    def __call__(self, codes: Tensor) -> Tensor:
        return self.entries.to(codes.device)[codes.long() - self.inputs.ends[0]]


def gelu_table(inputs: Uniform, outputs: Grid) -> Table:
    """GELU: at every level of `inputs` the exact function, rounded once."""
    return Table.of(F.gelu, inputs, outputs)


def exp_table(scale: float, bits: int, precision: int = 15) -> Tensor:
    """exp(-scale · i) for all differences i of two codes of `bits`, as whole numbers: 1 is 2^precision."""
    check_bits(bits, most=12)
    steps = torch.arange(2**bits, dtype=torch.float64)
    return ((-scale * steps).exp() * 2.0**precision).round().long()


def table_softmax(codes: Tensor, table: Tensor, bits: int = 8) -> Tensor:
    """Softmax over the last axis from score codes to codes of `bits` in which 2^bits - 1 is 1; integers all the way.

    Only the distance to the largest score counts, so one table of exponentials serves all rows. Then a row is divided
    by its sum, and the division rounds to the nearest.
    """
    if codes.is_floating_point():
        raise LabkitError("The softmax of a table takes integer codes; encode the scores first.")
    top: int = 2**bits - 1
    weights = table.to(codes.device)[(codes.amax(dim=-1, keepdim=True) - codes).long()]
    total = weights.sum(dim=-1, keepdim=True)
    return ((2 * top * weights + total) // (2 * total)).to(torch.int32)
