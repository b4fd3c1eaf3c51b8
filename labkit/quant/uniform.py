"""Uniform quantization, simulated: numbers are rounded to 2^bits evenly spaced levels between their extremes.

"Integer Quantization for Deep Learning Inference: Principles and Empirical Evaluation", 2020. At 16 bits and more
the model is the float model to rounding error.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from labkit.errors import LabkitError


def round_to_grid(x: Tensor, bits: int, low: Tensor, high: Tensor) -> Tensor:
    """Round to the 2^bits levels of [low, high], widened to hold zero exactly; values outside are clipped."""
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).clamp(min=torch.finfo(x.dtype).tiny)
    zero = (-low / scale).round()
    return ((x / scale).round() + zero).clamp(0, 2**bits - 1).sub(zero).mul(scale)


def _extremes(x: Tensor, per_channel: bool) -> tuple[Tensor, Tensor]:
    if not per_channel:
        return x.amin(), x.amax()
    rest = tuple(range(1, x.ndim))
    return x.amin(rest, keepdim=True), x.amax(rest, keepdim=True)


@torch.no_grad()
def simulate(
    model: nn.Module,
    weights: int | None = None,
    activations: int | None = None,
    *,
    per_channel: bool = False,
    calibration: Tensor | None = None,
) -> nn.Module:
    """A copy whose matrices, and whose matrices' inputs, are rounded (min-max, inputs per tensor on `calibration`)."""
    copied = copy.deepcopy(model)
    copied.last = "full"  # the class-row shortcut slices weights behind the layers that are rounded here
    layers = [m for m in copied.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if activations is not None:
        if calibration is None:
            raise LabkitError("Rounding activations needs calibration images; pass calibration=images (64 are enough).")
        ranges: dict[nn.Module, tuple[Tensor, Tensor]] = {}

        def record(layer: nn.Module, inputs: tuple[Tensor]) -> None:
            ranges[layer] = _extremes(inputs[0], per_channel=False)

        hooks = [m.register_forward_pre_hook(record) for m in layers]
        copied(calibration)
        for hook in hooks:
            hook.remove()
        for layer in layers:
            low, high = ranges[layer]
            layer.register_forward_pre_hook(
                lambda _, x, lo=low, hi=high: round_to_grid(x[0], activations, lo, hi)
            )
    for layer in layers if weights is not None else ():
        layer.weight.copy_(round_to_grid(layer.weight, weights, *_extremes(layer.weight, per_channel)))
    return copied
