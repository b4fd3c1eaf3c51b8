"""Patches wherever and however large: boxes may overlap, repeat, be missing, or differ in scale.

Each box is sampled at the same number of points, and its position is computed from its corners, not looked up.
"Beyond Grids: Exploring Elastic Input Sampling for Vision Transformers", 2023 (S256).

    patching = ElasticPatchEmbed(8, dim=64)  # on the plain grid until told otherwise
    vit = ViT(64, dim=64, depth=4, heads=4, patching=patching, positions=False)
    half = sampled(vit, lambda images: grid_boxes(images, 8)[torch.randperm(64)[:32]])

A box is (top, left, bottom, right) in pixels, edges not centres: the first patch of size 8 is (0, 0, 8, 8).
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Grid
from labkit.vit import PatchEmbed, ViT, check_images

Sampler = Callable[[Tensor], Tensor]  # images → boxes (n, 4), or (b, n, 4)


def grid_boxes(images: Tensor, patch: int) -> Tensor:
    """The boxes of the plain grid, row by row."""
    h, w = check_images(images, images.shape[1], (patch, patch))
    rows, columns = (torch.arange(0, side, patch, device=images.device) for side in (h, w))
    corners = torch.cartesian_prod(rows, columns).to(torch.promote_types(images.dtype, torch.float32))
    return torch.cat([corners, corners + patch], dim=-1)


def elastic_patches(images: Tensor, boxes: Tensor, size: int, samples: int = 1) -> Tensor:
    """What is in the boxes, as (b, n, c, size, size): bilinear between pixel centres, the border repeated outside.

    Each pixel of a patch is the mean of samples² points; a box of s times the size needs samples >= s / 2,
    or it skips pixels. Differentiable in the images and in the boxes.
    """
    if boxes.shape[-1] != 4 or (boxes[..., 2:] <= boxes[..., :2]).any():
        raise LabkitError("Each box must be (top, left, bottom, right) in pixels, with top < bottom and left < right.")
    boxes = boxes.expand(len(images), -1, -1)
    steps = torch.arange(size * samples, device=boxes.device) + 0.5
    start, extent = boxes[..., :2, None], (boxes[..., 2:] - boxes[..., :2])[..., None]
    points = start + extent * steps / (size * samples) - 0.5  # (b, n, 2, points), in units of pixel centres
    top, bottom, down = _neighbours(points[:, :, 0], images.shape[-2])
    left, right, along = _neighbours(points[:, :, 1], images.shape[-1])
    batch = torch.arange(len(images), device=images.device)[:, None, None, None]
    pixels = images.permute(0, 2, 3, 1)

    def row(y: Tensor) -> Tensor:
        a, b = (pixels[batch, y[..., :, None], x[..., None, :]] for x in (left, right))
        return torch.lerp(a, b, along[..., None, :, None].to(a))

    patches = torch.lerp(row(top), row(bottom), down[..., :, None, None].to(images)).permute(0, 1, 4, 2, 3)
    return F.avg_pool2d(patches.flatten(0, 1), samples).unflatten(0, patches.shape[:2])


def _neighbours(points: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels before and after each point, and how far it is from the first to the second."""
    points = points.clamp(0, side - 1)
    before = points.detach().floor().long()
    return before, (before + 1).clamp(max=side - 1), points - before


def sincos(points: Tensor, dim: int) -> Tensor:
    """Sines and cosines of y, then of x, at dim / 4 frequencies from 1 down to 1 / 10000: (..., 2) → (..., dim)."""
    if dim % 4:
        raise LabkitError(f"A sine and a cosine of two coordinates need a width that is a multiple of 4, not {dim}.")
    bands = 10000 ** -(torch.arange(dim // 4, device=points.device, dtype=points.dtype) / (dim // 4))
    angles = points[..., None] * bands
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def box_posenc(boxes: Tensor, dim: int, unit: float) -> Tensor:
    """Where a box begins and where it ends: `sincos` of both corners, in patches of `unit` pixels.

    A box of one unit has its grid index in both halves, a larger box two different indices.
    """
    return torch.cat([sincos(boxes[..., :2] / unit, dim // 2), sincos(boxes[..., 2:] / unit - 1, dim // 2)], dim=-1)


class ElasticPatchEmbed(nn.Module):
    """Images → (x (b, n, dim), (1, n)): the boxes that `sampler` asks for, embedded as a `PatchEmbed` embeds them."""

    def __init__(self, patch: int, dim: int, channels: int = 3, samples: int = 1) -> None:
        super().__init__()
        if dim % 8:
            raise LabkitError(f"Four coordinates need a width that is a multiple of 8, not {dim}.")
        self.patch, self.samples = patch, samples
        self.embed = PatchEmbed(patch, channels, dim)
        self.sampler: Sampler = lambda images: grid_boxes(images, patch)

    def forward(self, images: Tensor) -> tuple[Tensor, Grid]:
        boxes = self.sampler(images)
        patches = elastic_patches(images, boxes, self.patch, self.samples)
        x = self.embed(patches.flatten(0, 1))[0].unflatten(0, patches.shape[:2])[:, :, 0]
        return x + box_posenc(boxes, x.shape[-1], self.patch).to(x), (1, x.shape[1])


def sampled(vit: ViT, sampler: Sampler) -> ViT:
    """A copy of the model, sharing its weights, that looks where the sampler says."""
    if not isinstance(vit.patch_embed, ElasticPatchEmbed):
        raise LabkitError("Only a model with patching=ElasticPatchEmbed(...) can look elsewhere than at its grid.")
    elsewhere, embed = copy.copy(vit), copy.copy(vit.patch_embed)
    elsewhere._modules = {**vit._modules, "patch_embed": embed}
    embed.sampler = sampler
    return elsewhere


@torch.no_grad()
def elasticity_score(vit: ViT, sampler: Sampler, images: Tensor, labels: Tensor) -> float:
    """The accuracy with the sampler's boxes as a share of the accuracy with the model's own."""
    own, other = ((m(images).argmax(dim=-1) == labels).double().mean() for m in (vit, sampled(vit, sampler)))
    if own == 0:
        raise LabkitError("The model is right on none of these images as it is, so there is nothing to lose.")
    return float(other / own)
