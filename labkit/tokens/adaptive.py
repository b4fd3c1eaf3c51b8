"""As many tokens as an image needs: a batch holds images of different lengths, and nobody computes the empty places.

A reducer that keeps its own number for each image leaves empty places behind the shorter ones, of size 0, which no
token sees. `packed` runs such a model so that they cost little: after each reduction images of like length go on
together. The rule that keeps the fewest patches with a given share of the attention is the plainest adaptive one;
"Adaptive Token Sampling For Efficient Vision Transformers", 2021 (ATS, S011) is `labkit.tokens.sampling`.

    slim = tokens.attach(model, KeepShare(0.9), layers=[3, 6, 9])
    logits = packed(slim, images)                             # those of slim(images), sooner
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from labkit.errors import LabkitError
from labkit.evidence import Evidence, Grid, Groups, taken
from labkit.tokens.score import Score, class_attention, present
from labkit.vit import ViT


def keep_where(kept: Tensor, x: Tensor, prefix: int) -> tuple[Tensor, Groups]:
    """The prefix tokens and the patches that are `kept` (b, patches), in order, as many as each image has.

    The longest image says how many places there are.
    """
    there = torch.cat([kept.new_ones(len(x), prefix), kept], dim=1)
    length = there.sum(dim=1, keepdim=True)
    order = there.int().argsort(dim=1, descending=True, stable=True)[:, : int(length.max())]
    if bool((length == order.shape[1]).all()):
        groups = Groups.choice(order, x.shape[1])
    else:
        places = torch.arange(order.shape[1], device=x.device)
        groups = Groups.choice(order, x.shape[1], (places < length).to(x.dtype))
    return taken(x, order), groups


def fewest(scores: Tensor, share: float) -> Tensor:
    """(b, patches) scores → booleans: the fewest patches that together have the `share` of what all have."""
    falling, order = scores.clamp_min(0).sort(dim=1, descending=True, stable=True)
    falling = falling.to(torch.promote_types(scores.dtype, torch.float32))
    before = falling.cumsum(dim=1) - falling
    needed = before < share * falling.sum(dim=1, keepdim=True)
    needed[:, 0] = True
    return torch.zeros_like(needed).scatter(1, order, needed)


@dataclass
class KeepShare:
    """A reducer: keeps the fewest patches that together get the `share` of the scores, and every prefix token.

    `share=1` keeps every patch that has any. The scores must be amounts, none below zero, such as attention.
    """

    share: float
    score: Score = class_attention

    def reduce(self, x: Tensor, evidence: Evidence, sizes: Tensor | None, prefix: int) -> tuple[Tensor, Groups]:
        if not 0 < self.share <= 1:
            raise LabkitError(f"share={self.share} is not a share; expected a number above 0 and at most 1.")
        scores = self.score(evidence, prefix).expand(len(x), -1)
        return keep_where(fewest(present(scores, sizes, prefix), self.share), x, prefix)


@torch.no_grad()
def packed(model: ViT, images: Tensor, waste: float = 0.1) -> Tensor:
    """The logits of the model, computed without most of the empty places.

    Whenever more than the share `waste` of the places of a batch is empty, it is parted by length, and no image goes
    on with one that is longer by more than that share.
    """
    if type(model).steps is not ViT.steps:
        raise LabkitError(f"A {type(model).__name__} runs its blocks in its own way; call it, it cannot be packed.")
    first, grid = model.enter(images)
    return _finish(model, first.x, first.sizes, grid, waste, 0)


def _finish(model: ViT, x: Tensor, sizes: Tensor | None, grid: Grid, waste: float, block: int) -> Tensor:
    """The logits of tokens (b, n, d) that enter this block."""
    for i in range(block, len(model.blocks)):
        if sizes is not None:
            parts = _parts((sizes > 0).sum(dim=1), waste)
            if len(parts) > 1:
                each = [_finish(model, *_without_empty(x[part], sizes[part]), grid, waste, i) for part in parts]
                return torch.cat(each)[torch.cat(parts).argsort()]
        rows = model.rows_computed() if i == len(model.blocks) - 1 else None
        step = model.blocks[i](x, grid, sizes, model.prefix, rows)
        x, sizes = step.x, step.sizes
    return model.read(x, sizes)


def _parts(lengths: Tensor, waste: float) -> list[Tensor]:
    """The numbers of the images that go on together, the longest first."""
    order = lengths.argsort(descending=True, stable=True)
    falling = lengths[order].tolist()
    if sum(falling) >= (1 - waste) * falling[0] * len(falling):
        return [order]
    cuts, longest = [0], falling[0]
    for i, length in enumerate(falling):
        if length < (1 - waste) * longest:
            cuts, longest = [*cuts, i], length
    return [order[a:b] for a, b in pairwise([*cuts, len(falling)])]


def _without_empty(x: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor | None]:
    """The same images in as few places as the longest of them needs; no sizes where all are 1."""
    there = sizes > 0
    order = there.int().argsort(dim=1, descending=True, stable=True)[:, : int(there.sum(dim=1).max())]
    sizes = sizes.gather(1, order)
    return taken(x, order), None if bool((sizes == 1).all()) else sizes
