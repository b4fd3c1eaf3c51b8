"""Two questions to ask of any position scheme: who notices when patches are shuffled, and what does one query see?"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Grid
from labkit.vit import ViT


def shuffle_patches(images: Tensor, grid: Grid, generator: torch.Generator) -> Tensor:
    """The images cut into h x w rectangles, in another order, the same for all images."""
    h, w = grid
    if images.shape[-2] % h or images.shape[-1] % w:
        size = "x".join(str(side) for side in images.shape[-2:])
        raise LabkitError(f"Images of {size} pixels do not divide into {h}x{w} patches; pass the grid to shuffle.")
    order = torch.randperm(h * w, generator=generator).to(images.device)
    patches = rearrange(images, "b c (h p) (w q) -> b (h w) c p q", h=h, w=w)
    return rearrange(patches[:, order], "b (h w) c p q -> b c (h p) (w q)", h=h, w=w)


@torch.no_grad()
def permutation_gap(model: ViT, images: Tensor, generator: torch.Generator, grid: Grid | None = None) -> float:
    """How far shuffled patches move the logits, as a share of their size: 0 nobody noticed, above 1 nothing stayed.

    The patches are the model's own unless a grid is given. The logits' mean over the classes is taken off first:
    a softmax does not see it.
    """
    shuffled = shuffle_patches(images, grid or model.embed(images[:1])[1], generator)
    before, after = (logits - logits.mean(dim=1, keepdim=True) for logits in (model(images), model(shuffled)))
    return float(((after - before).norm(dim=1) / before.norm(dim=1)).mean())


@torch.no_grad()
def bias_map(position: nn.Module, grid: Grid, query: Grid, head: int = 0) -> Tensor:
    """(h, w): what a position at the scores adds when the patch at `query` looks at each patch.

    A scheme that changes q and k (rotary, contextual) is asked with vectors of ones, whose plain score is √d_head.
    """
    scheme: Any = position
    if getattr(scheme, "place", None) != "scores":
        raise LabkitError(f'{type(position).__name__} is no position at the scores (place="scores"); see position_map.')
    n, d = grid[0] * grid[1], getattr(scheme, "d_head", 1)
    like = next(position.parameters(), torch.ones(1))
    ones = like.new_ones(1, getattr(scheme, "heads", 1), n, d)
    q, k, bias = scheme(ones, ones, None, grid, 0)
    scores = (q @ k.transpose(-2, -1) - d) * d**-0.5
    scores = scores if bias is None else scores + bias
    return scores[0, head, _place(query, grid)].reshape(grid)


@torch.no_grad()
def position_map(position: nn.Module, grid: Grid, query: Grid, dim: int) -> Tensor:
    """(h, w): the cosine between what a position at the tokens adds at `query` and at each patch."""
    like = next(position.parameters(), torch.ones(1))
    added = position(like.new_zeros(1, grid[0] * grid[1], dim), grid)[0]
    return F.cosine_similarity(added, added[_place(query, grid)], dim=-1).reshape(grid)


def _place(query: Grid, grid: Grid) -> int:
    if not (0 <= query[0] < grid[0] and 0 <= query[1] < grid[1]):
        raise LabkitError(f"The grid of {grid[0]}x{grid[1]} has no patch at row {query[0]}, column {query[1]}.")
    return query[0] * grid[1] + query[1]
