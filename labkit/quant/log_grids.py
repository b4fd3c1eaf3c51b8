"""Logarithmic grids: levels a constant factor apart, for numbers from 0 up that are mostly small, as attention is.

A factor of 2 decodes with a bit shift; √2 with a shift and one of two factors: "RepQ-ViT: Scale Reparameterization for
Post-Training Quantization of Vision Transformers", 2022 (S320), "RepQuant: Towards Accurate Post-Training Quantization
of Large Transformer Models via Scale Reparameterization", 2024 (S289). Any factor 2^(q/r) takes a shift and a table of
r numbers: "AdaLog: Post-Training Quantization for Vision Transformers with Adaptive Logarithm Quantizer", 2024 (S041).
Shifting the numbers before the logarithm makes room for 0: "I&S-ViT: An Inclusive & Stable Method for Pushing the Limit
of Post-Training ViTs Quantization", 2023 (S028).

    grid = fit_ada_log(attn, bits=4, bases=[19, 37], scales=[float(attn.amax())])
    attn_rounded = grid.round(attn)
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from labkit.errors import LabkitError
from labkit.quant.grids import ONE, Grid, Uniform, all_codes, check_bits, check_range, check_scale, prepared


@dataclass(frozen=True, eq=False)
class AdaLog(Grid):
    """scale · 2^(-code · q/r), and 0 for the last code: 2^bits levels in all. What is below 0 counts as 0.

    q = r is the log2 grid. Between the ends the relative error is at most √base - 1, with base = 2^(q/r).
    `table_bits` rounds the table that decodes; without it the table is exact.
    """

    bits: int
    q: int
    r: int = 37
    scale: Tensor = ONE
    table_bits: int | None = None

    def __post_init__(self) -> None:
        check_bits(self.bits)
        check_scale(self.scale)
        if self.q < 1 or self.r < 1:
            raise LabkitError(f"The base is 2^(q/r) with whole q, r from 1 up; q={self.q}, r={self.r} were given.")
        if self.table_bits is not None:
            codes = all_codes(0, 2**self.bits - 1, self.scale)
            values = self.decode(codes)
            if ((self.encode(values) != codes) & (values > 0)).any():
                raise LabkitError(
                    f"A table of {self.table_bits} bits blurs levels that are 2^({self.q}/{self.r}) apart; "
                    "give table_bits more."
                )

    def encode(self, x: Tensor) -> Tensor:
        octaves = -(prepared(x) / self.scale).clamp(min=0).log2()
        return (octaves * (self.r / self.q)).round().clamp(0, 2**self.bits - 1).to(torch.int32)

    def decode(self, codes: Tensor) -> Tensor:
        if codes.numel() > 2**self.bits and not self.scale.ndim:  # each level once, and then looked up
            return self.decode(all_codes(0, 2**self.bits - 1, self.scale)).take(codes.long())
        steps = codes.long() * self.q  # a step is 1/r of an octave: whole octaves are shifts, the rest is looked up
        shifts = torch.exp2(-(steps // self.r).to(self.scale.dtype))
        values = self.table().to(codes.device)[steps % self.r] * shifts * self.scale
        return torch.where(codes == 2**self.bits - 1, 0.0, values)

    def table(self) -> Tensor:
        """2^(-i/r) for i < r, in the precision of the scale."""
        table = torch.exp2(-torch.arange(self.r, dtype=torch.float64) / self.r)
        if self.table_bits is not None:
            table = (table * 2**self.table_bits).round() / 2**self.table_bits
        return table.to(self.scale.dtype)

    def levels(self) -> Tensor:
        return self.decode(all_codes(0, 2**self.bits - 1, self.scale)).flip(0)


def log2_grid(bits: int, scale: Tensor = ONE) -> AdaLog:
    """Levels scale · 2^-code, and 0."""
    return AdaLog(bits, 1, 1, scale)


def log_sqrt2_grid(bits: int, scale: Tensor = ONE) -> AdaLog:
    """Levels scale · 2^(-code/2), and 0: twice as many an octave, over half as many octaves."""
    return AdaLog(bits, 1, 2, scale)


def sqrt2_to_log2(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Shifts and factors with 2^(-code/2) = 2^-shift · factor: an even code has the factor 1, an odd one √2."""
    shifts = (codes + 1) // 2
    return shifts, torch.where(codes % 2 == 1, 2.0**0.5, torch.ones_like(codes, dtype=torch.float64))


@dataclass(frozen=True, eq=False)
class ShiftedLog(Grid):
    """2^-k - eta with whole k, chosen by rounding -log2(x + eta) on a uniform line of codes (SULQ).

    Where the line is finer than one octave, several codes share a level: only powers of two decode with a shift.
    """

    line: Uniform
    eta: float

    @classmethod
    def of(cls, low: Tensor | float, high: Tensor | float, bits: int, eta: float) -> ShiftedLog:
        """The codes of [low, high]: code 0 for the highest, the last code for the lowest."""
        low, high = check_range(low, high)
        if not (low + eta > 0).all():
            raise LabkitError(
                f"There is no logarithm of low + eta = {float((low + eta).min()):.3g}; take a larger eta."
            )
        first, last = -(high + eta).log2(), -(low + eta).log2()
        scale = ((last - first) / (2**bits - 1)).clamp(min=2.0**-10)  # finer would serve nothing: k is whole
        return cls(Uniform(scale, (-first / scale).round().to(torch.int32), bits), eta)

    def encode(self, x: Tensor) -> Tensor:
        x = prepared(x) + self.eta
        return self.line.encode(-x.clamp(min=torch.finfo(x.dtype).tiny).log2())

    def decode(self, codes: Tensor) -> Tensor:
        return torch.exp2(-self.line.decode(codes).round()) - self.eta

    def levels(self) -> Tensor:
        return self.decode(all_codes(*self.line.ends, self.line.scale)).flip(0)


def fit_ada_log(
    x: Tensor, bits: int, bases: list[int], scales: list[float], r: int = 37, keep: int = 4, rounds: int = 4
) -> AdaLog:
    """The base 2^(q/r) and the scale with the smallest mean squared error, by a search from coarse to fine.

    All pairs of `bases` (the q) and `scales` are tried; then, `rounds` times, the neighbours of the best `keep` pairs:
    q one less or more, scales closer each time. The result is never worse than any pair that was given.
    """
    if x.numel() == 0 or not bases or not scales:
        raise LabkitError("There is nothing to fit: the search needs numbers, one base and one scale at least.")
    errors: dict[tuple[int, float], float] = {}
    trials = set(product(bases, scales))
    for turn in range(rounds + 1):
        for q, scale in sorted(trials - errors.keys()):
            rounded = _ada_log(x, bits, q, r, scale).round(x)
            errors[q, scale] = float((rounded - x).double().square().mean())
        best = sorted(errors, key=lambda pair: (errors[pair], pair))[:keep]
        factor = 2 ** (0.5 ** (turn + 2))
        near = product(best, (-1, 0, 1), (1 / factor, 1.0, factor))
        trials = {(max(q + step, 1), scale * stretch) for (q, scale), step, stretch in near}
    q, scale = best[0]
    return _ada_log(x, bits, q, r, scale)


def _ada_log(x: Tensor, bits: int, q: int, r: int, scale: float) -> AdaLog:
    return AdaLog(bits, q, r, torch.tensor(scale, dtype=prepared(x[:0]).dtype, device=x.device))
