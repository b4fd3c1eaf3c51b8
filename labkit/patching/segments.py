"""Tokens are regions that belong together, not squares: pool each segment into one token, with its place and size.

"Subobject-level Image Tokenization", 2024 (S259). The segments here are superpixels: k-means on colour and place
that starts from a grid, each pixel choosing among the nine clusters around its own cell; without edges to follow
they stay the grid.

    labels = slic_labels(images, (8, 8))
    segments = segment_tokens(features, labels)  # .x, .sizes, .centroids; unpool(segments.x, labels) goes back
    vit = ViT(64, dim=64, depth=4, heads=4, patching=SegmentEmbed(nn.Conv2d(3, 64, 5, padding=2), 64, (8, 8)))
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Grid


class Segments(NamedTuple):
    """The tokens of segments 0, 1, …; one without pixels has size 0 and zeros everywhere."""

    x: Tensor  # (b, n, d), the mean of each segment
    sizes: Tensor  # (b, n) pixels
    centroids: Tensor  # (b, n, 2), y and x of pixel centres


def segment_tokens(features: Tensor, labels: Tensor, n: int | None = None) -> Segments:
    """Features (b, d, h, w) averaged over the segments that `labels` (b, h, w) number from 0; Σ size · x is kept."""
    if labels.shape != (len(features), *features.shape[-2:]):
        raise LabkitError(f"Labels {tuple(labels.shape)} do not fit features {tuple(features.shape)}; one a pixel.")
    n = int(labels.max()) + 1 if n is None else n
    # In half precision long sums lose digits, and 257 pixels are 256.
    rows = rearrange(features, "b d h w -> b (h w) d").to(torch.promote_types(features.dtype, torch.float32))
    places = pixel_places(labels).to(rows).expand(len(labels), -1, -1)
    index, ones = labels.flatten(1)[..., None], torch.ones_like(places[..., :1])
    rows = torch.cat([rows, places, ones], dim=-1)
    totals = rows.new_zeros(len(rows), n, rows.shape[-1]).scatter_add(1, index.expand_as(rows), rows)
    sums, sizes = totals[..., :-1], totals[..., -1:]
    means = sums / sizes.clamp(min=1)
    return Segments(means[..., :-2].to(features.dtype), sizes[..., 0], means[..., -2:])


def unpool(x: Tensor, labels: Tensor) -> Tensor:
    """Give each pixel its segment's token, (b, n, d) → (b, d, h, w): of all maps flat in each segment the nearest."""
    rows = x.gather(1, labels.flatten(1)[..., None].expand(-1, -1, x.shape[-1]))
    return rearrange(rows, "b (h w) d -> b d h w", h=labels.shape[1])


def pixel_places(images: Tensor) -> Tensor:
    """(h * w, 2): y and x of every pixel, row by row."""
    h, w = images.shape[-2:]
    return torch.cartesian_prod(*(torch.arange(side, device=images.device) for side in (h, w)))


@torch.no_grad()
def slic_labels(images: Tensor, cells: Grid, compactness: float = 0.5, steps: int = 5) -> Tensor:
    """The superpixel (b, h, w) of each pixel, numbered like the cells of the grid that it grew from.

    The squared distance of a pixel to a cluster is |Δ colour|² + compactness² |Δ place|², places in cells and
    colours as given; compactness → ∞ is the grid. A cluster may come out in parts, and one may end up empty.
    """
    (h, w), (rows, columns) = images.shape[-2:], cells
    if not (1 <= rows <= h and 1 <= columns <= w):
        raise LabkitError(f"{rows}x{columns} cells do not fit into {h}x{w} pixels; ask for at most one a pixel.")
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    places = (pixel_places(images) + 0.5) * torch.tensor([rows / h, columns / w]).to(images)
    home = places.long()
    near = home[:, None] + torch.cartesian_prod(*[torch.arange(-1, 2, device=images.device)] * 2)
    outside = ((near < 0) | (near >= torch.tensor(cells, device=images.device))).any(dim=-1)
    near = (near[..., 0] * columns + near[..., 1]).masked_fill(outside, 0)  # (h * w, 9)
    maps = repeat(compactness * places, "(h w) two -> b two h w", b=len(images), h=h)
    pixels = torch.cat([images, maps], dim=1)
    labels = (home[:, 0] * columns + home[:, 1]).expand(len(images), -1)
    points, centres = rearrange(pixels, "b c h w -> b (h w) 1 c"), torch.zeros(())
    for _ in range(steps):
        found = segment_tokens(pixels, labels.unflatten(1, (h, w)), rows * columns)
        centres = torch.where(found.sizes[..., None] > 0, found.x, centres)
        distance = (points - centres[:, near]).square().sum(dim=-1).masked_fill(outside, torch.inf)
        labels = near.expand(len(images), -1, -1).gather(2, distance.argmin(dim=-1, keepdim=True))[..., 0]
    return labels.unflatten(1, (h, w))


class SegmentEmbed(nn.Module):
    """Images → (x, cells): the mean of `features(images)` (b, dim, h, w) over each superpixel, its place and size.

    The grid is the one that the superpixels grew from, so positions learned on it still mean something.
    """

    def __init__(self, features: nn.Module, dim: int, cells: Grid, compactness: float = 0.5) -> None:
        super().__init__()
        self.features, self.cells, self.compactness = features, cells, compactness
        self.place = nn.Linear(3, dim)

    def forward(self, images: Tensor) -> tuple[Tensor, Grid]:
        labels, n = slic_labels(images, self.cells, self.compactness), self.cells[0] * self.cells[1]
        segments = segment_tokens(self.features(images), labels, n)
        size = torch.tensor(labels.shape[1:], device=images.device)
        shares = segments.sizes[..., None] * n / size.prod()  # 1 when all segments are equally large
        return segments.x + self.place(torch.cat([segments.centroids / size, shares], dim=-1).to(images)), self.cells
