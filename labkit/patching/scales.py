"""A small model, as it is, looks at several scales of an image: an alternative to a larger model.

At scale s the image is enlarged s times and cut into s² tiles of the size the model was made for. Their feature
maps are stitched, averaged down to the map of scale 1 and put side by side as channels: as many tokens as before,
len(scales) times as wide, for Σ s² times the work. "When Do We Not Need Larger Vision Models?", 2024 (S317).

    with torch.no_grad():
        x, grid = multiscale_forward(vit, images, scales=(1, 2), size=64)  # (b, h * w, 2 * dim)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from labkit.errors import LabkitError
from labkit.evidence import Grid
from labkit.patching.patches import pair
from labkit.patching.tiles import resize, tile, untile
from labkit.vit import Size, ViT


def patch_features(vit: ViT, images: Tensor) -> tuple[Tensor, Grid]:
    """The normalised patch tokens that leave the last block, and their grid; `vit.features` may skip them."""
    x, grid = vit.embed(images)
    for step in vit.steps(x, grid):
        x = step.x
    if x.shape[1] != vit.prefix + grid[0] * grid[1]:
        raise LabkitError("This model drops or merges tokens, so its features are no map; use one without reducers.")
    return vit.norm(x)[:, vit.prefix :], grid


def multiscale_forward(
    model: ViT | Callable[[Tensor], tuple[Tensor, Grid]], images: Tensor, scales: Sequence[int] = (1, 2), *, size: Size
) -> tuple[Tensor, Grid]:
    """Features (b, h * w, len(scales) * d) and the grid (h, w) of one tile; `size` is that of the model's images.

    The model is a ViT, or any function images → (x, grid). Images are resized to each scale, so give the largest.
    """
    if not scales or any(not isinstance(s, int) or s < 1 for s in scales):
        raise LabkitError(f"scales={scales!r} is not a list of whole numbers from 1 up; try scales=(1, 2).")
    encode = partial(patch_features, model) if isinstance(model, ViT) else model
    (h, w), maps = pair(size), []
    for scale in scales:
        tiles = tile(resize(images, (scale * h, scale * w)), (h, w))
        x, grid = encode(tiles.flatten(0, 1))
        tiles = rearrange(x, "(b t) (h w) d -> b t d h w", b=len(images), h=grid[0])
        maps.append(F.avg_pool2d(untile(tiles, (scale, scale)), scale))
    return rearrange(torch.cat(maps, dim=1), "b d h w -> b (h w) d"), grid
