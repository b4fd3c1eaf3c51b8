"""One bit for each number: weights are a sign times a scale, attention is kept or not, a dot product counts bits.

"BiViT: Extremely Compressed Binary Vision Transformer", 2022 (S389). Softmax attention is positive and long-tailed, so
its sign says nothing and rounding at ½ keeps next to nobody: here each row keeps what is at least a quarter of its own
largest, and gives all of it the mean. 64 signs are 8 bytes, and

    a · b = (bits that agree) - (bits that differ) = d - 2 popcount(a xor b)

    sign, scale = binarize_weight(layer.weight)      layer.weight ≈ scale * sign, trained through `sign`
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from labkit.errors import LabkitError


class _Sign(torch.autograd.Function):
    """Forward the sign; backward as if it had been the identity, clipped to [-1, 1]: the straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x < 0, -1, 1).to(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return gradients[0] * (x.abs() <= 1)


def sign(x: Tensor) -> Tensor:
    """-1 or 1, for zero 1 (torch's sign of zero is zero, a third value that one bit cannot hold)."""
    _refuse_nan(x)
    signs: Tensor = _Sign.apply(x)
    return signs


def binarize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Signs and, for each output channel, the scale of the least squared error: the mean of its |weight|.

    The scale is a number to begin from: put it into a parameter and it is learned, as the signs are.
    """
    scale = weight.detach().abs().mean(dim=tuple(range(1, weight.ndim)), keepdim=True)
    return sign(weight), scale


def softmax_aware_binarize(attn: Tensor, threshold: float = 0.25) -> tuple[Tensor, Tensor]:
    """Probabilities (…, keys) → who is kept (booleans), and each row's scale (…, 1): attn ≈ scale * kept.

    Kept is who has at least `threshold` times the row's largest; the mean of the kept is the best scale for them.
    """
    if not 0 <= threshold <= 1:
        raise LabkitError(f"threshold={threshold} is no share of the largest probability; choose one from 0 to 1.")
    _refuse_nan(attn)
    kept = attn >= threshold * attn.amax(dim=-1, keepdim=True)
    scale = (attn * kept).sum(dim=-1, keepdim=True) / kept.sum(dim=-1, keepdim=True)
    return kept, scale


def pack(bits: Tensor) -> Tensor:
    """(…, d) → bytes (…, ⌈d / 8⌉): a bit is set where the number is True or above zero; the last byte ends in zeros."""
    _refuse_nan(bits)
    eights = rearrange(
        F.pad((bits > 0).to(torch.uint8), (0, -bits.shape[-1] % 8)), "... (n eight) -> ... n eight", eight=8
    )
    places = torch.arange(8, device=bits.device, dtype=torch.uint8)
    return (eights << places).sum(dim=-1, dtype=torch.uint8)


def popcount(packed: Tensor) -> Tensor:
    """How many bits are set in the bytes of the last axis: pairs are added, then fours, then eights."""
    pairs = packed - ((packed >> 1) & 0x55)
    fours = (pairs & 0x33) + ((pairs >> 2) & 0x33)
    return ((fours + (fours >> 4)) & 0x0F).sum(dim=-1, dtype=torch.int32)


def xnor_popcount_dot(a: Tensor, b: Tensor, d: int) -> Tensor:
    """Packed signs (…, n, bytes) and (…, m, bytes) of d numbers each → their dot products (…, n, m), exactly."""
    _check_bytes(a, b, d)
    return d - 2 * popcount(a[..., :, None, :] ^ b[..., None, :, :])


def kept_dot(kept: Tensor, signs: Tensor, d: int) -> Tensor:
    """Packed zeros and ones (…, n, bytes) times packed signs (…, m, bytes) → (…, n, m): attention on values."""
    _check_bytes(kept, signs, d)
    return 2 * popcount(kept[..., :, None, :] & signs[..., None, :, :]) - popcount(kept)[..., :, None]


def _check_bytes(a: Tensor, b: Tensor, d: int) -> None:
    if not a.dtype == b.dtype == torch.uint8 or not a.shape[-1] == b.shape[-1] == -(-d // 8):
        raise LabkitError(
            f"Expected two times ⌈{d} / 8⌉ = {-(-d // 8)} packed bytes, got {a.shape[-1]} of {a.dtype} and "
            f"{b.shape[-1]} of {b.dtype}; pack both over the axis that is summed."
        )


def _refuse_nan(x: Tensor) -> None:
    if x.isnan().any():
        raise LabkitError("A NaN has no sign and cannot be one bit; find the image or layer that makes it.")
