"""Attention in three lines: the sum that everything else in this kit makes cheaper."""

from __future__ import annotations

import torch

from labkit.attention import dense
from labkit.check.exercise import Exercise, normal

task = Exercise(
    lesson="01_attention",
    reference=dense.scaled_dot_product,
    axes=("batch", "query", "d"),
    hints=(
        "`k.transpose(-2, -1)` makes the keys the columns.",
        "The sum to one runs over the keys: the last axis of the scores.",
    ),
)


@task.stub
def attention(q, k, v):
    """Write `attention(q, k, v)` for (batch, n, d). Keys and values may be more or fewer than queries."""
    return torch.zeros(*q.shape[:-1], v.shape[-1])


@task.cases
def cases(dice):
    for batch, queries, keys, d in ((1, 2, 3, 4), (2, 6, 9, 8), (3, 5, 4, 16)):
        yield normal(dice, batch, queries, d), normal(dice, batch, keys, d), normal(dice, batch, keys, d // 2)


@task.mistake("The scores are not divided by √d: with d = 64 the softmax would choose one key and forget the others.")
def not_scaled(q, k, v):
    return (q @ k.transpose(-2, -1)).softmax(dim=-1) @ v


@task.mistake("You divided by d, not by √d: compare the entropy of row 0. A sum of d products has the spread √d.")
def divided_by_d(q, k, v):
    return (q @ k.transpose(-2, -1) / q.shape[-1]).softmax(dim=-1) @ v


@task.mistake("You divided by the root of the number of keys; what makes a score large is its width d.")
def divided_by_root_n(q, k, v):
    return (q @ k.transpose(-2, -1) / k.shape[-2] ** 0.5).softmax(dim=-1) @ v


@task.mistake("The softmax runs over the queries; each query should share out its 1 among the keys, the last axis.")
def softmax_over_queries(q, k, v):
    return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-2) @ v


@task.mistake("The softmax is missing: these are scores, not weights, and a row does not sum to 1.")
def no_softmax(q, k, v):
    return q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 @ v


@task.mistake(
    "You divided after the softmax; that shrinks the weights (they sum to 1/√d) instead of calming the scores."
)
def scaled_after(q, k, v):
    return (q @ k.transpose(-2, -1)).softmax(dim=-1) / q.shape[-1] ** 0.5 @ v
