"""Merged tokens are given back to their patches: the last merge is undone first."""

from __future__ import annotations

import torch

from labkit.check.exercise import Exercise, normal
from labkit.evidence import Groups
from labkit.tokens.merge import unmerge


def undo_both(x, first, second):
    return unmerge(unmerge(x[None], Groups(second[None], len(x))), Groups(first[None], len(second)))[0]


task = Exercise(
    lesson="08_token_merging",
    reference=undo_both,
    axes=("patches", "d"),
    hints=("`x[second]` has a row for each of the m tokens.", "Undo the last merge first."),
    praise="Any number of merges is undone so, and a segmentation never knows.",
    source="labkit.tokens.merge.unmerge",
)


@task.stub
def give_back(x, first, second):
    """Two blocks have merged. `first` (n,) says for each patch which token it went into, `second` (m,) the same for
    those m tokens. Write `give_back(x, first, second)`: the token of x (k, d) for every patch, (n, d).
    """
    return torch.zeros(len(first), x.shape[1])


@task.cases
def cases(dice):
    yield normal(dice, 3, 2), torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 2])
    yield normal(dice, 2, 3), torch.tensor([2, 0, 0, 3, 1, 2]), torch.tensor([0, 1, 1, 0])
    for n, m, k in ((12, 7, 4), (20, 9, 3)):
        first, second = (
            torch.cat([torch.arange(few), torch.randint(few, (many - few,), generator=dice)])[
                torch.randperm(many, generator=dice)
            ]
            for many, few in ((n, m), (m, k))
        )
        yield normal(dice, k, 4), first, second


@task.mistake(
    "You undid the second merge alone: that is a row for each token behind the first block, not for each patch."
)
def second_alone(x, first, second):
    return x[second]


@task.mistake(
    "You looked up `first` in x itself. Its numbers mean the tokens behind the first block; find out through "
    "`second` where those went."
)
def first_alone(x, first, second):
    return x[first]


@task.mistake(
    "The order is turned round: x belongs to the tokens behind the second merge, so undo `second` first, then `first`."
)
def turned_round(x, first, second):
    return x[first][second]


@task.mistake(
    "You shared each token out among its patches, so that the parts sum to it. It is a mean already: every patch "
    "gets all of it."
)
def shared_out(x, first, second):
    home = second[first]
    return x[home] / torch.bincount(home)[home][:, None]


@task.mistake(
    "Only one patch of each group gets its token, the others stay zero. Look up the token of every patch instead of "
    "writing to the groups."
)
def only_one(x, first, second):
    home = second[first]
    chosen = [int((home == group).nonzero()[0]) for group in range(len(x))]
    return torch.zeros(len(first), x.shape[1]).index_copy(0, torch.tensor(chosen), x)
