"""Ways to go on with fewer patches, each under one short name, none of them trained: who is kept, or who joins whom.

`keep` drops what the class token looks at least, `keep-value` what it takes least from (attention times the norm of
the value), `keep-norm` what has the smallest keys, `keep-apart` what is most crowded by its like, `keep-rank` what
ranks last on the graph of attention, and `random` is the control. `fuse` is `keep` with one token for the rest.
`merge` joins the pairs that are most alike, `merge-criteria` minds attention and size too, `merge-energy` joins where
patches crowd; `cluster` goes on with the means of clusters. Pooling is not among them: it halves the grid, and knows no
budget in between.

    reduce(model, "keep-apart", {3: 138, 6: 98, 9: 69})      # behind each of these blocks so many patches are left
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch

from labkit import tokens
from labkit.errors import LabkitError
from labkit.evidence import Reducer
from labkit.tokens import score
from labkit.vit import ViT

Reduction = Literal[
    "none",
    "keep",
    "fuse",
    "merge",
    "random",
    "keep-value",
    "keep-norm",
    "keep-apart",
    "keep-rank",
    "merge-criteria",
    "merge-energy",
    "cluster",
]

ASKS = ("keep", "keep-value", "fuse")  # the class token
ATTENTION = (*ASKS, "keep-rank", "merge-criteria")
ENTRY = -1  # the place in front of the first block

SCORES: dict[str, score.Score] = {
    "keep": score.class_attention,
    "keep-value": score.class_value,
    "keep-norm": score.key_norm,
    "keep-apart": score.reverse(score.energy()),
    "keep-rank": score.page_rank(),
}
MERGES: dict[str, Callable[[int], Reducer]] = {
    "merge": partial(tokens.MergeByCriteria, taus=(1.0, 0.0, 0.0)),
    "merge-criteria": tokens.MergeByCriteria,
    "merge-energy": tokens.MergeByEnergy,
}


def reduce(model: ViT, way: Reduction, left_behind: Mapping[int, int], seed: int = 0) -> ViT:
    """A copy of the model, sharing its weights; behind block i it goes on with `left_behind[i]` patches."""
    before, dice = model.grid[0] * model.grid[1], torch.Generator().manual_seed(seed)
    for block, left in left_behind.items():
        model = tokens.attach(model, reducer(way, before, left, dice), "entry" if block == ENTRY else [block])
        before = left
    return model


def reducer(way: Reduction, before: int, left: int, dice: torch.Generator) -> Reducer:
    """Every kind leaves as many tokens; of those of "fuse" one stands for the rest."""
    if way in MERGES:
        if left < before - before // 2:
            raise LabkitError(
                f'{left} of {before} patches would be left in one block, and "{way}" leaves at least half; '
                "give more blocks or keep more."
            )
        return MERGES[way](before - left)
    if way == "cluster":
        return tokens.Cluster(left)
    if way == "fuse" and left < before:
        if left == 1:
            raise LabkitError('"fuse" keeps one patch at least, and one token for the rest: keep more, or take "keep".')
        return tokens.Fuse((left - 1) / before)
    return tokens.Keep(left / before, (SCORES | {"random": score.random(dice), "fuse": SCORES["keep"]})[way])
