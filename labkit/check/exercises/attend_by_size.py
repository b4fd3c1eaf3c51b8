"""A softmax counts: a token that stands for s others adds log s to its scores and is attended to s times."""

from __future__ import annotations

import torch

from labkit.check.exercise import Exercise, normal
from labkit.evidence import Evidence
from labkit.layers import log_sizes


def by_size(q, k, v, sizes):
    return Evidence(q[None, None], k[None, None], log_sizes(sizes)[None, None, None]).attention()[0, 0] @ v


task = Exercise(
    lesson="08_token_merging",
    reference=by_size,
    axes=("query", "e"),
    hints=(
        "Equal keys pay equal amounts into the softmax: sizes[i] · e^score.",
        "Add `sizes.log()` to every row of scores, then softmax.",
    ),
    praise="It is as if every key stood there as often as it counts.",
    source="labkit.layers.log_sizes",
)


@task.stub
def attend_by_size(q, k, v, sizes):
    """Write `attend_by_size(q, k, v, sizes)`: softmax attention of queries q (m, d) to keys k (n, d) with values v
    (n, e), where key i stands for sizes[i] equal ones. Divide the scores by √d.
    """
    return torch.zeros(len(q), v.shape[1])


@task.cases
def cases(dice):
    for m, d, e, sizes in (
        (1, 4, 3, (1.0, 2.0)),
        (5, 8, 8, (1.0, 2.0, 1.0, 4.0, 1.0, 3.0)),
        (3, 16, 5, (7.0, 1.0, 1.0, 2.0)),
    ):
        n = len(sizes)
        yield normal(dice, m, d), normal(dice, n, d), normal(dice, n, e), torch.tensor(sizes)


def scores(q, k):
    return q @ k.T / k.shape[1] ** 0.5


@task.mistake("The sizes are missing: a token that stands for four patches is heard as one.")
def no_sizes(q, k, v, sizes):
    return scores(q, k).softmax(dim=-1) @ v


@task.mistake(
    "You added the sizes; add their logarithm. A score goes into an exponential: + 4 counts a key e⁴ = 55 times, not "
    "4 times."
)
def added(q, k, v, sizes):
    return (scores(q, k) + sizes).softmax(dim=-1) @ v


@task.mistake(
    "You multiplied the scores by the sizes: a key with a negative score would be heard less, the more patches it "
    "stands for."
)
def multiplied(q, k, v, sizes):
    return (scores(q, k) * sizes).softmax(dim=-1) @ v


@task.mistake(
    "You multiplied the weights by the sizes after the softmax, and a row does not sum to 1 any more: divide by its "
    "sum, or add log s before."
)
def after_softmax(q, k, v, sizes):
    return (scores(q, k).softmax(dim=-1) * sizes) @ v


@task.mistake(
    "You divided log s by √d too: only the product of q and k grows with d. Twice the patches is always + log 2."
)
def inside_the_root(q, k, v, sizes):
    return ((q @ k.T + sizes.log()) / k.shape[1] ** 0.5).softmax(dim=-1) @ v


@task.mistake("Sizes are right, but the scores are not divided by √d: with d = 16 they are four times as large.")
def not_scaled(q, k, v, sizes):
    return (q @ k.T + sizes.log()).softmax(dim=-1) @ v
