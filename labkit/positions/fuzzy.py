"""Learn places that are only roughly known, and merge any grid of patches to one size before the blocks.

"ViTAR: Vision Transformer with Any Resolution", 2024 (S266). In training every patch reads the learned table up to
half a patch beside its place, so that no exact place can be learned by heart. The merger halves a grid until it has
the target size: in each cell the mean of the tokens asks them by attention, with the same weights in every round.

    vit = labkit.ViT(64, 8, 10, 64, 6, 4, position=FuzzyPositionalEncoding((8, 8), 64))
    embed = AnyResolution(PatchEmbed(8, 3, 64), FuzzyPositionalEncoding((8, 8), 64), AdaptiveTokenMerger(64, 4, (4, 4)))
    vit = labkit.ViT(64, 8, 10, 64, 6, 4, patching=embed, positions=False)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Grid
from labkit.positions.grid import coordinates
from labkit.vit import MLP


class FuzzyPositionalEncoding(nn.Module):
    """x + table at the place of each patch, jittered in training; other grids read between the entries."""

    place = "tokens"

    def __init__(self, grid: Grid, dim: int) -> None:
        super().__init__()
        self.grid = grid
        self.table = nn.Parameter(torch.randn(1, dim, *grid) * 0.02)

    def read(self, grid: Grid, jitter: Tensor | None = None) -> Tensor:
        """The positions of a grid's patches, (b, n, d); `jitter` (b, n, 2) moves them, in patches of that grid."""
        if jitter is None and grid == self.grid:
            return rearrange(self.table, "1 d h w -> 1 (h w) d")
        table = self.table.to(torch.promote_types(self.table.dtype, torch.float32))
        places = coordinates(grid, table.device).to(table)[None]
        places = places if jitter is None else places + jitter.to(table)
        shares = (2 * places + 1) / torch.tensor(grid, device=table.device) - 1  # from -1 to 1 between the outer edges
        read = F.grid_sample(
            table.expand(len(shares), -1, -1, -1), shares.flip(-1)[:, None], padding_mode="border", align_corners=False
        )
        return rearrange(read, "b d 1 n -> b n d").to(self.table.dtype)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        # Drawn on the CPU, so that a seed gives the same places on every device.
        return x + self.read(grid, torch.rand(*x.shape[:2], 2) - 0.5 if self.training else None)


def cells(old: Grid, new: Grid, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """The members of each new cell among the old tokens, (cells, slots), and which of the slots are taken.

    Those of adaptive average pooling: a row on a border that does not divide is in both cells.
    """
    axes = []
    for n, m in zip(old, new, strict=True):
        i = torch.arange(m, device=device)
        low, high = i * n // m, ((i + 1) * n + m - 1) // m
        slots = low[:, None] + torch.arange(-(-n // m) + (n % m > 0), device=device)
        axes.append((slots.clamp(max=n - 1), slots < high[:, None]))
    (rows, row_taken), (columns, column_taken) = axes
    index = rows[:, None, :, None] * old[1] + columns[None, :, None, :]
    taken = row_taken[:, None, :, None] & column_taken[None, :, None, :]
    return index.flatten(2).flatten(0, 1), taken.flatten(2).flatten(0, 1)


class AdaptiveTokenMerger(nn.Module):
    """(x, grid) → (x, target), whatever the grid; a grid that is there already is left alone.

    A round from n to m tokens costs (2n + 10m) d² + 2nd MACs where cells divide; what follows costs the same for
    every image. A grid smaller than the target repeats its tokens.
    """

    def __init__(self, dim: int, heads: int, target: Grid) -> None:
        super().__init__()
        if dim % heads:
            raise LabkitError(f"Width {dim} does not divide into {heads} heads; choose a multiple of {heads}.")
        self.heads, self.target = heads, target
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.mlp = MLP(dim, 4 * dim)

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        while grid != self.target:
            h, w = (max(goal, -(-now // 2)) for now, goal in zip(grid, self.target, strict=True))
            x, grid = self.merge(x, grid, (h, w)), (h, w)
        return x, grid

    def merge(self, x: Tensor, old: Grid, new: Grid) -> Tensor:
        """One round: the mean of each cell, plus what it gathers from the cell, plus an MLP of that."""
        index, taken = cells(old, new, x.device)
        mean = (x[:, index] * taken[..., None]).sum(dim=2) / taken.sum(dim=1, keepdim=True).to(x)
        q = rearrange(self.q(self.norm1(mean)), "b m (h d) -> b m h 1 d", h=self.heads)
        kv = self.kv(self.norm1(x))[:, index]
        k, v = rearrange(kv, "b m s (two h d) -> two b m h s d", two=2, h=self.heads)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=taken[:, None, None, :])
        x = mean + self.proj(rearrange(out, "b m h 1 d -> b m (h d)"))
        return x + self.mlp(self.norm2(x))


class AnyResolution(nn.Module):
    """Patches, positions and the merger as one patching: images of any size → the same number of tokens."""

    def __init__(self, embed: nn.Module, position: nn.Module, merger: AdaptiveTokenMerger) -> None:
        super().__init__()
        self.embed, self.position, self.merger = embed, position, merger

    def forward(self, images: Tensor) -> tuple[Tensor, Grid]:
        x, grid = self.embed(images)
        return self.merger(self.position(x, grid), grid)
