"""Keep what the class token attends to and fuse the rest into one token more, the mean weighted by attention.

"Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations", 2022 (EViT, S029).
The paper fuses by a weighted sum, Σ aᵢ xᵢ; ours divides it by Σ aᵢ, so that the token lies among those it stands
for and does not shrink when little attention was left. Later blocks attend to it by the number of its patches, as
to every token that was merged, where the paper attends to it as to one.

    tokens.attach(model, Fuse(0.7), [3, 6, 9])      196 → 138 + 1 → 98 + 1 → 70 + 1 patches
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.errors import LabkitError
from labkit.evidence import Evidence, Groups
from labkit.tokens.score import Score, class_attention, highest, present


def fuse(scores: Tensor, count: int, prefix: int) -> Groups:
    """Keep the prefix and the `count` best of (b, patches) `scores`; the rest is one token behind them.

    In it each counts by its score; scores below zero count nothing, and if there are no others, all count alike.
    """
    n = prefix + scores.shape[1]
    groups = Groups.choice(highest(scores, count, prefix), n)
    rest = groups.home < 0
    weight = torch.ones_like(rest, dtype=scores.dtype)
    weight[:, prefix:] = scores.clamp_min(torch.finfo(scores.dtype).tiny)
    total = weight.masked_fill(~rest, 0).sum(dim=1, keepdim=True)
    weight = torch.where(rest, weight / total, 1)
    return Groups(groups.home.masked_fill(rest, groups.count), groups.count + 1, weight)


@dataclass
class Fuse:
    """A reducer: keeps the `keep` share (rounded up) of the patches by `score`, and one token for all the others.

    `keep=1` is the identity, with no token more. The fused token is the last, and the next reducer's to keep or fuse.
    """

    keep: float
    score: Score = class_attention

    def reduce(self, x: Tensor, evidence: Evidence, sizes: Tensor | None, prefix: int) -> tuple[Tensor, Groups]:
        if not 0 < self.keep <= 1:
            raise LabkitError(f"keep={self.keep} is not a share; expected a number above 0 and at most 1.")
        patches = x.shape[1] - prefix
        count = math.ceil(round(self.keep * patches, 6))  # 0.55 * 100 is 55.00000000000001
        if count == patches:
            return x, Groups.choice(torch.arange(x.shape[1], device=x.device).expand(len(x), -1), x.shape[1])
        groups = fuse(present(self.score(evidence, prefix).expand(len(x), -1), sizes, prefix), count, prefix)
        return groups.mean(x), groups
