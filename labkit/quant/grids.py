"""Grids: the values that a quantized number may have, and the integer code of each.

Every grid has the same four methods, so what uses one can use any. What lies outside is clipped to the nearest end,
NaN is refused, and nothing in gives nothing out. The finite scalar grid is from "Finite Scalar Quantization: VQ-VAE
Made Simple", 2023 (S192); 8-bit floats are from "FP8 Formats for Deep Learning", 2022.

    rounded = Uniform.of(x.amin(), x.amax(), bits=8).round(x)
    rows = Uniform.of(*torch.aminmax(weight, dim=1, keepdim=True), bits=4)  # one scale for each row
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from labkit.errors import LabkitError

FLOAT8 = {"e4m3": (3, -6, 448.0), "e5m2": (2, -14, 57344.0)}  # bits behind the point, lowest exponent, largest value
ONE = torch.tensor(1.0)


class Grid(Protocol):
    """x → codes (int32) → values; `levels()` are all values, rising, as (levels, *shape of the scale)."""

    def encode(self, x: Tensor) -> Tensor: ...
    def decode(self, codes: Tensor) -> Tensor: ...
    def levels(self) -> Tensor: ...
    def round(self, x: Tensor) -> Tensor:
        """The value that stands for each x, in the precision of x."""
        return self.decode(self.encode(x)).to(x.dtype)


def prepared(x: Tensor) -> Tensor:
    """x in float32 or finer, so that half precision does not round the codes; NaN has no code and is refused."""
    if x.sum().isnan() and x.isnan().any():  # a sum is read faster, and infinities of both signs make it NaN as well
        raise LabkitError("The tensor holds NaN, which no grid can represent; find where it arises before rounding.")
    return x.to(torch.promote_types(x.dtype, torch.float32))


def all_codes(first: int, last: int, scale: Tensor) -> Tensor:
    """first, first + 1, ..., last along a new first axis that broadcasts against the scale."""
    codes = torch.arange(first, last + 1, dtype=torch.int32, device=scale.device)
    return codes.reshape(-1, *[1] * scale.ndim)


def check_bits(bits: int, fewest: int = 1, most: int = 16) -> None:
    if not fewest <= bits <= most:
        raise LabkitError(f"This grid has from {fewest} to {most} bits, and bits={bits} was asked for.")


def check_scale(scale: Tensor) -> None:
    if not (scale.isfinite() & (scale > 0)).all():
        raise LabkitError("A scale must be positive and finite; check the range that it was made from.")


def check_range(low: Tensor | float, high: Tensor | float) -> tuple[Tensor, Tensor]:
    """The two ends as tensors of float32 or finer, finite and in order."""
    low, high = prepared(torch.as_tensor(low)), prepared(torch.as_tensor(high))
    if not (low.isfinite() & high.isfinite() & (low <= high)).all():
        raise LabkitError("A range needs finite ends with low <= high; were the arguments exchanged?")
    return low, high


def next_power_of_two(scale: Tensor) -> Tensor:
    """The smallest power of two that is not below the scale; to multiply by it is to shift bits."""
    mantissa, exponent = torch.frexp(scale)
    return torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).to(exponent.dtype))


@dataclass(frozen=True, eq=False)
class Uniform(Grid):
    """scale · (code - zero). Codes are 0 to 2^bits - 1; signed ones leave the most negative out, for symmetry."""

    scale: Tensor
    zero: Tensor
    bits: int
    signed: bool = False

    def __post_init__(self) -> None:
        check_bits(self.bits, fewest=2 if self.signed else 1)
        check_scale(self.scale)

    @classmethod
    def of(
        cls, low: Tensor | float, high: Tensor | float, bits: int, symmetric: bool = False, power_of_two: bool = False
    ) -> Uniform:
        """The grid over [low, high], widened to hold 0; inside the error is at most scale / 2.

        `symmetric` takes the larger end for both and has zero = 0. `power_of_two` makes the scale up to twice as long.
        """
        check_bits(bits, fewest=2 if symmetric else 1)
        low, high = check_range(low, high)
        low, high = low.clamp(max=0), high.clamp(min=0)
        if symmetric:
            scale = torch.maximum(-low, high) / (2 ** (bits - 1) - 1)
        else:  # each end by itself: the difference of two large ones could overflow
            scale = high / (2**bits - 1) - low / (2**bits - 1)
        scale = torch.where(scale > 0, scale.clamp(min=torch.finfo(scale.dtype).tiny), 1.0)  # 1 where all is 0
        if power_of_two:
            scale = next_power_of_two(scale)
        zero = torch.zeros_like(scale) if symmetric else (-low / scale).round()
        return cls(scale, zero.to(torch.int32), bits, symmetric)

    @property
    def ends(self) -> tuple[int, int]:
        """The first and the last code."""
        top = 2 ** (self.bits - 1) - 1
        return (-top, top) if self.signed else (0, 2**self.bits - 1)

    def encode(self, x: Tensor) -> Tensor:
        return ((prepared(x) / self.scale).round() + self.zero).clamp(*self.ends).to(torch.int32)

    def steps(self, x: Tensor) -> Tensor:
        """code - zero as whole floats: what integer products are made of, in half the passes."""
        first, last = self.ends
        return (prepared(x) / self.scale).round_().clamp_(first - self.zero, last - self.zero)

    def decode(self, codes: Tensor) -> Tensor:
        return (codes - self.zero) * self.scale

    def round(self, x: Tensor) -> Tensor:
        return (self.steps(x) * self.scale).to(x.dtype)

    def levels(self) -> Tensor:
        return self.decode(all_codes(*self.ends, self.scale))


@dataclass(frozen=True, eq=False)
class Binary(Grid):
    """Two levels, -scale (code 0) and +scale (code 1); 0 itself goes up."""

    scale: Tensor

    @classmethod
    def of(cls, x: Tensor, dim: int | tuple[int, ...] | None = None) -> Binary:
        """The scale with the smallest squared error is the mean size; one for all, or one along each of `dim`."""
        return cls(prepared(x).abs().mean(dim=dim, keepdim=dim is not None))

    def encode(self, x: Tensor) -> Tensor:
        return (prepared(x) + torch.zeros_like(self.scale) >= 0).to(torch.int32)

    def decode(self, codes: Tensor) -> Tensor:
        return (2 * codes - 1) * self.scale

    def levels(self) -> Tensor:
        return self.decode(all_codes(0, 1, self.scale))


@dataclass(frozen=True, eq=False)
class FSQ(Grid):
    """`count` evenly spaced levels from -1 to 1 for tanh(x): any real number goes in, a bounded one comes out.

    An odd count is the paper's; for an even one the paper shifts the levels by half a step to have 0, and this stays
    symmetric. As values are those of tanh(x), `round` is not idempotent: encode(atanh(value)) is the code again.
    """

    count: int

    def __post_init__(self) -> None:
        if self.count < 2:
            raise LabkitError(f"A scalar needs at least two levels to say anything; count={self.count} was asked for.")

    def encode(self, x: Tensor) -> Tensor:
        return ((self.count - 1) / 2 * (1 + prepared(x).tanh())).round().to(torch.int32)

    def decode(self, codes: Tensor) -> Tensor:
        """In float64, so that no precision of x is lost."""
        return (2 * codes.double() - (self.count - 1)) / (self.count - 1)

    def levels(self) -> Tensor:
        return self.decode(torch.arange(self.count))


@dataclass(frozen=True, eq=False)
class Float8(Grid):
    """Eight bits as sign, exponent and mantissa: the spacing doubles with each octave. Too large is the largest.

    The code is the sign times the byte without its sign bit, so that codes rise with the values.
    """

    kind: Literal["e4m3", "e5m2"]
    scale: Tensor = ONE

    def __post_init__(self) -> None:
        if self.kind not in FLOAT8:
            raise LabkitError(f'There is no 8-bit float "{self.kind}"; choose "e4m3" or "e5m2".')
        check_scale(self.scale)

    def encode(self, x: Tensor) -> Tensor:
        mantissa, lowest, top = FLOAT8[self.kind]
        x = prepared(x) / self.scale
        size = x.abs().clamp(max=top)
        exponent = torch.frexp(size.clamp(min=2.0**lowest)).exponent - 1
        steps = torch.ldexp(size, mantissa - exponent).round()
        return (x.sign() * ((exponent - lowest) * 2.0**mantissa + steps)).to(torch.int32)

    def decode(self, codes: Tensor) -> Tensor:
        mantissa, lowest, _ = FLOAT8[self.kind]
        above = (codes.abs() >> mantissa).clamp(min=1) - 1  # octaves above the lowest, which is evenly spaced down to 0
        steps = codes.abs() - (above << mantissa)
        return torch.ldexp((codes.sign() * steps).to(self.scale.dtype), above + (lowest - mantissa)) * self.scale

    def levels(self) -> Tensor:
        top = 126 if self.kind == "e4m3" else 123
        return self.decode(all_codes(-top, top, self.scale))
