"""Linear attention: the same numbers as from an n × n matrix, which is never made."""

from __future__ import annotations

import torch

from labkit.attention import linear
from labkit.check.attempt import same
from labkit.check.exercise import Exercise, uniform
from labkit.memory import measure

FLOAT = 4  # bytes
measure(torch.zeros, 1)  # the first watch of a session imports for a second: not on the clock of the learner


def result_and_size(fn, a, b, v):
    """What it returns, and, once that is right, whether something as large as all pairs was held on the way."""
    out = fn(a, b, v)
    if not same(linear.linear_attention(a, b, v), out, 1e-4):
        return out, "small"
    return out, "n × n" if measure(fn, a, b, v).largest >= FLOAT * len(a) * len(b) else "small"


task = Exercise(
    lesson="06_cheaper_attention",
    reference=linear.linear_attention,
    observe=result_and_size,
    parts=("result", "largest tensor on the way"),
    hints=(
        "(a bᵀ) v = a (bᵀ v).",
        "The sum of row i of a bᵀ is a[i] times the sum of all keys' features.",
    ),
    praise="Twice the tokens, twice the work: that is all there is to linear attention.",
)


@task.stub
def feature_attention(a, b, v):
    """Write `feature_attention(a, b, v)` for positive features a of the queries, (queries, f), b of the keys, (keys,
    f), and values v, (keys, d): the rows of a bᵀ, each divided by its sum, times v, without ever making a matrix of
    queries × keys.
    """
    return torch.zeros(a.shape[0], v.shape[1])


@task.cases
def cases(dice):
    for queries, keys, f, d in ((12, 16, 2, 3), (40, 40, 4, 3), (70, 50, 3, 5)):
        yield 0.1 + uniform(dice, queries, f), 0.1 + uniform(dice, keys, f), uniform(dice, keys, d)


@task.mistake(
    "The numbers are right, but a matrix of queries × keys was made, and that was the point. Multiply b.T with v "
    "first, and sum the keys up before a query asks."
)
def by_pairs(a, b, v):
    pairs = a @ b.T
    return pairs / pairs.sum(dim=1, keepdim=True) @ v


@task.mistake(
    "The rows are not divided by their sums: feed values that are all 1 in, and all should come out as 1. Row i sums "
    "to a[i] @ b.sum(dim=0)."
)
def not_divided(a, b, v):
    return a @ (b.T @ v)


@task.mistake(
    "You divided by the number of keys. That is the sum of a row only if all its similarities are 1; divide by a[i] "
    "@ b.sum(dim=0)."
)
def divided_by_count(a, b, v):
    return a @ (b.T @ v) / len(b)


@task.mistake("You divided the columns of a bᵀ by their sums, key by key. Each query shares out its 1: it is the rows.")
def divided_columns(a, b, v):
    pairs = a @ b.T
    return pairs / pairs.sum(dim=0, keepdim=True) @ v


@task.mistake(
    "You divided each feature of the keys by its sum over the keys. Rows then sum to a[i].sum(), not to 1: the "
    "features of the query belong into the divisor too."
)
def divided_features(a, b, v):
    return a @ ((b / b.sum(dim=0)).T @ v)


@task.mistake(
    "There is a softmax in it. Here the positive features stand in its place; with it the order of the products "
    "could not be changed."
)
def with_softmax(a, b, v):
    return (a @ b.T).softmax(dim=-1) @ v
