"""Grids that are fine in one part and coarse in the other: a tangent for attention near 1, and twins for two ranges.

The tangent grid and the median scale are from "DopQ-ViT: Towards Distribution-Friendly and Outlier-Aware Post-Training
Quantization for Vision Transformers", 2024 (S292). Twins are from "PTQ4ViT: Post-Training Quantization for Vision
Transformers with Twin Uniform Quantization", 2021; here no value has two codes.

    Tangent(bits=4, a=1.2).round(attn)
    fit_twin(gelu_outputs, bits=8).round(gelu_outputs)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.errors import LabkitError
from labkit.quant.grids import ONE, Grid, all_codes, check_bits, check_range, check_scale, prepared


@dataclass(frozen=True, eq=False)
class Tangent(Grid):
    """Levels from 0 to `scale`, evenly spaced after the warp tan(a·x) / tan(a): the denser, the nearer to `scale`.

    a = 0 is the uniform grid; towards π/2 ever more levels crowd at the top, and ever fewer are left at 0.
    """

    bits: int
    a: float
    scale: Tensor = ONE

    def __post_init__(self) -> None:
        check_bits(self.bits)
        check_scale(self.scale)
        if not 0 <= self.a <= 1.5:
            raise LabkitError(f"The warp tan(a·x) needs a from 0 to 1.5, just below π/2; a={self.a} was given.")

    def warp(self, x: Tensor) -> Tensor:
        """Where x lies on the evenly spaced axis, from 0 to 1."""
        x = (prepared(x) / self.scale).clamp(0, 1)
        return (self.a * x).tan() / math.tan(self.a) if self.a else x

    def encode(self, x: Tensor) -> Tensor:
        return (self.warp(x) * (2.0**self.bits - 1)).round().to(torch.int32)

    def decode(self, codes: Tensor) -> Tensor:
        share = codes.to(self.scale.dtype) / (2**self.bits - 1)
        x = (share * math.tan(self.a)).atan() / self.a if self.a else share
        return torch.where(share == 1, 1.0, x) * self.scale

    def levels(self) -> Tensor:
        return self.decode(all_codes(0, 2**self.bits - 1, self.scale))


@dataclass(frozen=True, eq=False)
class Twin(Grid):
    """Two evenly spaced halves of n = 2^(bits-1) codes each; a step of the upper one is 2^shift of the lower one.

    Unsigned, for softmax: 0, 1, ..., n-1, then n, n + 2^shift, n + 2·2^shift, ... times the scale.
    Signed, for GELU: -n, ..., -1, then 0, 2^shift, 2·2^shift, ... times the scale. shift = 0 is the uniform grid.
    """

    bits: int
    shift: int
    scale: Tensor
    signed: bool = False

    def __post_init__(self) -> None:
        check_bits(self.bits, fewest=2)
        check_scale(self.scale)
        if not 0 <= self.shift <= 16:
            raise LabkitError(
                f"One step is 2^shift of the other with shift from 0 to 16; shift={self.shift} was given."
            )

    @classmethod
    def of(cls, low: Tensor | float, high: Tensor | float, bits: int, shift: int) -> Twin:
        """The twin that reaches from `low` to `high`: signed where `low` is negative, unsigned where none is."""
        check_bits(bits, fewest=2)
        low, high = check_range(low, high)
        half, signed = 2 ** (bits - 1), bool((low < 0).any())
        top = (half - 1) * 2**shift + (0 if signed else half)
        scale = torch.maximum(-low / half, high / top)
        return cls(bits, shift, torch.where(scale > 0, scale.clamp(min=torch.finfo(scale.dtype).tiny), 1.0), signed)

    @property
    def seam(self) -> int:
        """Where the upper half begins, in steps of the lower one."""
        return 0 if self.signed else 2 ** (self.bits - 1)

    def encode(self, x: Tensor) -> Tensor:
        steps = prepared(x) / self.scale - self.seam
        steps = torch.where(steps < 0, steps, steps / 2.0**self.shift).round()
        return (steps + 2.0 ** (self.bits - 1)).clamp(0, 2.0**self.bits - 1).to(torch.int32)

    def decode(self, codes: Tensor) -> Tensor:
        """Integers all the way: the sum of the seam and of a code that is shifted, or is not."""
        steps = codes - 2 ** (self.bits - 1)
        return (self.seam + torch.where(steps < 0, steps, steps << self.shift)) * self.scale

    def levels(self) -> Tensor:
        return self.decode(all_codes(0, 2**self.bits - 1, self.scale))


def fit_twin(x: Tensor, bits: int, shifts: range = range(17)) -> Twin:
    """The twin over the range of x with the smallest mean squared error; shift 0 among them is evenly spaced."""
    if x.numel() == 0:
        raise LabkitError("There is nothing to fit: the tensor is empty.")
    twins = [Twin.of(x.amin(), x.amax(), bits, shift) for shift in shifts]
    return min(twins, key=lambda twin: float((twin.round(x) - x).double().square().mean()))


def median_scale(scales: Tensor) -> Tensor:
    """One scale for many channels: none has a smaller sum of distances to all, and one wild channel cannot move it.

    Of an even number it is the lower one of the middle two.
    """
    return scales.median()
