"""An image of any shape becomes equal tiles of the size a model was made for, and a thumbnail of the whole.

The grid of tiles keeps the proportions: for a wide image ⌈columns h / w⌉ rows (h and w in tiles), and as many
columns as the budget allows. "InternLM-XComposer2-4KHD: A Pioneering Large Vision-Language Model Handling Resolutions
from 336 Pixels to 4K HD", 2024 (S046).

    grid = dynamic_partition(h, w, 32, budget=9)
    tiles = tile(fit(images, 32, grid), 32)  # (b, rows * columns, c, 32, 32); untile(tiles, grid) puts them back
    vit = ViT((48, 96), dim=64, depth=4, heads=4, patching=Tiles(PatchEmbed(8, 3, 64), 32, 9, 64), positions=False)

With n = a b tokens a tile (a rows of b) and a grid of p tiles, q of them above each other, there are
(p + 1) n tokens, (q + 1) a ends of rows, and 1 between the thumbnail and the tiles.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Grid
from labkit.patching.patches import cut, pair, uncut
from labkit.vit import Size


def dynamic_partition(h: int, w: int, size: Size, budget: int) -> Grid:
    """The largest grid (rows, columns) of at most `budget` tiles in the proportions of an h by w image."""
    if min(h, w, budget) < 1:
        raise LabkitError(f"An image of {h}x{w} pixels in {budget} tiles is impossible; all three must be at least 1.")
    th, tw = pair(size)
    h, w = h * tw, w * th  # in units that make a tile square
    short, long = sorted((h, w))
    most = 1
    while (most + 1) * _ceil((most + 1) * short, long) <= budget:
        most += 1
    fewest = _ceil(most * short, long)
    return (fewest, most) if h <= w else (most, fewest)


def resize(images: Tensor, size: Grid) -> Tensor:
    """The images at another size, bilinear and antialiased; at their own size, the images themselves."""
    if tuple(images.shape[-2:]) == size:
        return images
    exact = images.to(torch.promote_types(images.dtype, torch.float32))
    return F.interpolate(exact, size=size, mode="bilinear", antialias=True).to(images.dtype)


def fit(images: Tensor, size: Size, grid: Grid) -> Tensor:
    """Scale images to fill a grid of tiles as far as their proportions allow; black below and to the right."""
    (h, w), (th, tw) = images.shape[-2:], pair(size)
    height, width = grid[0] * th, grid[1] * tw
    scale = min(height / h, width / w)
    images = resize(images, (max(1, round(h * scale)), max(1, round(w * scale))))
    return F.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]))


def tile(images: Tensor, size: Size) -> Tensor:
    """Images or maps (b, c, rows * h, columns * w) → (b, rows * columns, c, h, w), row by row."""
    return cut(images, size).unflatten(2, (images.shape[1], *pair(size)))


def untile(tiles: Tensor, grid: Grid) -> Tensor:
    """Put tiles (b, rows * columns, c, h, w) back in their places: the inverse of `tile`."""
    h, w = tiles.shape[-2:]
    return uncut(tiles.flatten(2), (h, w), grid)


class Tiles(nn.Module):
    """Thumbnail, separator, tiles: one sequence of tokens in reading order, with a mark at the end of each row.

    `encode(images) → (x, grid)` sees one tile at a time: a patching, or a model whose features are wanted.
    """

    def __init__(self, encode: Callable[[Tensor], tuple[Tensor, Grid]], size: Size, budget: int, dim: int) -> None:
        super().__init__()
        self.encode, self.size, self.budget = encode, pair(size), budget
        self.newline = nn.Parameter(torch.randn(dim) * 0.02)
        self.between = nn.Parameter(torch.randn(dim) * 0.02)

    def forward(self, images: Tensor) -> tuple[Tensor, Grid]:
        h, w = images.shape[-2:]
        grid = dynamic_partition(h, w, self.size, self.budget)
        tiles = tile(fit(images, self.size, grid), self.size)
        views = torch.cat([resize(images, self.size)[:, None], tiles], dim=1)
        x, (rows, _) = self.encode(views.flatten(0, 1))
        maps = rearrange(x, "(b t) (h w) d -> b t d h w", b=len(images), h=rows)
        thumbnail, whole = self.lines(maps[:, 0]), self.lines(untile(maps[:, 1:], grid))
        x = torch.cat([thumbnail, self.between.expand(len(images), 1, -1), whole], dim=1)
        return x, (1, x.shape[1])

    def lines(self, maps: Tensor) -> Tensor:
        """Maps (b, d, h, w) as h lines of w tokens and a mark each."""
        b, d, h, _ = maps.shape
        ends = self.newline.expand(b, h, 1, d)
        return torch.cat([rearrange(maps, "b d h w -> b h w d"), ends], dim=2).flatten(1, 2)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
