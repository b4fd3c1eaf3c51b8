"""Weights from scores: positive, one in sum, and finite whatever the scores are."""

from __future__ import annotations

import torch

from labkit.attention import dense
from labkit.check.exercise import Exercise, normal

task = Exercise(
    lesson="01_attention",
    reference=dense.attention_map,
    axes=("batch", "rows", "keys"),
    hints=(
        "A softmax does not change when the same number is taken from all scores.",
        "Take the largest of each row: `amax(dim=-1, keepdim=True)`.",
    ),
    praise="The largest exponent is now 0, so nothing can overflow.",
)


@task.stub
def softmax(scores):
    """Write `softmax(scores)` over the last axis, from `exp` and `sum`. It must survive scores of 1000."""
    return torch.zeros_like(scores)


@task.cases
def cases(dice):
    yield (normal(dice, 1, 2, 3),)
    yield (normal(dice, 2, 3, 5),)
    yield (1000 + 50 * normal(dice, 2, 3, 5),)
    yield (normal(dice, 2, 3, 4) + torch.tensor([1000.0, 0.0, -1000.0])[:, None],)
    yield (torch.tensor([[[1000.0, 0.0, 0.0, 0.0], [0.0, 1.0, 2.0, 3.0]]]),)


@task.mistake("e^1000 is infinite, and ∞ / ∞ is NaN: take the largest score of each row away before `exp`.")
def overflows(scores):
    return scores.exp() / scores.exp().sum(dim=-1, keepdim=True)


@task.mistake(
    "You took away the largest of *all* scores: a row far below it becomes zeros, and 0 / 0 is NaN. Each row "
    "needs its own largest."
)
def one_maximum(scores):
    weights = (scores - scores.max()).exp()
    return weights / weights.sum(dim=-1, keepdim=True)


@task.mistake("The columns sum to 1 (`dim=-2`); it should be the rows: the weights of one query, over its keys.")
def over_columns(scores):
    return scores.softmax(dim=-2)


@task.mistake("You normalise over the first axis, the batch: then what one image gets depends on the others beside it.")
def over_batch(scores):
    return scores.softmax(dim=0)


@task.mistake("You took away the mean of each row: a score far above it still overflows. Take the largest away.")
def minus_mean(scores):
    weights = (scores - scores.mean(dim=-1, keepdim=True)).exp()
    return weights / weights.sum(dim=-1, keepdim=True)


@task.mistake("These are positive and do not overflow, but no row sums to 1: divide by the sum of the row.")
def not_divided(scores):
    return (scores - scores.amax(dim=-1, keepdim=True)).exp()


@task.mistake(
    "Clamping the scores keeps `exp` finite and loses the order: everything above the limit gets the same weight."
)
def clamped(scores):
    weights = scores.clamp(max=80).exp()
    return weights / weights.sum(dim=-1, keepdim=True)
