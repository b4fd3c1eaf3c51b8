"""Where to cut a channel off, below and above: an outlier makes the step longer for all, and may be cheaper to cut.

"RepQuant: Towards Accurate Post-Training Quantization of Large Transformer Models via Scale Reparameterization", 2024
(S289). Both ends of every channel are learned by gradient descent on the rounding error; they start at the extremes,
and the best pair that was met is kept, so that the calibration data never fare worse than with the extremes.

    grid = channel_grid(*fit_clip(activations, bits=4), bits=4)       # activations (n, d), a grid for each channel
"""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.errors import LabkitError
from labkit.quant.fold import channel_grid


def dual_clip(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Values outside [low, high] become the end they passed, and that end receives their gradient."""
    return x.clamp(low, high)


def fit_clip(x: Tensor, bits: int, steps: int = 100) -> tuple[Tensor, Tensor]:
    """(..., d) → the lower and the upper end of every channel, (d,) each, that round `x` with the least error met.

    An end is median ± distance · e^(−cut): an outlier may lie a hundred times as far out as all the others.
    """
    x = x.detach().flatten(0, -2).to(torch.promote_types(x.dtype, torch.float32))
    if x.numel() == 0 or not x.isfinite().all():
        raise LabkitError("Ends cannot be fitted to no values, to NaN or to infinity; pass finite activations (n, d).")
    bottom, middle, top = x.amin(dim=0), x.median(dim=0).values, x.amax(dim=0)
    unit = torch.where(top == bottom, torch.ones_like(top), top - bottom).square()
    best, best_error = torch.stack([bottom, top]), rounding_error(x, bottom, top, bits)
    cut = torch.zeros_like(best).requires_grad_()
    optimizer = torch.optim.Adam([cut], lr=5 / steps)  # e⁻⁵: from an outlier 100 times as far out as the others
    for _ in range(steps):
        with torch.enable_grad():
            low, high = middle + (bottom - middle) * (-cut[0]).exp(), middle + (top - middle) * (-cut[1]).exp()
            error = rounding_error(x, low, high, bits)
            (cut.grad,) = torch.autograd.grad((error / unit).sum(), cut)
        better = error.detach() < best_error
        best = torch.where(better, torch.stack([low, high]).detach(), best)
        best_error = torch.where(better, error.detach(), best_error)
        optimizer.step()
        cut.data.clamp_(min=0)
    return best[0], best[1]


def rounding_error(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """Mean squared error per channel of clipping and rounding (n, d); rounding passes gradients as if it were not."""
    grid = channel_grid(low.detach(), high.detach(), bits)
    last: int = 2**bits - 1
    step = (high - low) / last
    scale = grid.scale + (step - step.detach())  # the grid's, with the gradient of the ends
    steps = dual_clip(x, low, high) / scale
    rounded = grid.encode(x) - grid.zero
    return ((steps + (rounded - steps).detach()) * scale - x).square().mean(dim=0)
