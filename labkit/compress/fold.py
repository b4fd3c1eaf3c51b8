"""What is linear folds into the linear layer beside it: a LayerScale's gain, a norm's gain and shift.

The function stays the same and a layer is gone. LayerScale is from "Going deeper with Image Transformers",
2021 (S182); its gain is free when the model is only used.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from labkit.errors import LabkitError
from labkit.vit import LayerScale, ViT

READS, WRITES = ("qkv", "q", "k", "v", "fc1", "fc1_g", "fc1_x"), ("proj", "fc2")


def fold_layer_scale(vit: ViT) -> ViT:
    """A copy without LayerScale: γ ⊙ (W x + b) = (γ W) x + γ b."""
    vit = copy.deepcopy(vit)
    for module in vit.modules():
        for branch, scale in (("attn", "ls1"), ("mlp", "ls2")):
            ls = getattr(module, scale, None)
            if isinstance(ls, LayerScale):
                _scale_rows(writer(getattr(module, branch)), ls.gamma)
                setattr(module, scale, nn.Identity())
    return vit


def readers(branch: nn.Module) -> list[nn.Linear]:
    """The layers that are first to see a residual branch's input."""
    return _linears(branch, READS)


def writer(branch: nn.Module) -> nn.Linear:
    """The layer whose output a residual branch adds to the tokens."""
    return _linears(branch, WRITES)[0]


@torch.no_grad()
def absorb_affine(norm: nn.LayerNorm | nn.RMSNorm, linears: list[nn.Linear]) -> None:
    """Move a norm's gain and shift into its readers, in place: W (γ ⊙ n + β) + b = (W γ) n + (W β + b)."""
    gain, shift = norm.weight, getattr(norm, "bias", None)
    for linear in linears:
        if shift is not None:
            extra = linear.weight @ shift
            linear.bias = nn.Parameter(extra if linear.bias is None else linear.bias + extra)
        if gain is not None:
            linear.weight.mul_(gain)
    for name in list(norm._parameters):
        norm.register_parameter(name, None)
    norm.elementwise_affine = False


@torch.no_grad()
def _scale_rows(linear: nn.Linear, gamma: torch.Tensor) -> None:
    linear.weight.mul_(gamma[:, None])
    if linear.bias is not None:
        linear.bias.mul_(gamma)


def _linears(branch: nn.Module, names: tuple[str, ...]) -> list[nn.Linear]:
    """By the names that attention and MLPs have here and in timm; a layer by another name could do anything."""
    layers = {name: layer for name, layer in branch.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    found = [layer for name, layer in layers.items() if name in names and isinstance(layer, nn.Linear)]
    if not found or not set(layers) <= {*READS, *WRITES}:
        raise LabkitError(
            f"Nothing folds into {type(branch).__name__} with the layers {', '.join(layers) or 'of no name'}: "
            f"expected {', '.join(READS)} to read the tokens and {' or '.join(WRITES)} to write them. "
            "Fold while the branches are attention and MLPs, and change them afterwards."
        )
    return found
