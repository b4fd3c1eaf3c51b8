"""Keep the best patches in the order of the image, so that the same scores give the same tokens on every machine."""

from __future__ import annotations

import torch

from labkit.check.exercise import Exercise
from labkit.tokens.score import highest


def best(scores, count):
    return highest(scores[None], count, 0)[0]


task = Exercise(
    lesson="07_token_pruning",
    reference=best,
    axes=("kept",),
    hints=(
        "`argsort(descending=True, stable=True)` puts the earlier of equals first.",
        "Take the first `count` of them, and sort the places again.",
    ),
    praise="Ties and order are settled: the same scores keep the same patches everywhere.",
    source="labkit.tokens.score.highest",
)


@task.stub
def best_in_order(scores, count):
    """Write `best_in_order(scores, count)`: of one image's scores (patches,), the places of the `count` highest, in
    the order of the image. Of equal scores the earlier wins.
    """
    return torch.zeros(count, dtype=torch.long)


@task.cases
def cases(dice):
    yield torch.tensor([0.1, 0.5, 0.2, 0.5, 0.0, 0.2]), 3
    for patches, count in ((9, 4), (16, 5), (30, 11)):
        yield torch.randint(5, (patches,), generator=dice) / 4, count
    yield torch.rand(12, generator=dice), 6


@task.mistake(
    "These are the best, but in the order of their scores: the tokens would be shuffled, and a film of them could "
    "not be drawn. Sort the places."
)
def by_score(scores, count):
    return scores.argsort(descending=True, stable=True)[:count]


@task.mistake(
    "Where two scores are equal the later patch stays. Ask argsort for `stable=True`: without it nobody promises who "
    "wins a tie."
)
def later_wins(scores, count):
    return (len(scores) - 1 - scores.flip(0).argsort(descending=True, stable=True)[:count]).sort().values


@task.mistake("You keep the lowest scores: argsort rises unless you say `descending=True`.")
def lowest(scores, count):
    return scores.argsort(stable=True)[:count].sort().values


@task.mistake("These are the scores themselves; asked for are their places, by which the tokens can be taken.")
def values(scores, count):
    return scores[best(scores, count)]


@task.mistake(
    "A threshold lets in everybody who ties with the last: with equal scores that is more than `count`. Choose "
    "places, not values."
)
def threshold(scores, count):
    return (scores >= scores.sort(descending=True).values[count - 1]).nonzero().flatten()


@task.mistake(
    "You return which patches stay as True and False; asked for are the numbers of their places, `count` of them."
)
def who(scores, count):
    return torch.zeros(len(scores), dtype=torch.bool).scatter(0, best(scores, count), True)
