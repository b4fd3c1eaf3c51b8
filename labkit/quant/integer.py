"""A transformer's arithmetic with whole numbers only: add, multiply, shift, divide and drop the rest; no floats.

"I-ViT: Integer-only Quantization for Efficient Vision Transformer Inference", 2022 (S015). A code q with a scale s
stands for q s; scales are constants of a layer, and become integers before the codes flow.

    dyadic        q · ratio  ≈  (q · m) >> shift                       rescales what a matrix product gives
    exponential   e^x = 2^(x log2 e),  log2 e ≈ 1 + 1/2 - 1/16         a power of two is a shift, and
                  2^r ≈ 1 + r/2 for r in (-1, 0]                       at most 6.15 % too large
    square root   x ← (x + n // x) >> 1, from above                    floor(√n), exactly

Four things differ from the published code. The sigmoid in GELU is each number's own (there, a row's largest number
decides how well the others are computed); nothing is divided by a LayerNorm's weight, which may be zero; divisions
round to the nearest; and where a scale is coarse, codes are multiplied by a power of two before a shift drops bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labkit.errors import LabkitError

FRACTION = 20  # bits behind the point of an exponential
UNIT = 14  # bits that a halving is divided into, at least
NORMAL = 30  # bits behind the point of a normalised number


@dataclass(frozen=True)
class Dyadic:
    """A positive ratio as multiplier / 2^shift; both may hold one integer for each channel."""

    multiplier: Tensor
    shift: Tensor

    @classmethod
    def of(cls, ratio: Tensor | float) -> Dyadic:
        """Within 2^-31 of the ratio, relatively: the multiplier has 31 bits."""
        ratio = torch.as_tensor(ratio, dtype=torch.float64)
        if not ((ratio > 2.0**-31) & (ratio < 2.0**30)).all():
            raise LabkitError("A ratio of scales is not between 2^-31 and 2^30; check that no scale is zero or NaN.")
        mantissa, exponent = torch.frexp(ratio)  # ratio = mantissa 2^exponent, 1/2 ≤ mantissa < 1
        return cls((mantissa * 2**31).round().long(), 31 - exponent.long())


def dyadic_requant(q: Tensor, by: Dyadic, bits: int = 8, signed: bool = True) -> Tensor:
    """round(q · ratio), halves upwards, within the codes of `bits` bits: int32 codes from int32 accumulators."""
    return clip(rounding_shift(q.long() * by.multiplier, by.shift), bits, signed)


def rounding_shift(q: Tensor, shift: Tensor | int) -> Tensor:
    """q / 2^shift to the nearest whole number, halves upwards."""
    return (q + (torch.ones_like(q) << shift >> 1)) >> shift


def clip(q: Tensor, bits: int, signed: bool) -> Tensor:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return q.clamp(low, high).int()


def integer_linear(q: Tensor, weight: Tensor, bias: Tensor, by: Dyadic, bits: int = 8) -> Tensor:
    """Codes (…, in) through a layer (out, in): `bias` has the accumulator's scale, `by` leads to the next one's.

    On the CPU, where torch multiplies matrices of integers.
    """
    return dyadic_requant(q.int() @ weight.int().mT + bias, by, bits)


def int_sqrt(n: Tensor) -> Tensor:
    """floor(√n) of non-negative int64 numbers: Newton's steps from above, until one does not go down."""
    if (n < 0).any():
        raise LabkitError("A negative number has no square root here; pass integers from 0 on.")
    x = torch.full_like(n, 2**32)
    while True:
        lower = (x + n // x.clamp(min=1)) >> 1
        if (lower >= x).all():
            return x
        x = torch.minimum(x, lower)


@dataclass(frozen=True)
class Exponent:
    """A scale as the whole numbers that `shift_exp` needs: codes << lift, of which `unit` are a factor e."""

    lift: int
    unit: int
    lowest: int

    @classmethod
    def of(cls, scale: float) -> Exponent:
        scale = min(_checked(scale), 64.0)  # e^-64 is nothing already
        lift = max(0, math.ceil(math.log2(scale * 2**UNIT)))
        return cls(lift, round(2**lift / scale), -math.ceil(2 * FRACTION / scale))


def shift_exp(q: Tensor, scale: float | Exponent) -> tuple[Tensor, int]:
    """e^x of codes q ≤ 0 with x = q · scale, and the code of e^0, so that their ratio is the exponential.

    It is 1 to 1.0615 · 2^(0.0052 |x|) times too large, until it falls below its last bit, 2^-34 or finer.
    """
    by = scale if isinstance(scale, Exponent) else Exponent.of(scale)
    q = q.long().clamp(min=by.lowest) << by.lift
    p = q + (q >> 1) - (q >> 4)  # as many of p as of lifted codes a factor e are a factor 2
    halvings = (-p) // by.unit
    r = p + halvings * by.unit
    return ((2 * by.unit + r) << FRACTION) >> (halvings + 1), by.unit << FRACTION


def shiftmax(q: Tensor, scale: float, bits: int = 8) -> tuple[Tensor, float]:
    """Softmax of the last axis: unsigned codes and their scale, 1 / (2^bits - 1), so that probability 1 has a code."""
    return softmax_codes(q, Exponent.of(scale), bits), 1 / (2**bits - 1)


def softmax_codes(q: Tensor, by: Exponent, bits: int = 8) -> Tensor:
    exp, _ = shift_exp(q.long() - q.long().amax(dim=-1, keepdim=True), by)
    return _share(exp, exp.sum(dim=-1, keepdim=True), bits).int()


def shift_gelu(q: Tensor, scale: float, bits: int = 8) -> tuple[Tensor, float]:
    """x · sigmoid(1.702 x), with `bits` bits for the sigmoid: codes (of q's bits and as many more) and their scale."""
    return gelu_codes(q, Exponent.of(1.702 * scale), bits), scale / (2**bits - 1)


def gelu_codes(q: Tensor, by: Exponent, bits: int = 8) -> Tensor:
    """`by` belongs to 1.702 times the scale of q."""
    exp, one = shift_exp(-q.long().abs(), by)
    return q * _share(torch.where(q < 0, exp, one), exp + one, bits)


def _share(part: Tensor, whole: Tensor, bits: int) -> Tensor:
    """part / whole with 1 as the last of 2^bits codes."""
    return (part * (2**bits - 1) + (whole >> 1)) // whole


@dataclass(frozen=True)
class IntegerLayerNorm:
    """LayerNorm of codes: mean and variance are exact, the root is `int_sqrt`, the affine part one dyadic step.

    The mean is never divided out: d q - Σ q is d times what is left, in whole numbers.
    """

    weight: Tensor
    bias: Tensor
    shift: int
    eps: int
    lift: int
    bits: tuple[int, int]

    @classmethod
    def of(
        cls, norm: nn.LayerNorm, scale: float, out_scale: float, bits: int = 8, out_bits: int = 8
    ) -> IntegerLayerNorm:
        """The integers of a layer whose input codes have `scale` and `bits`, and the output codes the other two."""
        d, scale, out_scale = norm.normalized_shape[-1], _checked(scale), _checked(out_scale)
        d_bits = math.ceil(math.log2(d))
        room = 62 - 2 * (bits + d_bits) - d_bits  # what a sum of squares leaves free in 63 bits
        eps = norm.eps * d**3 / scale**2
        if room < 0 or eps > 2.0**61:
            raise LabkitError(f"Codes of {bits} bits and width {d} overflow 64-bit sums of squares; use fewer bits.")
        lift = min(room // 2, int((61 - math.log2(max(eps, 1.0))) / 2))
        weight = (torch.ones(d) if norm.weight is None else norm.weight.detach()).double() * d**0.5 / out_scale
        bias = (torch.zeros(d) if norm.bias is None else norm.bias.detach()).double().to(weight.device) / out_scale
        peak = max(weight.abs().max().item(), bias.abs().max().item(), 0.25)  # below half a code nothing is left
        fine = 29 - math.ceil(math.log2(peak))
        codes = (weight * 2.0**fine).round().long(), (bias * 2.0 ** (fine + NORMAL)).round().long()
        return cls(*codes, fine + NORMAL, max(round(eps * 4.0**lift), 1), lift, (bits, out_bits))

    def __call__(self, q: Tensor) -> Tensor:
        bits, out_bits = self.bits
        if (q.abs() > 2 ** (bits - 1)).any():
            raise LabkitError(
                f"A code is outside the {bits} signed bits that this norm was made for; requantise first."
            )
        q = q.long()
        rest = (q * q.shape[-1] - q.sum(dim=-1, keepdim=True)) << self.lift
        root = int_sqrt(rest.square().sum(dim=-1, keepdim=True) + self.eps)
        normal = (rest << NORMAL) // root  # / √d: between -1 and 1
        return clip(rounding_shift(normal * self.weight + self.bias, self.shift), out_bits, signed=True)


def _checked(scale: float) -> float:
    if not 2.0**-20 <= scale < 2.0**20:
        raise LabkitError(f"scale={scale:g} is not between 2^-20 and 2^20; is the layer all zeros, or NaN?")
    return scale
