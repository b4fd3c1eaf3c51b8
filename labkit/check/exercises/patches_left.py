"""How many patches a schedule of merging leaves: no block can merge more than half of what arrives."""

from __future__ import annotations

import torch

from labkit.check.exercise import Exercise
from labkit.evidence import Evidence
from labkit.tokens.merge import Merge


def counted(patches, amounts):
    """`Merge` is asked itself, with blank tokens."""
    after = []
    for amount in amounts:
        blank = torch.zeros(1, 1, patches, 1)
        patches = Merge(amount).reduce(blank[0], Evidence(blank, blank), None, 0)[0].shape[1]
        after.append(patches)
    return after


task = Exercise(
    lesson="08_token_merging",
    reference=counted,
    parts=tuple(f"number behind block {i}" for i in range(6)),
    hints=(
        "With p patches, p // 2 are odd, and each even one goes into an odd one. Of 5 patches 2 are odd.",
        "`min(amount, patches // 2)` in a loop.",
    ),
    praise="So a schedule is known before it runs, and with it its multiply-accumulates.",
    source="labkit.tokens.schedule.tokens_after",
)


@task.stub
def patches_left(patches, amounts):
    """Write `patches_left(patches, amounts)`: the number of patches behind each block, a list. A block merges
    amounts[i] of them, but one way never more than half (rounded down) of those that arrive.
    """
    return [0 for amount in amounts]


@task.cases
def cases(dice):
    yield 5, [1, 9]
    yield 64, [8] * 6
    yield 64, [13] * 6
    yield 64, [40, 20, 10, 3, 1, 1]
    yield 49, [30, 0, 30, 2]


@task.mistake(
    "A block cannot merge more than half of what arrives: you let every patch go that was asked for, down to none, "
    "or fewer."
)
def no_limit(patches, amounts):
    return [patches - sum(amounts[: i + 1]) for i in range(len(amounts))]


@task.mistake(
    "Half of what arrives at this block, not half of what there was at first: the limit shrinks along with the patches."
)
def half_of_the_first(patches, amounts):
    left, limit = [], patches // 2
    for amount in amounts:
        patches -= min(amount, limit)
        left.append(patches)
    return left


@task.mistake(
    "With an odd number you merge one too many: of 5 patches 2 may go, as each of the 3 even ones needs an odd one "
    "that stays. Round down."
)
def rounded_up(patches, amounts):
    left = []
    for amount in amounts:
        patches -= min(amount, (patches + 1) // 2)
        left.append(patches)
    return left


@task.mistake("Asked for more than half, your block merges nobody; it should merge as many as it can, half.")
def gives_up(patches, amounts):
    left = []
    for amount in amounts:
        patches -= amount if amount <= patches // 2 else 0
        left.append(patches)
    return left


@task.mistake("These are the patches that go in each block; asked for are those that are left behind it.")
def those_that_go(patches, amounts):
    after = counted(patches, amounts)
    return [a - b for a, b in zip([patches, *after], after, strict=False)]


@task.mistake("These are the patches that arrive at each block; append the number after the block has merged.")
def those_that_arrive(patches, amounts):
    return [patches, *counted(patches, amounts)[:-1]]
