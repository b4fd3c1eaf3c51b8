"""Merge r pairs of tokens a block into their mean: alternate tokens propose, the most similar pairs are joined.

"Token Merging: Your ViT But Faster", 2022 (ToMe). The merged token stands for all its patches, so later blocks
attend to it in proportion to its size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.vit import Evidence


def bipartite_map(similarity: Tensor, sizes: Tensor, r: int, prefix: int) -> Tensor:
    """The row-stochastic map (b, n - r, n) that joins the r best proposals of (b, n, n) `similarity`.

    Even patch tokens propose to their most similar odd one; several may join the same. Prefix tokens stay alone.
    """
    b, n, _ = similarity.shape
    even = torch.arange(prefix, n, 2, device=similarity.device)
    odd = torch.arange(prefix + 1, n, 2, device=similarity.device)
    best, partner = similarity[:, even][:, :, odd].max(dim=2)
    order = best.argsort(dim=1, descending=True, stable=True)
    merged, target = even[order[:, :r]], odd[partner.gather(1, order[:, :r])]
    home = torch.arange(n, device=similarity.device).repeat(b, 1).scatter(1, merged, target)
    groups = F.one_hot(home, n).transpose(1, 2).to(sizes) * sizes[:, None, :]
    alive = torch.ones(b, n, dtype=torch.bool, device=similarity.device).scatter(1, merged, False)
    groups = groups[alive].reshape(b, n - merged.shape[1], n)
    return groups / groups.sum(dim=-1, keepdim=True)


@dataclass
class Merge:
    """A reducer: r merges a block, by similarity of keys, or at random for the control. `r=0` is the identity."""

    r: int
    generator: torch.Generator | None = None  # when given, pairs are random

    def reduce(self, x: Tensor, evidence: Evidence, sizes: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
        if self.generator is not None:
            similarity = torch.rand(len(x), x.shape[1], x.shape[1], generator=self.generator).to(x.device)
        else:
            keys = F.normalize(evidence.k.mean(dim=1), dim=-1)
            similarity = keys @ keys.transpose(1, 2)
        step = bipartite_map(similarity, sizes, min(self.r, (x.shape[1] - prefix) // 2), prefix).to(x.dtype)
        return step @ x, step
