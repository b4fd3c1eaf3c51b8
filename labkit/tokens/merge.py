"""Merge r pairs of tokens a block into their mean: alternate tokens propose, the most similar pairs are joined.

"Token Merging: Your ViT But Faster", 2022 (ToMe). The merged token stands for all its patches, so later blocks
attend to it in proportion to its size. What it became can be given back to each of them: `unmerge`. In the published
code the class token takes a turn when tokens alternate; here only patches do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.evidence import Evidence, Groups


def join(source: Tensor, target: Tensor, n: int, weight: Tensor | None = None) -> Groups:
    """Each token `source` (b, r) of n goes into the token `target` (b, r), which stays; the order is kept."""
    stays = torch.ones(len(source), n, dtype=torch.bool, device=source.device).scatter(1, source, False)
    home = stays.cumsum(dim=1) - 1
    return Groups(home.scatter(1, source, home.gather(1, target)), n - source.shape[1], weight)


def propose(scores: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """The r best proposals of (b, proposing, receiving) `scores`, best first: who (b, r), and to whom (b, r)."""
    if r == 0:
        return (nobody := scores.new_empty(len(scores), 0, dtype=torch.long)), nobody
    best, partner = scores.max(dim=2)
    source = best.argsort(dim=1, descending=True, stable=True)[:, :r]
    return source, partner.gather(1, source)


def bipartite(scores: Tensor, r: int, prefix: int) -> Groups:
    """Join the r best proposals of (b, proposing, receiving) `scores`: even patch tokens propose to odd ones.

    Each proposes to its most similar odd one; several may join the same. Prefix tokens stay alone, and the order of
    those that stay is kept.
    """
    source, target = propose(scores, r)
    return join(prefix + 2 * source, prefix + 1 + 2 * target, prefix + scores.shape[1] + scores.shape[2])


def unmerge(x: Tensor, groups: Groups) -> Tensor:
    """(b, count, d) → (b, n, d): every token gets what the one that it went into has become."""
    return groups.spread(x)


def merge_attention(attn: Tensor, groups: Groups) -> Tensor:
    """The attention (b, heads, n, n) between the groups: what flows to a group adds up, its rows are averaged.

    Rows still sum to one. Where only equals were joined, it is the attention that the merged tokens would compute.
    """
    b, heads, n, _ = attn.shape
    folded = Groups(
        groups.home.repeat_interleave(heads, dim=0),
        groups.count,
        None if groups.weight is None else groups.weight.repeat_interleave(heads, dim=0),
    )
    columns = folded.total(attn.reshape(b * heads, n, n).transpose(1, 2)).transpose(1, 2)
    return folded.mean(columns).reshape(b, heads, groups.count, groups.count)


@dataclass
class Merge:
    """A reducer: r merges a block, by similarity of keys, or at random for the control. `r=0` is the identity."""

    r: int
    generator: torch.Generator | None = None  # when given, pairs are random

    def reduce(self, x: Tensor, evidence: Evidence, sizes: Tensor | None, prefix: int) -> tuple[Tensor, Groups]:
        keys = F.normalize(evidence.k.mean(dim=1)[:, prefix:], dim=-1)
        scores = keys[:, ::2] @ keys[:, 1::2].transpose(1, 2)
        if self.generator is not None:
            chance = torch.rand(len(x), x.shape[1], x.shape[1], generator=self.generator).to(scores)
            scores = chance[:, prefix::2, prefix + 1 :: 2]
        groups = bipartite(scores, min(self.r, scores.shape[2]), prefix)
        groups.weight = sizes
        return groups.mean(x), groups
