"""Another mixing on the trained queries, keys and values of a plain attention, class token and all; no weight changes.

Three ways to let a patch meet fewer keys, from `labkit.attention`: windows of a quarter of the grid ("Swin Transformer:
Hierarchical Vision Transformer using Shifted Windows", 2021, S083), groups of as many that are spread over the whole
grid ("CrossFormer: A Versatile Vision Transformer Hinging on Cross-scale Attention", 2021, S104), or means of 2 x 2
keys and values, which count four times ("Multiscale Vision Transformers", 2021, S187). Tokens before the patches are
seen by all, and in groups they see all.

    quick = swap_mixers(model, "window", blocks=(0, 1))      # shares all weights with the model; "dense" is the model
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from labkit.attention.dilated import lda_partition, lda_unpartition
from labkit.attention.windows import attend, partition, regions, unpartition
from labkit.errors import LabkitError
from labkit.evidence import Evidence, Grid
from labkit.layers import Attention, twin
from labkit.vit import ViT

Mixing = Literal["dense", "window", "dilated", "pooled"]


class Swapped(Attention):
    """A plain attention's layers under another mixing; its evidence is of what it did, not of what it replaced."""

    def __init__(self, attn: Attention, mixing: Mixing) -> None:
        nn.Module.__init__(self)
        self.mixing, self.heads, self.impl = mixing, attn.heads, attn.impl
        self.qkv, self.q_norm, self.k_norm = attn.qkv, attn.q_norm, attn.k_norm
        self.norm, self.proj, self.position = attn.norm, attn.proj, attn.position

    def attend(
        self, x: Tensor, bias: Tensor | None = None, rows: int | None = None, grid: Grid = (0, 0), prefix: int = 0
    ) -> tuple[Tensor, Evidence]:
        if bias is not None or x.shape[1] != prefix + grid[0] * grid[1]:
            raise LabkitError(
                f'The "{self.mixing}" mixing needs all {grid[0]}x{grid[1]} patches in their places, and tokens were '
                "reduced before it; mix so in earlier blocks, or reduce in later ones."
            )
        q, k, v = self.project(x, rows)
        out, evidence = (self.pooled if self.mixing == "pooled" else self.grouped)(q, k, v, grid, prefix)
        return self.proj(self.norm(rearrange(out, "b h n d -> b n (h d)"))), evidence

    def pooled(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, prefix: int) -> tuple[Tensor, Evidence]:
        """Keys and values are means of squares; each counts as often as there were patches in it."""
        (k, all_k), (v, all_v) = (self.means(t, grid, prefix) for t in (k, v))
        counts = k.new_zeros(k.shape[2])
        counts[prefix:] = math.log(4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=counts[None, None, None])
        return out, Evidence(q, all_k, v=all_v)

    def means(self, t: Tensor, grid: Grid, prefix: int) -> tuple[Tensor, Tensor]:
        """(b, heads, n, d) with the mean of each 2 x 2 square once, and with it in all its four places."""
        check_halves(self.mixing, grid)
        squares = {"h": grid[0] // 2, "w": grid[1] // 2, "p": 2, "q": 2}
        few = rearrange(t[:, :, prefix:], "b c (h p w q) d -> b c (h w) (p q) d", **squares).mean(dim=3)
        many = repeat(few, "b c (h w) d -> b c (h p w q) d", **squares)
        first = t[:, :, :prefix]
        return torch.cat([first, few], dim=2), torch.cat([first, many], dim=2)

    def grouped(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, prefix: int) -> tuple[Tensor, Evidence]:
        """Patches meet inside four groups; the tokens before them are in every group."""
        check_halves(self.mixing, grid)
        half, meet = (grid[0] // 2, grid[1] // 2), self.meets(grid, prefix, q)
        evidence = Evidence(q, k, q.new_zeros(()).masked_fill(~meet, -torch.inf)[: q.shape[2]], v=v)
        first = F.scaled_dot_product_attention(q[:, :, :prefix], k, v)
        if q.shape[2] <= prefix:
            return first, evidence

        def groups(t: Tensor) -> Tensor:
            t = t[:, :, prefix:]
            return partition(t, grid, half) if self.mixing == "window" else lda_partition(t, grid, 2)

        def with_first(t: Tensor) -> Tensor:
            return torch.cat([t[:, :, None, :prefix].expand(-1, -1, 4, -1, -1), groups(t)], dim=3)

        mixed = attend(groups(q), with_first(k), with_first(v), impl=self.impl)
        patches = unpartition(mixed, grid, half) if self.mixing == "window" else lda_unpartition(mixed, grid, 2)
        return torch.cat([first, patches], dim=2), evidence

    def meets(self, grid: Grid, prefix: int, like: Tensor) -> Tensor:
        """(n, n): may they meet?"""
        if self.mixing == "window":
            group = regions(grid, (grid[0] // 2, grid[1] // 2), device=like.device)
        else:
            row, column = (torch.arange(side, device=like.device) % 2 for side in grid)
            group = (2 * row[:, None] + column).flatten()
        meet = torch.ones(prefix + len(group), prefix + len(group), dtype=torch.bool, device=like.device)
        meet[prefix:, prefix:] = group[:, None] == group
        return meet


def check_halves(mixing: str, grid: Grid) -> None:
    if grid[0] % 2 or grid[1] % 2:
        raise LabkitError(f'The "{mixing}" mixing halves the grid, and {grid[0]}x{grid[1]} has an odd side.')


def swap_mixers(model: ViT, mixing: Mixing, blocks: Iterable[int]) -> ViT:
    """A copy of the model, sharing its weights, that mixes so in the given blocks (0 is the first)."""
    swapped = twin(model)
    swapped.blocks = nn.ModuleList(twin(block) for block in model.blocks)
    for i in blocks if mixing != "dense" else ():
        block = swapped.blocks[i]
        if type(block.attn) is not Attention:
            raise LabkitError(f"Block {i} mixes with {type(block.attn).__name__}; only a plain Attention is swapped.")
        block.attn = Swapped(block.attn, mixing)
    return swapped
