"""Nothing in a pre-norm transformer reads the mean of a token, so never write it: LayerNorm becomes RMSNorm.

A token without a mean is known from all but one of its numbers, so drop that one as well: CRMSNorm.
"Pre-RMSNorm and Pre-CRMSNorm Transformers: Equivalent and Efficient Pre-LN Transformers", 2023 (S092).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from labkit.blocks import ParallelBlock
from labkit.compress.fold import absorb_affine, fold_layer_scale, readers, writer
from labkit.errors import LabkitError
from labkit.pooling import AttentionPool
from labkit.vit import Block, PatchEmbed, ViT


class CRMSNorm(nn.Module):
    """RMSNorm of a vector with mean zero that is stored without its last coordinate; `dim` are stored."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps

    def forward(self, x: Tensor) -> Tensor:
        dropped = -x.sum(dim=-1, keepdim=True)
        square = (x.square().sum(dim=-1, keepdim=True) + dropped.square()) / (self.dim + 1)
        return x * torch.rsqrt(square + self.eps)


class Centre(nn.Module):
    """Subtract each token's mean and keep its first `dim` coordinates."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(dim=-1, keepdim=True))[..., : self.dim]


def to_pre_rmsnorm(vit: ViT) -> ViT:
    """A copy with the same logits whose tokens have mean zero and whose LayerNorms are RMSNorms.

    For a model that is trained: further steps would let the mean back in, and RMSNorm would see it.
    """
    return _convert(vit, drop=0)


def to_pre_crmsnorm(vit: ViT) -> ViT:
    """A copy with the same logits whose tokens are one coordinate narrower: linear layers cost 1/d less."""
    return _convert(vit, drop=1)


@torch.no_grad()
def _convert(vit: ViT, drop: int) -> ViT:
    vit = fold_layer_scale(vit)  # behind the centred weights, a gain per channel would bring the mean back
    last, ends = _end(vit)
    d = ends[0].in_features
    eye = torch.eye(d).to(ends[0].weight)
    enter = (eye - 1 / d)[: d - drop]  # what is written is centred and, of d numbers, all but `drop` are kept
    leave = torch.cat([eye[: d - drop], -eye.new_ones(drop, d)])[:, : d - drop]  # what is read has them again
    _centre_embedding(vit, enter)
    for i, block in _blocks(vit):
        for norm, branch in (("norm1", block.attn), ("norm2", block.mlp)):
            setattr(block, norm, _renorm(getattr(block, norm), f"Block {i}", readers(branch), leave))
            _write(writer(branch), enter)
    setattr(vit, last, _renorm(getattr(vit, last), "The end of the model", ends, leave))
    return vit


def _renorm(norm: nn.Module, where: str, linears: list[nn.Linear], leave: Tensor) -> nn.Module:
    """The norm to take a LayerNorm's place; the gain, the shift and `leave` go into what reads it."""
    if not isinstance(norm, nn.LayerNorm):
        raise LabkitError(
            f"{where} normalises with {type(norm).__name__}; expected a LayerNorm before every branch and "
            "before the head, because only LayerNorm ignores the mean."
        )
    absorb_affine(norm, linears)
    for linear in linears:
        linear.weight = nn.Parameter(linear.weight @ leave)
        linear.in_features = leave.shape[1]
    d, stored = leave.shape
    return nn.RMSNorm(d, norm.eps, elementwise_affine=False) if d == stored else CRMSNorm(stored, norm.eps)


def _write(layer: nn.Linear | nn.Conv2d, enter: Tensor) -> None:
    layer.weight = nn.Parameter(torch.tensordot(enter, layer.weight, dims=1))
    if layer.bias is not None:
        layer.bias = nn.Parameter(enter @ layer.bias)
    setattr(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels", len(enter))


def _centre_embedding(vit: ViT, enter: Tensor) -> None:
    """Centre all that is summed into the first tokens or, when a norm comes last, the tokens themselves."""
    embed = vit.patch_embed
    plain = isinstance(vit.norm_pre, nn.Identity)
    if not (plain and isinstance(embed, PatchEmbed) and isinstance(embed.norm, nn.Identity)):
        vit.norm_pre = nn.Sequential(vit.norm_pre, Centre(len(enter)))
        return
    _write(embed.proj, enter)
    for name in ("cls_token", "dist_token", "reg_token", "pos_embed"):
        if (tokens := getattr(vit, name, None)) is not None:
            setattr(vit, name, nn.Parameter(tokens @ enter.T))


def _blocks(vit: ViT) -> Iterator[tuple[int, Block]]:
    for i, block in enumerate(vit.blocks):
        if not isinstance(block, Block | ParallelBlock):
            raise LabkitError(f"Block {i} is a {type(block).__name__}; expected a Block or a ParallelBlock.")
        yield from ((i, part) for part in ([block] if isinstance(block, Block) else block.blocks))


def _end(vit: ViT) -> tuple[str, list[nn.Linear]]:
    """The norm that the tokens end in, by its name, and what reads it: the heads, or an attention pool."""
    if isinstance(vit.attn_pool, AttentionPool):
        return "norm", [vit.attn_pool.kv]
    names = [name for name in ("norm", "fc_norm") if not isinstance(getattr(vit, name), nn.Identity)]
    heads = [getattr(vit, name) for name in ("head", "head_dist") if hasattr(vit, name)]
    if vit.attn_pool is not None or len(names) != 1 or not all(isinstance(head, nn.Linear) for head in heads):
        raise LabkitError(
            "The gain and shift of the last norm have nowhere to go; expected one norm after the blocks and, "
            "after it, a linear head on the class token or the average, or an AttentionPool."
        )
    return names[0], heads
