"""What is not kept becomes one token more: the mean of the others, each counting by its score."""

from __future__ import annotations

import torch

from labkit.check.exercise import Exercise, normal, uniform
from labkit.tokens.fuse import fuse


def fused(x, scores, count):
    return fuse(scores[None], count, 0).mean(x[None])[0]


task = Exercise(
    lesson="07_token_pruning",
    reference=fused,
    axes=("tokens", "d"),
    hints=(
        "A boolean mask of who stays: zeros, and True at the places of the best.",
        "The weights of the others must sum to 1: `w = scores[~stays] / scores[~stays].sum()`.",
    ),
    praise="Nobody is dropped any more: the rest is heard, in one voice.",
    source="labkit.tokens.fuse.fuse",
)


@task.stub
def fuse_the_rest(x, scores, count):
    """Write `fuse_the_rest(x, scores, count)` for one image: x is (patches, d), the scores are positive. The
    `count` best stay, in order, and behind them comes one token more: the mean of the others, weighted by their
    scores.
    """
    return torch.zeros(count + 1, x.shape[1])


@task.cases
def cases(dice):
    for patches, d, count in ((5, 3, 2), (9, 4, 3), (12, 6, 1), (16, 2, 12)):
        yield normal(dice, patches, d), uniform(dice, patches) + 0.01, count


def stays(scores, count):
    return torch.zeros(len(scores), dtype=torch.bool).scatter(0, scores.argsort(descending=True)[:count], True)


@task.mistake("In your fused token all others count alike; those with a higher score should count more.")
def plain_mean(x, scores, count):
    kept = stays(scores, count)
    return torch.cat([x[kept], x[~kept].mean(dim=0, keepdim=True)])


@task.mistake(
    "You sum without dividing by the sum of their scores, as the paper does: the token shrinks when little attention "
    "was left over."
)
def not_divided(x, scores, count):
    kept = stays(scores, count)
    return torch.cat([x[kept], scores[~kept][None] @ x[~kept]])


@task.mistake(
    "You divide by the sum of all scores; the weights of those that do not stay should sum to 1 among themselves."
)
def divided_by_all(x, scores, count):
    kept = stays(scores, count)
    return torch.cat([x[kept], (scores[~kept] / scores.sum())[None] @ x[~kept]])


@task.mistake("Your last token is the mean of all patches, also of those that stay: these are heard twice.")
def of_everybody(x, scores, count):
    return torch.cat([x[stays(scores, count)], (scores / scores.sum())[None] @ x])


@task.mistake("The tokens that stay come in the order of their scores, not in that of the image.")
def by_score(x, scores, count):
    return torch.cat([x[scores.argsort(descending=True)[:count]], fused(x, scores, count)[-1:]])


@task.mistake(
    "You put a softmax over the scores of the others. They are amounts already; e to the power of them makes the "
    "weights nearly equal."
)
def softmax_again(x, scores, count):
    kept = stays(scores, count)
    return torch.cat([x[kept], scores[~kept].softmax(dim=0)[None] @ x[~kept]])
