"""Grids whose step and zero are parameters, and rounding that gradients pass.

Rounding has no slope, so gradients pass it as if it were not there (straight through) and stop where values are
clipped. The step of a grid has a slope: "Learned Step Size Quantization", 2019; its zero too: "LSQ+: Improving low-bit
quantization through learnable offsets and better initialization", 2020.

    point.grid = LearnedGrid(Uniform.of(low, high, bits=4))     # two more parameters of the model that has the point
    point.grid.settled()                                        # what they have become, a Uniform again
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from labkit.quant.grids import Uniform
from labkit.quant.point import Point

SPEED = 10  # optimisers move all numbers by about lr: weights are a tenth or less, the logarithm of a step about 1


class LearnedRound(torch.autograd.Function):
    """(code − zero) · step, and slopes for all three; codes run from `ends[0]` to `ends[1]`, and zero is whole.

    Inside them the slopes are 1 for x, code − zero − x / step for the step, and 0 for the zero. Outside, where a value
    is that of the end, they are 0 for x, end − zero for the step, and −step for the zero.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, zero: Tensor, ends: tuple[int, int]) -> Tensor:
        ratio = x / step
        steps = ratio.clamp(ends[0] - zero, ends[1] - zero)
        inside = steps == ratio
        steps.round_()
        ctx.save_for_backward(steps - ratio.mul_(inside), inside, step)
        return steps * step

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        slope, inside, step = ctx.saved_tensors
        passed = gradient * inside
        clipped = (passed - gradient).sum_to_size(step.shape)
        return passed, (gradient * slope).sum_to_size(step.shape), clipped * step, None


class LearnedGrid(nn.Module):
    """A uniform grid that begins as the one it is given; its step, and its zero if it has one, are parameters.

    The step is learned as a logarithm: it stays positive, and one learning rate fits all sizes. The zero is learned
    as a share of the codes, and is rounded: the value 0 keeps a code of its own.
    """

    start: Tensor
    start_zero: Tensor

    def __init__(self, grid: Uniform) -> None:
        super().__init__()
        self.bits, self.signed, self.ends = grid.bits, grid.signed, grid.ends
        self.register_buffer("start", grid.scale)
        self.register_buffer("start_zero", grid.zero.to(grid.scale).expand_as(grid.scale))
        self.growth = nn.Parameter(torch.zeros_like(grid.scale.flatten()))  # flat: vectors are spared weight decay
        self.shift = None if grid.signed else nn.Parameter(torch.zeros_like(grid.scale.flatten()))

    @property
    def step(self) -> Tensor:
        return self.start * (SPEED * self.growth).exp().reshape(self.start.shape)

    @property
    def zero(self) -> Tensor:
        if self.shift is None:
            return self.start_zero
        last = self.ends[1]
        zero = self.start_zero + SPEED * last * self.shift.reshape(self.start.shape)
        return zero + (zero.round().clamp(0, last) - zero).detach()

    def round(self, x: Tensor) -> Tensor:
        fine = x.to(torch.promote_types(x.dtype, torch.float32))
        rounded: Tensor = LearnedRound.apply(fine, self.step, self.zero, self.ends)
        return rounded.to(x.dtype)

    def settled(self) -> Uniform:
        return Uniform(self.step.detach(), self.zero.detach().round().to(torch.int32), self.bits, self.signed)

    def encode(self, x: Tensor) -> Tensor:
        return self.settled().encode(x)

    def decode(self, codes: Tensor) -> Tensor:
        return self.settled().decode(codes)

    def levels(self) -> Tensor:
        return self.settled().levels()


class StraightPoint(Point):
    """A point whose grid is of another kind, or found anew by each token: it stays as it is, and all gradients pass."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (super().forward(x) - x).detach()
