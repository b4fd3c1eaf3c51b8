"""One model for all patch sizes: resize the patch weights so that a resized patch gives the token of the original.

"FlexiViT: One Model for All Patch Sizes", 2022. If B resizes a patch x, the weights w' = (Bᵀ)⁺ w come closest to
w'·(B x) = w·x, over random patches: exactly for a larger patch, in the least squares for a smaller one. Resizing w
like an image does not do this. A model keeps its accuracy over patch sizes when it was trained with many of them.

    quick = flexible(vit, 16)                  # fewer, larger patches: all weights but the patches' are shared
    labkit.cost.count(quick, image_size=64)    # say the size: unsaid, it is that of the grid the model had before
    vit = labkit.ViT(64, 8, 10, 64, 6, 4, patching=FlexiEmbed(8, dim=64))
    vit.patch_embed.patch = 4                  # at any training step; the gradient reaches the one stored kernel
"""

from __future__ import annotations

import copy
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Grid
from labkit.patching.patches import pair
from labkit.vit import PatchEmbed, Size, ViT, check_images


def resize_matrix(old: Grid, new: Grid) -> Tensor:
    """B (new pixels, old pixels) in float64: each column is one bright pixel, resized (bicubic, antialiased)."""
    pixels = torch.eye(old[0] * old[1], dtype=torch.float64).view(-1, 1, *old)
    return F.interpolate(pixels, size=new, mode="bicubic", antialias=True).flatten(1).T


def resize_weights(weight: Tensor, patch: Size) -> Tensor:
    """Patch weights (d, c, p, q) for patches of another size, w B⁺; the gradient goes through."""
    old, new = (weight.shape[-2], weight.shape[-1]), pair(patch)
    if old == new:
        return weight
    precise = torch.promote_types(weight.dtype, torch.float32)
    inverse = _inverse(old, new).to(weight.device, precise)
    return (weight.flatten(2).to(precise) @ inverse).view(*weight.shape[:2], *new).to(weight.dtype)


class FlexiEmbed(PatchEmbed):
    """A PatchEmbed whose `patch` may be set to any size; at the size of its kernel it is the plain one."""

    def __init__(self, patch_size: Size = 16, channels: int = 3, dim: int = 768) -> None:
        super().__init__(patch_size, channels, dim)
        self.patch: Size = patch_size

    def forward(self, images: Tensor) -> tuple[Tensor, Grid]:
        p, q = pair(self.patch)
        h, w = check_images(images, self.proj.in_channels, (p, q))
        x = F.conv2d(images, resize_weights(self.proj.weight, (p, q)), self.proj.bias, stride=(p, q))
        return self.norm(rearrange(x, "b d h w -> b (h w) d")), (h // p, w // q)


def flexible(model: ViT, patch_size: Size) -> ViT:
    """A view of the model at another patch size: it shares all weights except those of its patches.

    The learned positions are resampled to the new grid. On images of the same size, larger patches are fewer.
    """
    embed = model.patch_embed
    if not isinstance(embed, PatchEmbed):
        raise LabkitError(f"A {type(embed).__name__} has no patch weights to resize; expected a PatchEmbed.")
    weight = resize_weights(embed.proj.weight.detach(), patch_size)
    resized = PatchEmbed(pair(patch_size), weight.shape[1], weight.shape[0], bias=False).to(weight)
    resized.proj.weight, resized.proj.bias = nn.Parameter(weight.clone()), embed.proj.bias
    resized.norm, resized.crop = embed.norm, embed.crop
    view = copy.copy(model)
    view._modules = dict(model._modules)
    view.patch_embed = resized.train(model.training)
    return view


@lru_cache(maxsize=32)
def _inverse(old: Grid, new: Grid) -> Tensor:
    return torch.linalg.pinv(resize_matrix(old, new))
