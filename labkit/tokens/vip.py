"""Cut the image finely where the class token looks and coarsely where it does not, anew in every block.

"Vcc: Scaling Transformers to 128K Tokens or More by Prioritizing Important Tokens", 2023 (S165). Few tokens, the
VIPs, make the prediction; here the class token is one. The image is halved again and again, each time the part that
it looks at most, until there are `budget` parts, and the block computes on their means, however many patches there
are. Then each patch adds what its part has become more (`labkit.tokens.squeeze`), and the next block cuts anew.

    squeeze(model, VIPCompress(budget=49, grid=(14, 14)), range(12))      196 → 49 → 196 patches in every block

The paper looks at coarse means first and refines those with the highest scores; here the class token's row is exact,
which for the tokens of an image costs next to nothing. In the paper a part that is refined falls apart in many.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.errors import LabkitError
from labkit.evidence import Evidence, Grid, Groups
from labkit.tokens.score import Score, class_attention, present

Split = tuple[int, int, int]


@cache
def halvings(grid: Grid) -> tuple[list[int], list[Split]]:
    """The patches of a grid in an order in which every part is a run, and all n - 1 splits: (start, cut, stop) in it.

    A part is halved across its longer side, down to single patches; the largest parts come first. Each cut is made
    once, so that any choice of c splits leaves c + 1 parts. A grid of one row is a sequence.
    """
    order: list[int] = []
    splits: list[Split] = []

    def halve(top: int, bottom: int, left: int, right: int) -> None:
        start, height, width = len(order), bottom - top, right - left
        if height * width == 1:
            order.append(top * grid[1] + left)
            return
        middle = top + height // 2 if height >= width else left + width // 2
        first, second = (
            ((top, middle, left, right), (middle, bottom, left, right))
            if height >= width
            else ((top, bottom, left, middle), (top, bottom, middle, right))
        )
        halve(*first)
        cut = len(order)
        halve(*second)
        splits.append((start, cut, len(order)))

    halve(0, grid[0], 0, grid[1])
    return order, sorted(splits, key=lambda split: split[0] - split[2])


def vip_compress(scores: Tensor, budget: int, grid: Grid, segment: int | None = None, prefix: int = 0) -> Groups:
    """(b, patches) scores → `budget` parts of the grid, fine where the scores add up to most; the prefix stays alone.

    No part has more than `segment` patches, if that is given; scores below zero count nothing. A part has at least
    the score of a part of it, so the splits with the highest scores are those that halving the best part again and
    again would make.
    """
    order, splits = halvings(grid)
    if len(order) != scores.shape[1]:
        raise LabkitError(
            f"A grid of {grid[0]}x{grid[1]} has {len(order)} patches, but {scores.shape[1]} arrived; give the grid "
            "that the block sees, with no patch dropped or merged before."
        )
    largest = len(order) if segment is None else segment
    needed = 1 + sum(stop - start > largest for start, _, stop in splits)
    if budget < needed:
        raise LabkitError(
            f"budget={budget} is too small: {len(order)} patches in parts of at most {largest} are {needed} tokens or "
            "more; raise the budget or the segment."
        )
    start, cut, stop = torch.tensor(splits, device=scores.device).reshape(-1, 3).T
    shares = scores.clamp_min(0).to(torch.promote_types(scores.dtype, torch.float32))
    places = torch.tensor(order, device=scores.device).expand(len(scores), -1)
    until = F.pad(shares.gather(1, places).cumsum(dim=1), (1, 0))
    mass = until[:, stop] - until[:, start]
    mass[:, : needed - 1] = torch.inf  # the largest parts come first
    best = mass.argsort(dim=1, descending=True, stable=True)[:, : budget - 1]
    begins = torch.zeros_like(places).scatter(1, cut[best], 1)
    home = prefix + torch.zeros_like(places).scatter(1, places, begins.cumsum(dim=1))
    alone = torch.arange(prefix, device=home.device).expand(len(home), -1)
    count = min(budget, len(order))
    return Groups(torch.cat([alone, home], dim=1), prefix + count, joins=count < len(order))


@dataclass
class VIPCompress:
    """A reducer: at most `budget` patch tokens, means of parts of the `grid`, and every prefix token.

    A `budget` of as many patches as there are is the identity. It is made for `squeeze`, that undoes it behind the
    block; no part is larger than `segment`.
    """

    budget: int
    grid: Grid
    segment: int | None = None
    score: Score = class_attention

    def reduce(self, x: Tensor, evidence: Evidence, sizes: Tensor | None, prefix: int) -> tuple[Tensor, Groups]:
        n = x.shape[1]
        if self.budget >= n - prefix:
            return x, Groups.choice(torch.arange(n, device=x.device).expand(len(x), -1), n)
        scores = present(self.score(evidence, prefix).expand(len(x), -1), sizes, prefix)
        groups = vip_compress(scores, self.budget, self.grid, self.segment, prefix)
        groups.weight = sizes
        return groups.mean(x), groups
