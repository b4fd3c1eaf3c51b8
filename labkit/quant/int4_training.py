"""Train with 4-bit integers: outliers are rotated away before rounding, gradients split into two halves and sampled.

"Training Transformers with 4-bit Integers", 2023 (S282). Forward, both operands are rotated by a Hadamard matrix and
rounded with a learned step ("Learned Step Size Quantization", 2019). Backward, a gradient is rounded to 8 bits and
split, g = 16 · high + low, which doubles the rows; about `kept` of them are then drawn by their leverage, the size of
what a row adds to the product, and weighted so that the mean over all draws is the whole product.

    y = hadamard_int4_linear(x, weight, step_x, step_w)
    dw = int4_weight_gradient(g, x, kept=len(x), generator)     # gᵀ x, nearly
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.errors import LabkitError
from labkit.quant.learned import LearnedRound
from labkit.quant.rotation import rotate

LARGEST = 119  # 120 and above would need a high half of +8, and the largest 4-bit code is 7


def learned_step(x: Tensor, step: Tensor, bits: int = 4) -> Tensor:
    """x as multiples of a step, from −2^(bits−1) to 2^(bits−1) − 1 of them; the step, a positive number, is learned."""
    if step.numel() != 1 or not step > 0:
        raise LabkitError("A step is not one positive number; start it at 2 · mean|x| / √(2^(bits−1) − 1).")
    half = 2 ** (bits - 1)
    rounded: Tensor = LearnedRound.apply(x, step, torch.zeros_like(step), (-half, half - 1))
    return rounded


def hadamard_int4_linear(x: Tensor, weight: Tensor, step_x: Tensor, step_w: Tensor, bits: int = 4) -> Tensor:
    """x Wᵀ from rotated operands of few bits. With steps small and bits many, it is the float product."""
    return F.linear(learned_step(rotate(x), step_x, bits), learned_step(rotate(weight), step_w, bits))


def bit_split(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Codes from −128 to 119 → (high, low), each from −8 to 7, with 16 · high + low = codes."""
    if codes.numel() and (codes.min() < -128 or codes.max() > LARGEST):
        raise LabkitError(
            f"Codes from {codes.min()} to {codes.max()} do not split into two 4-bit halves; "
            f"expected −128 to {LARGEST}, as 120 would need a high half of +8."
        )
    high = torch.div(codes + 8, 16, rounding_mode="floor")
    return high, codes - 16 * high


def round_by_chance(x: Tensor, generator: torch.Generator) -> Tensor:
    """Up with the probability of the fraction, else down: the mean over the draws is x."""
    return (x + torch.rand(x.shape, generator=generator).to(x)).floor()


def keep_probabilities(scores: Tensor, kept: float) -> Tensor:
    """In proportion to the scores, none above 1, and `kept` in all: rows (n,) that would exceed 1 are surely kept."""
    if not kept > 0:
        raise LabkitError(f"kept={kept} rows of {len(scores)}; expected a positive number.")
    if not (scores.isfinite() & (scores >= 0)).all():
        raise LabkitError("A score is negative or not finite; expected norms of rows.")
    some = scores > 0
    if kept >= some.sum():
        return some.to(scores.dtype)  # a row of zeros adds nothing and is never asked for
    falling = scores.sort(descending=True).values
    rest = falling.flip(0).cumsum(0).flip(0)  # of those from here on
    places = kept - torch.arange(len(scores), device=scores.device)
    surely = int((falling * places >= rest).int().cumprod(0).sum())
    surely = min(surely, math.ceil(kept) - 1)  # where the rest is too small to be seen beside the large ones
    return (scores * ((kept - surely) / rest[surely].item())).clamp(max=1)


def leverage(a: Tensor, b: Tensor) -> Tensor:
    """(n, d) and (n, e) → (n,): how much each row adds to aᵀ b, the norm of its outer product."""
    return (a.square().sum(dim=1) * b.square().sum(dim=1)).sqrt()


def sampled_product(a: Tensor, b: Tensor, probabilities: Tensor, drawn: Tensor) -> Tensor:
    """aᵀ b from the rows `drawn` (n,), each divided by the probability with which it is drawn."""
    rows = drawn.nonzero()[:, 0]
    return (a[rows] / probabilities[rows, None]).T @ b[rows]


def int4_weight_gradient(gradient: Tensor, x: Tensor, kept: float, generator: torch.Generator) -> Tensor:
    """gradientᵀ x for (n, d) and (n, e), from 4-bit halves of the gradient, of whose 2n rows about `kept` are drawn.

    Unbiased in both of its chances. `x` is used as it comes: pass the rounded one that the forward pass used.
    """
    if gradient.numel() == 0:
        return gradient.T @ x
    largest = gradient.abs().amax()
    step = torch.where(largest > 0, largest / LARGEST, torch.ones_like(largest))
    codes = round_by_chance(gradient / step, generator).clamp(-LARGEST, LARGEST)
    high, low = bit_split(codes)
    halves, twice = torch.cat([16 * high, low]), torch.cat([x, x])
    probabilities = keep_probabilities(leverage(halves, twice), kept)
    drawn = torch.rand(len(halves), generator=generator).to(probabilities) < probabilities
    return step * sampled_product(halves, twice, probabilities, drawn)
