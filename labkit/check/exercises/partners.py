"""Who proposes to whom: every second token chooses, among the others, the one that points most nearly its way."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from labkit.check.exercise import Exercise, normal, uniform
from labkit.tokens.merge import propose


def proposals(x):
    unit = F.normalize(x, dim=-1)
    source, target = propose(unit[None, ::2] @ unit[None, 1::2].transpose(1, 2), len(x[::2]))
    return torch.zeros_like(source[0]).scatter(0, source[0], 2 * target[0] + 1)


task = Exercise(
    lesson="08_token_merging",
    reference=proposals,
    axes=("even tokens",),
    hints=(
        "`F.normalize(x, dim=-1)` makes every row as long as 1; then cosines are products.",
        "In `x[::2] @ x[1::2].T`, column j is token 2j + 1.",
    ),
    praise="All proposals at once, for a quarter of the products of a full comparison.",
    source="labkit.tokens.merge.propose",
)


@task.stub
def partners(x):
    """Write `partners(x)` for tokens x (n, d): for each even token (0, 2, 4, …), the number of the odd token that
    is most like it, by cosine.
    """
    return torch.zeros(len(x[::2]), dtype=torch.long)


@task.cases
def cases(dice):
    for n, d in ((6, 3), (9, 4), (20, 6)):
        yield (normal(dice, n, d) * (0.1 + 3 * uniform(dice, n, 1)),)


@task.mistake(
    "That is the number of the column; column j is token 2j + 1. Merged so, most tokens would join a wrong one."
)
def columns(x):
    return (proposals(x) - 1) // 2


@task.mistake(
    "These are plain products, and a long token wins them all; the cosine asks for the direction. Normalise first."
)
def long_ones_win(x):
    return 2 * (x[::2] @ x[1::2].T).argmax(dim=1) + 1


@task.mistake(
    "You normalised each channel over the tokens (dim=0); to make every token as long as 1, normalise its row, dim=-1."
)
def over_tokens(x):
    return long_ones_win(F.normalize(x, dim=0))


@task.mistake(
    "You let each odd token choose an even one: the even tokens are the rows here, so take the argmax over dim=1."
)
def other_way(x):
    unit = F.normalize(x, dim=-1)
    return 2 * (unit[::2] @ unit[1::2].T).argmax(dim=0)


@task.mistake(
    "You search among all tokens. An even one may find an even one then, which proposes itself: two would both go, "
    "and into each other."
)
def among_all(x):
    unit = F.normalize(x, dim=-1)
    return (unit @ unit.T).fill_diagonal_(-2)[::2].argmax(dim=1)


@task.mistake(
    "You took the nearest by distance. Two tokens of one direction but unlike lengths are far apart then; their "
    "cosine is 1."
)
def by_distance(x):
    return 2 * torch.cdist(x[::2], x[1::2]).argmin(dim=1) + 1
