"""How far news travels when each block lets few pairs talk: the product of the matrices of who hears whom."""

from __future__ import annotations

import torch

from labkit.attention import dense, windows
from labkit.check.exercise import Exercise
from labkit.explain.attention import flow


def reference(supports):
    mixes = [support.float() + torch.eye(len(support)) for support in supports]
    for count in range(1, len(mixes) + 1):
        if (flow(mixes[:count], [None] * count) > 0).all():
            return count
    return 0


task = Exercise(
    lesson="06_cheaper_attention",
    reference=reference,
    source="labkit.explain.attention.flow, the product of the blocks",
    hints=(
        "Two blocks behind each other are the product of their matrices, the later one on the left.",
        "Multiply them as floats and ask where the product is above zero. Every token also hears itself: the residual.",
    ),
    praise="Windows and spread groups in turn reach everybody in two blocks, at a fraction of the pairs.",
)


@task.stub
def blocks_until_met(supports):
    """Write `blocks_until_met(supports)`. `supports` is a list of boolean (n, n) matrices, one for each block: row i is
    True where token i hears token j. After how many blocks can every token have heard of every token, directly or
    through others? Return 0 if that never happens. A token keeps what it has heard: the residual.
    """
    return None


@task.cases
def cases(dice):
    near = dense.among(windows.regions((4, 4), 2))
    far = dense.among((torch.arange(16) // 4 % 2) * 2 + torch.arange(16) % 2)  # every second row and column
    ring = torch.eye(6).roll(1, 0).bool()
    asks, tells = torch.zeros(3, 3, dtype=torch.bool), torch.zeros(3, 3, dtype=torch.bool)
    asks[0], tells[:, 0] = True, True
    everybody = torch.ones(3, 3, dtype=torch.bool)
    for supports in (
        [asks, tells],
        [tells, asks],
        [everybody],
        [asks, everybody, asks],
        [ring] * 7,
        [ring] * 4,
        [near, near, near],
        [near, far, near],
        [near, near, far, far],
    ):
        yield (supports,)


def first(supports, start, step, done):
    reach = start
    for count, support in enumerate(supports, start=1):
        reach = step(support.float(), reach)
        if done(reach):
            return count
    return 0


def itself(supports):
    return torch.eye(len(supports[0]))


def everywhere(reach):
    return bool((reach > 0).all())


@task.mistake(
    "You forgot the residual: a token keeps what it has heard before. Add the identity to each block; without it the "
    "ring only passes one token on."
)
def no_residual(supports):
    return first(supports, itself(supports), lambda s, reach: s @ reach, everywhere)


@task.mistake(
    "You added the blocks up; that asks who heard whom directly in some block. News that comes through others needs "
    "the product."
)
def summed(supports):
    return first(supports, itself(supports), lambda s, reach: s + reach, everywhere)


@task.mistake(
    "The product is the wrong way round: what a token hears in block 2 is what the other has heard in block 1, so "
    "the later block stands on the left."
)
def from_the_right(supports):
    return first(supports, itself(supports), lambda s, reach: reach @ (s + itself(supports)), everywhere)


@task.mistake("You stop when one token has heard of everybody; asked is when all have.")
def one_knows_all(supports):
    def done(reach):
        return bool((reach > 0).all(dim=1).any())

    return first(supports, itself(supports), lambda s, reach: (s + itself(supports)) @ reach, done)


@task.mistake(
    "It is one too few: you count the blocks from 0, and asked is how many there were (the first block alone is 1)."
)
def counted_from_zero(supports):
    return max(reference(supports) - 1, 0)


@task.mistake(
    "Where they never all meet, you return the number of blocks, as if they had met behind the last one; asked is 0."
)
def never_is_the_last(supports):
    return reference(supports) or len(supports)
