"""Add fixed noise before rounding and take it off behind the layer: the error no longer depends on the value.

"NoisyQuant: Noisy Bias-Enhanced Post-Training Activation Quantization for Vision Transformers", 2022 (S084). One random
number per channel is drawn once and for all; the layer's bias absorbs what it would have added, at no cost:

    W Q(x + noise) + (bias − W noise)

With noise one step wide, the squared error is step²/12 on average over the draws, wherever x lies. So noise helps
values further than step/√12 from the grid and harms those nearer, zeros above all: `best_width` asks the data.

    layer = NoisyLinear(linear, grid.round, draw_noise(linear.in_features, width, generator))
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from labkit.errors import LabkitError


def draw_noise(dim: int, width: float | Tensor, generator: torch.Generator) -> Tensor:
    """One number per channel from −width/2 to width/2; a width for each channel is welcome."""
    return (torch.rand(dim, generator=generator) - 0.5) * torch.as_tensor(width).cpu()


@torch.no_grad()
def absorb(linear: nn.Linear, noise: Tensor) -> nn.Linear:
    """A copy that puts out for x + noise what `linear` does for x."""
    if noise.shape != (linear.in_features,):
        raise LabkitError(f"Noise of shape {tuple(noise.shape)}; expected a number per channel, {linear.in_features}.")
    absorbed = copy.deepcopy(linear)
    moved = linear.weight @ noise.to(linear.weight)
    absorbed.bias = nn.Parameter(-moved if linear.bias is None else linear.bias - moved)
    return absorbed


class NoisyLinear(nn.Module):
    """A linear layer whose input is rounded by `quantizer` with fixed noise on it; zero noise is plain rounding."""

    noise: Tensor

    def __init__(self, linear: nn.Linear, quantizer: Callable[[Tensor], Tensor], noise: Tensor) -> None:
        super().__init__()
        self.linear, self.quantizer = absorb(linear, noise), quantizer
        self.register_buffer("noise", noise.to(linear.weight))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(self.quantizer(x + self.noise))
        return out


def expected_error(x: Tensor, step: float | Tensor, width: float | Tensor) -> Tensor:
    """The mean squared error of each value over all draws of noise `width` wide, on multiples of `step`, in the clip.

    It is the mean over a window around x of the squared distance to the grid, the difference of two antiderivatives.
    """
    step, width = torch.as_tensor(step).to(x), torch.as_tensor(width).to(x)
    if (width < 0).any() or (step <= 0).any():
        raise LabkitError(
            "The width of the noise is negative or the step is not positive; expected width ≥ 0, step > 0."
        )
    offset = x - (x / step).round() * step
    ends = _antiderivative(offset + width / 2, step) - _antiderivative(offset - width / 2, step)
    return torch.where(width > 0, ends / torch.where(width > 0, width, 1), offset.square())


def best_width(x: Tensor, step: float, candidates: int = 11) -> float:
    """Of widths from 0 to a step, the one with the least expected error over the values `x`; 0 says: no noise."""
    widths = [step * i / (candidates - 1) for i in range(candidates)]
    errors = [expected_error(x, step, width).mean().item() for width in widths]
    return widths[errors.index(min(errors))]


def _antiderivative(x: Tensor, step: Tensor) -> Tensor:
    """∫ from 0 to x of the squared distance to the nearest multiple of step: step³/12 for each whole step."""
    whole = (x / step).round()
    return whole * step**3 / 12 + (x - whole * step) ** 3 / 3
