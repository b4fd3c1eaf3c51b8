"""What the methods share: the class that is asked about, the grid of patches, and values of tokens put on patches."""

from __future__ import annotations

import math

import torch
from einops import einsum
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Grid
from labkit.tracing.record import trace
from labkit.tracing.trace import Trace
from labkit.vit import ViT

Target = Tensor | int | None


def chosen_class(logits: Tensor, target: Target) -> Tensor:
    """(b,): the class that is explained; None means the predicted one."""
    chosen = logits.argmax(dim=1) if target is None else torch.as_tensor(target, device=logits.device)
    if chosen.shape not in ((), logits.shape[:1]):
        raise LabkitError(
            f"The target has shape {tuple(chosen.shape)}; expected one class, or one for each of {len(logits)} images."
        )
    return chosen.expand(len(logits))


@torch.no_grad()
def patch_grid(model: nn.Module, images: Tensor) -> Grid:
    """The rows and columns of patches that the model cuts these images into."""
    if isinstance(model, ViT):
        return model.embed(images[:1])[1]
    seen = trace(model, images[:1])
    if seen.why:
        raise LabkitError(f"{seen.why} Name the cells to explain: grid=(rows, columns).")
    return seen.patches


def on_patches(values: Tensor, provenance: Tensor) -> Tensor:
    """Values of tokens (b, n, ...) at the patches inside them (b, patches, ...); NaN where no token has the patch.

    Merged patches all get the value of their token: it is an intensity, not an amount to be shared.
    """
    owners = provenance.transpose(1, 2).to(values)
    owners = owners / owners.sum(dim=-1, keepdim=True)
    return einsum(owners, values, "b p n, b n ... -> b p ...")


def inside_tokens(trace: Trace, depth: int) -> Tensor:
    """(b, tokens, patches): which patches are in the tokens after `depth` blocks of our ViT."""
    assert trace.own is not None
    return trace.own.provenance(depth, math.prod(trace.patches))
