"""Several query heads share one head of keys and values: a quarter of what has to be kept, for groups of four."""

from __future__ import annotations

import torch

from labkit.attention import dense
from labkit.check.exercise import Exercise, normal


def reference(q, k, v):
    """Neighbouring query heads lie on an axis of their own, and share the keys by broadcasting."""
    groups = q.unflatten(1, (k.shape[1], -1))
    return dense.scaled_dot_product(groups, k[:, :, None], v[:, :, None]).flatten(1, 2)


task = Exercise(
    lesson="01_attention",
    reference=reference,
    source="labkit.attention.dense.scaled_dot_product",
    axes=("batch", "heads", "query", "d"),
    hints=(
        "Repeat each head of k and v, next to itself, until there are as many as query heads.",
        "`repeat_interleave(4, dim=1)` gives 0 0 0 0 1 1 1 1; `repeat` gives 0 1 0 1 0 1 0 1.",
    ),
    praise="With 8 and 2 heads, a quarter of the keys and values to keep.",
)


@task.stub
def grouped_attention(q, k, v):
    """Grouped-query attention shares each head of keys and values among neighbouring query heads. Write
    `grouped_attention(q, k, v)`: q is (b, heads, n, d), k and v have fewer heads. With 8 and 2, query heads 0 to 3 use
    head 0 of k and v, and 4 to 7 use head 1.
    """
    return torch.zeros_like(q)


@task.cases
def cases(dice):
    for batch, heads, fewer, n in ((1, 4, 2, 3), (2, 8, 2, 4), (1, 6, 3, 4), (2, 4, 1, 3)):
        yield normal(dice, batch, heads, n, 4), normal(dice, batch, fewer, n, 4), normal(dice, batch, fewer, n, 4)


def shared(q, k, v, spread):
    return dense.scaled_dot_product(q, spread(k), spread(v))


@task.mistake(
    "The heads of k and v take turns (0 1 0 1 …); neighbours should share one (0 0 1 1 …): repeat_interleave."
)
def in_turns(q, k, v):
    return shared(q, k, v, lambda t: t.repeat(1, q.shape[1] // k.shape[1], 1, 1))


@task.mistake("You averaged the heads of k and v: now all query heads share one. Each group keeps its own.")
def averaged(q, k, v):
    return shared(q, k, v, lambda t: t.mean(dim=1, keepdim=True))


@task.mistake("All query heads use head 0 of k and v; the other heads are never asked.")
def first_head(q, k, v):
    return shared(q, k, v, lambda t: t[:, :1])


@task.mistake("4 is the size of a group in the example; compute it from the shapes: `q.shape[1] // k.shape[1]`.")
def always_four(q, k, v):
    return shared(q, k, v, lambda t: t.repeat_interleave(4, dim=1))


@task.mistake(
    "You averaged the queries of each group: one answer a group is left, where each query head should get its own."
)
def queries_averaged(q, k, v):
    return dense.scaled_dot_product(q.unflatten(1, (k.shape[1], -1)).mean(dim=2), k, v)


@task.mistake("The groups are right; the scores are not divided by √d.")
def not_scaled(q, k, v):
    return reference(q * q.shape[-1] ** 0.5, k, v)
