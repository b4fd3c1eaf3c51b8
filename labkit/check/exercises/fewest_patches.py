"""As many patches as an image needs: the fewest of the highest scores that together have a given share of the sum."""

from __future__ import annotations

import torch

from labkit.check.exercise import Exercise
from labkit.tokens.adaptive import fewest


def needed(scores, part):
    return int(fewest(scores[None], part).sum())


task = Exercise(
    lesson="07_token_pruning",
    reference=needed,
    hints=(
        "Sort falling, and sum up with `cumsum`.",
        "A patch is needed while the sum of those before it is below the share.",
    ),
    praise="An image of one bright object keeps few patches, a crowded one many.",
    source="labkit.tokens.adaptive.fewest",
)


@task.stub
def fewest_patches(scores, part):
    """Write `fewest_patches(scores, part)`: how many of one image's highest scores (patches,) it takes to get at
    least the share `part` of their sum. An image always keeps one.
    """
    return 0


@task.cases
def cases(dice):
    yield torch.tensor([1.0, 3.0]), 1.0
    yield torch.tensor([4.0, 3.0, 2.0, 1.0]), 0.01
    yield torch.tensor([1.0, 1.0, 1.0, 1.0]), 0.6
    yield torch.tensor([0.0, 0.0, 3.0, 1.0]), 1.0
    yield torch.tensor([8.0, 4.0, 2.0, 1.0, 1.0]), 0.5
    yield torch.tensor([1.0, 4.0, 8.0, 1.0, 2.0]), 0.75
    yield torch.rand(20, generator=dice) ** 3, 0.9


@task.mistake(
    "You leave out the patch with which the share is reached; where a single patch has it all, nobody would stay."
)
def nobody(scores, part):
    return int((scores.sort(descending=True).values.cumsum(dim=0) < part * scores.sum()).sum())


@task.mistake(
    "It is one too few: without the patch that reaches the share, those that stay have less than `part` of the sum."
)
def one_too_few(scores, part):
    return max(1, nobody(scores, part))


@task.mistake("It is one too many where the share is met exactly: who comes after that is not needed. Use <, not <=.")
def one_too_many(scores, part):
    falling = scores.sort(descending=True).values
    before = falling.cumsum(dim=0) - falling
    return max(1, int((before <= part * falling.sum()).sum()))


@task.mistake(
    "You take the patches as they come in the image; sort them first, or a late bright patch costs all before it."
)
def not_sorted(scores, part):
    before = scores.cumsum(dim=0) - scores
    return max(1, int((before < part * scores.sum()).sum()))


@task.mistake("You begin with the lowest scores: that takes the most patches for this share, not the fewest.")
def rising(scores, part):
    return not_sorted(scores.sort().values, part)


@task.mistake(
    "`part` is a share of their sum, and the scores need not sum to 1: multiply it by `scores.sum()`, or divide the "
    "scores."
)
def absolute(scores, part):
    falling = scores.sort(descending=True).values
    return max(1, int((falling.cumsum(dim=0) - falling < part).sum()))
