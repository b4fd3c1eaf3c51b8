"""Softmaxes: which of them is an attention, and what the fused attention of torch never writes down."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SOFTMAX = (torch.softmax, Tensor.softmax, F.softmax, torch.special.softmax)


def is_attention(func: Callable, args: tuple, kwargs: dict, out: Any) -> bool:
    """A softmax over the last of at least three axes, with something to choose from."""
    if func not in SOFTMAX or out.ndim < 3:
        return False
    dim = kwargs["dim"] if "dim" in kwargs else (*args, None)[1]
    return dim in (-1, out.ndim - 1) and out.shape[-1] > 1


def shared(x: Tensor, query: Tensor) -> Tensor:
    """Keys or values of fewer heads, repeated for the heads of the queries that share them."""
    return x.repeat_interleave(query.shape[-3] // x.shape[-3], dim=-3)


def probabilities(
    q: Tensor,
    k: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(q kᵀ scale + mask), as the fused function computes it; a row that may look nowhere is zero."""
    k = shared(k, q) if enable_gqa else k
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if attn_mask is None:
        return scores.softmax(dim=-1)
    if attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=scores.dtype).masked_fill(~attn_mask, -torch.inf)
    scores = scores + attn_mask
    nowhere = (scores == -torch.inf).all(dim=-1, keepdim=True)
    return scores.masked_fill(nowhere, 0.0).softmax(dim=-1).masked_fill(nowhere, 0.0)
