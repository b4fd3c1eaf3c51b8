"""A cure for rounded attention that needs no other grid: every row is divided by what is left of it."""

from __future__ import annotations

import torch

from labkit.check.exercise import Exercise, normal
from labkit.quant.grids import Uniform


def rounded(attn, step):
    """On the grid of the package, with codes enough for a probability of 1."""
    bits = max(2, int(1 / step).bit_length() + 1)
    return Uniform(torch.tensor(step), torch.tensor(0), bits).round(attn)


def reference(attn, step):
    left = rounded(attn, step)
    total = left.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, left / total.clamp(min=1e-9), 1 / attn.shape[-1])


task = Exercise(
    lesson="10_quantizing_a_vit",
    reference=reference,
    axes=("batch", "head", "query", "key"),
    hints=(
        "`(attn / step).round() * step`, then `sum(dim=-1, keepdim=True)`.",
        "`torch.where(total > 0, rounded / total.clamp(min=1e-9), 1 / n)`.",
    ),
    praise="Every query gets a whole look again, if a coarse one.",
    source="labkit.quant.grids.Uniform.round",
)


@task.stub
def make_rows_whole(attn, step):
    """Another cure, without another grid: write `make_rows_whole(attn, step)`. Round the probabilities to multiples of
    step, then divide every row (last axis) by its sum; a row that is all zero becomes 1/n everywhere. Is it as good as
    a better grid?
    """
    return (attn / step).round() * step


@task.cases
def cases(dice):
    for shape, step in (((1, 1, 2, 4), 0.3), ((1, 2, 5, 5), 0.4), ((2, 3, 6, 9), 1 / 7)):
        attn = (2 * normal(dice, *shape)).softmax(dim=-1)
        attn[..., 0, :] = 1 / shape[-1]  # a query that looks at all alike falls silent
        attn[..., 1, :] = torch.tensor([0.7, *[0.3 / (shape[-1] - 1)] * (shape[-1] - 1)])
        yield attn, step


@task.mistake(
    "Some rows are NaN: a query that looked at all alike has lost everything, its sum is 0, and 0 / 0 is no number. "
    "Give it 1/n."
)
def zero_by_zero(attn, step):
    left = rounded(attn, step)
    return left / left.sum(dim=-1, keepdim=True)


@task.mistake(
    "The rows that lost everything stay 0, and those are the ones that need help most: a query that gets nothing. "
    "Give them 1/n."
)
def silent_stay_silent(attn, step):
    left = rounded(attn, step)
    return left / left.sum(dim=-1, keepdim=True).clamp(min=1e-9)


@task.mistake("A silent row has 1 everywhere in yours, and so sums to n. Spread a single 1 over its n keys.")
def ones_for_silent(attn, step):
    left = rounded(attn, step)
    total = left.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, left / total.clamp(min=1e-9), 1.0)


@task.mistake(
    "You divide by the sum over the queries. A query shares out its 1 among the keys: sum over the last axis, and keep "
    "the axis."
)
def over_queries(attn, step):
    left = rounded(attn, step)
    total = left.sum(dim=-2, keepdim=True)
    return torch.where(total > 0, left / total.clamp(min=1e-9), 1 / attn.shape[-1])


@task.mistake(
    "A second softmax bends the row: 0 no longer stays 0 and the large ones are flattened. A row that is divided by "
    "its sum keeps its proportions."
)
def softmax_again(attn, step):
    return rounded(attn, step).softmax(dim=-1)


@task.mistake(
    "You divide the probabilities as they were before rounding; their rows sum to 1 already, and nothing is rounded "
    "any more."
)
def not_rounded(attn, step):
    left = rounded(attn, step).sum(dim=-1, keepdim=True)
    return torch.where(left > 0, attn / attn.sum(dim=-1, keepdim=True), 1 / attn.shape[-1])
