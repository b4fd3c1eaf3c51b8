"""The same function in other numbers: what is done to a LayerNorm's output is undone in the linear layer behind it.

Every exact reparameterisation of this file is the first function, `fold`, with its own choice of scale and shift:

    y' = (y − shift) / scale        W' = W · scale,  b' = b + W · shift        W' y' + b' = W y + b

One integer grid for all channels where each had its own: "RepQ-ViT: Scale Reparameterization for Post-Training
Quantization of Vision Transformers", 2022 (S320), "RepQuant: Towards Accurate Post-Training Quantization of Large
Transformer Models via Scale Reparameterization", 2024 (S289) and the second stage of "I&S-ViT: An Inclusive & Stable
Method for Pushing the Limit of Post-Training ViTs Quantization", 2023 (S028). Outliers moved from activations into
weights: "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", 2022; centred
first: "MPTQ-ViT: Mixed-Precision Post-Training Quantization for Vision Transformer", 2024 (S070).

    norm, linear, grid = to_layer_wise(block.norm1, block.attn.qkv, channel_grid(low, high, bits=4))
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.quant.grids import Uniform, check_range


@torch.no_grad()
def fold(
    norm: nn.LayerNorm, linear: nn.Linear, scale: Tensor, shift: Tensor | None = None
) -> tuple[nn.LayerNorm, nn.Linear]:
    """Copies, the first of which puts out (y − shift) / scale; the second still puts out what `linear` did.

    `scale` and `shift` hold one number per channel. Whoever else reads the norm's output must be folded as well.
    """
    dim = linear.in_features
    _check_pair(norm, dim, scale, shift)
    scale = scale.to(linear.weight)
    shift = torch.zeros_like(scale) if shift is None else shift.to(linear.weight)
    folded = nn.LayerNorm(dim, norm.eps, device=linear.weight.device, dtype=linear.weight.dtype)
    folded.weight.copy_(1 / scale if norm.weight is None else norm.weight / scale)
    folded.bias.copy_(-shift / scale if norm.bias is None else (norm.bias - shift) / scale)
    if not (folded.weight.isfinite().all() and folded.bias.isfinite().all()):
        raise LabkitError("A gain of the folded norm is not finite; expected a scale that is not so close to zero.")
    reader = copy.deepcopy(linear)
    moved = linear.weight @ shift
    reader.bias = nn.Parameter(moved if linear.bias is None else linear.bias + moved)
    reader.weight.mul_(scale)
    return folded.train(norm.training), reader


def channel_grid(low: Tensor, high: Tensor, bits: int) -> Uniform:
    """2^bits levels from low to high for every channel; one that is constant has the constant among its levels.

    Unlike those of `Uniform.of`, ranges need not hold zero, and their zero points may lie outside the codes.
    """
    low, high = check_range(low, high)
    reach = torch.maximum(low.abs(), high.abs())
    scale = torch.where(low == high, reach, ((high - low) / (2**bits - 1)).clamp(min=reach * 2**-30))
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return Uniform(scale, (-low / scale).round().to(torch.int32), bits)


def to_layer_wise(norm: nn.LayerNorm, linear: nn.Linear, grid: Uniform) -> tuple[nn.LayerNorm, nn.Linear, Uniform]:
    """Folded copies, and the one grid that gives each channel the codes that its own of `grid` would have given.

    The common zero point is the mean of the channels', rounded: codes are integers only when zero points are, and
    only then do both forms round alike. The columns of the new weight carry the ratios of the scales, so that
    weights are to be rounded after folding.
    """
    if grid.zero.is_floating_point() and not grid.zero.equal(grid.zero.round()):
        raise LabkitError("A zero point is not a whole number; round the zero points, as codes are integers.")
    if grid.scale.shape != grid.zero.shape or grid.scale.numel() == 0:
        raise LabkitError(
            f"Scales of shape {tuple(grid.scale.shape)} and zero points of shape {tuple(grid.zero.shape)}; "
            "expected one of each per channel."
        )
    scale, zero = grid.scale.mean(), grid.zero.double().mean().round().to(grid.zero.dtype)
    folded, reader = fold(norm, linear, grid.scale / scale, grid.scale * (zero - grid.zero))
    return folded, reader, replace(grid, scale=scale, zero=zero)


def smooth(
    norm: nn.LayerNorm, linear: nn.Linear, low: Tensor, high: Tensor, alpha: float = 0.5, centre: bool = False
) -> tuple[nn.LayerNorm, nn.Linear]:
    """Folded copies whose activations have flatter channels; `low` and `high` are what each channel was seen to hold.

    A channel is divided by max|x|^alpha / max|w|^(1 − alpha): 0 makes the columns of the weight alike, 1 the channels
    of the input, and between the two share the difficulty. `centre` first moves every channel's range around zero.
    """
    if not 0 <= alpha <= 1:
        raise LabkitError(f"alpha={alpha} is outside 0 to 1, from all in the activations to all in the weights.")
    if (low > high).any():
        raise LabkitError("A channel's low end is above its high end; exchange `low` and `high`.")
    shift = (low + high) / 2 if centre else None
    reach = (high - low) / 2 if centre else torch.maximum(low.abs(), high.abs())
    weight = linear.weight.detach().abs().amax(dim=0)
    scale = reach**alpha / weight ** (1 - alpha)
    idle = (reach == 0) | (weight == 0)  # nothing to balance where one side is empty
    return fold(norm, linear, torch.where(idle, torch.ones_like(scale), scale), shift)


def centre_keys(k: Tensor) -> Tensor:
    """Keys (..., n, d) less their mean over the tokens: a row of scores moves as a whole, and softmax does not see it.

    That holds for keys as they meet the queries, behind any rotary position. The same sentence says that a bias
    of the key projection has no effect where keys are neither rotated nor normalised.
    """
    return k - k.mean(dim=-2, keepdim=True)


def _check_pair(norm: nn.LayerNorm, dim: int, scale: Tensor, shift: Tensor | None) -> None:
    if not isinstance(norm, nn.LayerNorm):
        raise LabkitError(f"A shift folds into an nn.LayerNorm, which has a bias; this norm is {type(norm).__name__}.")
    if tuple(norm.normalized_shape) != (dim,):
        raise LabkitError(f"The norm is over {tuple(norm.normalized_shape)}, the layer reads {dim}; expected ({dim},).")
    for name, values in (("scale", scale), ("shift", shift)):
        if values is not None and tuple(values.shape) != (dim,):
            raise LabkitError(f"{name} has shape {tuple(values.shape)}; expected one number per channel, ({dim},).")
    if not (scale.isfinite() & (scale > 0)).all():
        raise LabkitError("A scale is zero, negative or not finite; expected positive numbers, one per channel.")
