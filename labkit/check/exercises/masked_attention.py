"""Who may see whom is decided before the softmax, so that the weights that remain still sum to one."""

from __future__ import annotations

import torch

from labkit.attention import dense
from labkit.check.exercise import Exercise, normal, uniform

task = Exercise(
    lesson="01_attention",
    reference=dense.scaled_dot_product,
    axes=("batch", "query", "d"),
    hints=(
        "`scores.masked_fill(~seen, -torch.inf)`: minus infinity is the score whose weight is zero.",
        "A row of nothing but minus infinity becomes NaN. Set the weights of hidden keys to zero once more, behind the "
        "softmax: `masked_fill(~seen, 0)` replaces NaN as well.",
    ),
    praise="Causal models, packed images and padding are all this function with another `seen`.",
)


@task.stub
def masked_attention(q, k, v, seen):
    """Write `masked_attention(q, k, v, seen)`: attention in which a query counts only the keys that it may see. `seen`
    (batch, queries, keys) is True where it may. A query that may see no key at all gets zeros.
    """
    return torch.zeros(*q.shape[:-1], v.shape[-1])


@task.cases
def cases(dice):
    for batch, queries, keys in ((1, 2, 3), (2, 4, 4), (2, 5, 7)):
        seen = uniform(dice, batch, queries, keys) < 0.5
        seen[:, 0, :2] = torch.tensor([True, False])
        seen[:, 1] = queries == 2  # one query sees everybody, in the larger cases nobody
        yield normal(dice, batch, queries, 4), normal(dice, batch, keys, 4), normal(dice, batch, keys, 3), seen


def scores_of(q, k):
    return q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5


@task.mistake(
    "You set hidden *scores* to 0, and e^0 is 1: hidden keys still count. The score that weighs nothing is -∞."
)
def scores_to_zero(q, k, v, seen):
    return (scores_of(q, k) * seen).softmax(dim=-1) @ v


@task.mistake("The zeros come behind the softmax: the weights that remain no longer sum to 1. Hide before it.")
def too_late(q, k, v, seen):
    return (scores_of(q, k).softmax(dim=-1) * seen) @ v


@task.mistake("It is the other way round: True means *may be seen*, so hide where it is False: `~seen`.")
def upside_down(q, k, v, seen):
    return dense.scaled_dot_product(q, k, v, ~seen)


@task.mistake(
    "The mask changes nothing here: is it used? `masked_fill` returns a new tensor and leaves the old one as it is."
)
def unmasked(q, k, v, seen):
    return dense.scaled_dot_product(q, k, v)


@task.mistake(
    "A query that sees nobody has only -∞ in its row; its softmax is 0 / 0, NaN, and spreads. It should get zeros."
)
def nan_rows(q, k, v, seen):
    return scores_of(q, k).masked_fill(~seen, -torch.inf).softmax(dim=-1) @ v


@task.mistake(
    "With a large negative number in place of -∞, a query that sees nobody gets the mean of all values; it should get "
    "zeros."
)
def mean_of_all(q, k, v, seen):
    return scores_of(q, k).masked_fill(~seen, -1e9).softmax(dim=-1) @ v


@task.mistake("The mask is right; the scores are not divided by √d.")
def not_scaled(q, k, v, seen):
    return dense.scaled_dot_product(q * q.shape[-1] ** 0.5, k, v, seen)
