"""Grad-CAM on tokens: which channels raise the class, and on which patches are they strong?

"Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", 2016, with the tokens that enter a
block in place of a convolution's output.
"""

from __future__ import annotations

import torch
from einops import einsum
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.explain.patches import Target, chosen_class, on_patches
from labkit.tracing.record import evaluating
from labkit.vit import Block, ViT


def token_cam(x: Tensor, gradient: Tensor) -> Tensor:
    """(b, patches) from patch tokens and the gradient of the class score, both (b, patches, d)."""
    return einsum(x, gradient.mean(dim=1), "b p d, b d -> b p").clamp(min=0)


def grad_cam(model: nn.Module, images: Tensor, target: Target = None, block: int = -1) -> Tensor:
    """(b, rows, columns), from the normalised tokens that *enter* a block, by default the last.

    Not from those that leave it: where a class token is read, nothing flows from the last patch tokens to the
    logits, and their gradient is exactly zero. Not before the norm: there a few large channels drown the rest.
    """
    if not isinstance(model, ViT):
        raise LabkitError(
            f"Grad-CAM reads the tokens of a labkit.ViT, not of a {type(model).__name__}; "
            "convert it with labkit.ViT.from_timm(model)."
        )
    if not -len(model.blocks) <= block < len(model.blocks):
        raise LabkitError(f"There is no block {block}; this model has {len(model.blocks)}, counted from 0.")
    chosen = model.blocks[block]
    if not isinstance(chosen, Block):
        raise LabkitError(
            f"Grad-CAM reads a plain block, and block {block} is a {type(chosen).__name__}; choose another."
        )
    entered: list[Tensor] = []
    note = chosen.norm1.register_forward_hook(lambda *call: entered.append(call[-1]))
    try:
        with evaluating(model), torch.enable_grad():
            # The images require a gradient so that there is a graph even when every weight is frozen.
            seen = model.observe(images.detach().clone().requires_grad_())
            score = seen.logits.gather(1, chosen_class(seen.logits, target)[:, None]).sum()
            (gradient,) = torch.autograd.grad(score, entered)
    finally:
        note.remove()
    cam = token_cam(entered[0].detach()[:, model.prefix :], gradient[:, model.prefix :])
    for step in reversed(seen.steps[: block % len(model.blocks)]):
        if step.map is not None:  # a dropped patch shows nothing
            cam = on_patches(cam, step.map[:, model.prefix :, model.prefix :].detach()).nan_to_num()
    return cam.unflatten(1, seen.grid)
