"""Attention whose scores are a product of 8-bit integers, which is half of its multiplications.

"SageAttention: Accurate 8-Bit Attention for Plug-and-play Inference Acceleration", 2024 (S243). Keys share a large
offset, which softmax does not see and a grid must pay for: it is taken off first. Then each block of tokens has one
scale for its codes from −127 to 127; probabilities times values stay in floating point. Written out step by step, as
here, it is slower than a fused float kernel: the gain needs a kernel that fuses the rounding, too.

    |S − Ŝ| ≤ (s_q |k|₁ + s_k |q|₁) / 2 + d s_q s_k / 4

    out = int8_attention(q, k, v)           # F.scaled_dot_product_attention(q, k, v), nearly
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.errors import LabkitError
from labkit.quant.fold import centre_keys
from labkit.quant.kernels import integer_product


def block_codes(x: Tensor, block: int = 64, bits: int = 8) -> tuple[Tensor, Tensor]:
    """(..., n, d) → integer codes, and the scale (..., n, 1) of each token, which it shares with its block.

    The largest number of a block gets the largest code; a block of zeros has codes 0. A NaN or an infinity makes
    the scale of its block NaN, so that it is not lost.
    """
    if block < 1 or not 2 <= bits <= 24:
        raise LabkitError(f"block={block}, bits={bits}; expected blocks of at least one token, and from 2 to 24 bits.")
    n, top = x.shape[-2], 2 ** (bits - 1) - 1
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    padded = F.pad(x, (0, 0, 0, -n % block))
    largest = padded.reshape(*x.shape[:-2], -(-n // block), block, x.shape[-1]).abs().amax(dim=(-2, -1))
    scale = torch.where(largest == 0, torch.ones_like(largest), largest / top)
    scale = torch.where(scale.isfinite(), scale, torch.nan)
    scale = scale.repeat_interleave(block, dim=-1)[..., :n, None]
    codes = (x / scale).round().nan_to_num().clamp(-top, top)
    return codes.to(torch.int8 if bits <= 8 else torch.int32), scale


def integer_scores(q: Tensor, k: Tensor) -> Tensor:
    """Codes (..., n, d) and (..., m, d) → q kᵀ (..., n, m), every integer exact; int32 from an int8 kernel.

    Codes of more bits, and devices without that kernel, take the product in float64, which counts to 2⁵³.
    """
    if q.dtype != torch.int8 or q.device.type not in ("cpu", "cuda") or 0 in (*q.shape, *k.shape):
        return (q.double() @ k.double().transpose(-2, -1)).to(torch.int64)
    pairs = zip(q.flatten(0, -3), k.flatten(0, -3), strict=True)
    scores = torch.stack([integer_product(one, other) for one, other in pairs])
    return scores.reshape(*q.shape[:-2], *scores.shape[-2:])


def int8_scores(q: Tensor, k: Tensor, smooth: bool = True, block: int = 64, bits: int = 8) -> Tensor:
    """q kᵀ from integers, without the factor 1/√d; with `smooth`, of the centred keys, which softmax cannot tell."""
    q_codes, q_scale = block_codes(q, block, bits)
    k_codes, k_scale = block_codes(centre_keys(k) if smooth else k, block, bits)
    return integer_scores(q_codes, k_codes).to(q_scale.dtype) * q_scale * k_scale.transpose(-2, -1)


def int8_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, smooth: bool = True, block: int = 64, bits: int = 8
) -> Tensor:
    """softmax(q kᵀ / √d + bias) v for (b, heads, n, d), scores from integers. With many bits it is the float one."""
    scores = int8_scores(q, k, smooth, block, bits) * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    return torch.matmul(scores.softmax(dim=-1).to(v.dtype), v)
