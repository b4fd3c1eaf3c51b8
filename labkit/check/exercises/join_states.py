"""Two halves of a softmax become one when both are measured against the same maximum."""

from __future__ import annotations

import torch

from labkit.attention import flash
from labkit.check.exercise import Exercise, normal


def reference(first, second):
    """A state counts like a single key of score m + log l that gives acc / l."""
    blocks = [((m + l.log())[..., None], (acc / l)[..., None, :]) for m, l, acc in (first, second)]  # noqa: E741
    return list(flash.online_softmax(blocks))[-1].out[..., 0, :]


task = Exercise(
    lesson="01_attention",
    reference=reference,
    source="labkit.attention.flash.online_softmax",
    axes=("batch", "query", "d"),
    hints=(
        "Bring both to the larger of the two maxima, then add.",
        "A state against the maximum m becomes one against M when l and acc are multiplied by e^(m - M).",
    ),
    praise="Exact, whichever half has the larger scores.",
)


@task.stub
def join_states(first, second):
    """Two machines have each seen a part of the keys. Each sends its m, l and acc. Write `join_states(first, second)`:
    two states `(m, l, acc)` → the output over all keys.
    """
    return torch.zeros_like(first[2])


@task.cases
def cases(dice):
    for batch, n, d, keys, at, size in ((1, 2, 4, 6, 3, 1.0), (2, 3, 8, 9, 2, 2.0), (2, 8, 4, 8, 5, 150.0)):
        q, k, v = size * normal(dice, batch, n, d), normal(dice, batch, keys, d), normal(dice, batch, keys, d)
        parts = zip(k.split([at, keys - at], dim=1), v.split([at, keys - at], dim=1), strict=True)
        yield tuple(tuple(list(flash.steps(q, *part, block=keys))[-1]) for part in parts)


@task.mistake("You added states that were measured against different maxima: bring both to the larger one first.")
def not_mended(first, second):
    return (first[2] + second[2]) / (first[1] + second[1])


@task.mistake(
    "This is the plain mean of the two outputs; the part whose keys have the larger scores should count more."
)
def plain_mean(first, second):
    return (first[2] / first[1] + second[2] / second[1]) / 2


@task.mistake(
    "You divided each by its own l and added: all weights together sum to 2. Add both l and both acc, divide once."
)
def sum_of_outputs(first, second):
    return first[2] / first[1] + second[2] / second[1]


def mended(first, second, power):
    top = torch.maximum(first[0], second[0])
    return [power(m - top) for m in (first[0], second[0])]


@task.mistake("You mended acc and not l: what is above the line has another maximum than what is below it.")
def only_acc(first, second):
    a, b = mended(first, second, torch.exp)
    return (a * first[2] + b * second[2]) / (first[1] + second[1])


@task.mistake(
    "The factor is upside down: e^(M - m) makes the smaller part larger still. It is e^(m - M), never above 1."
)
def upside_down(first, second):
    a, b = mended(first, second, lambda gap: (-gap).exp())
    return (a * first[2] + b * second[2]) / (a * first[1] + b * second[1])


@task.mistake(
    "You bring the second to the maximum of the first: right, until the second's is larger by about 90 and the "
    "exponential overflows. Bring both to the larger one."
)
def to_the_first(first, second):
    b = (second[0] - first[0]).exp()
    return (first[2] + b * second[2]) / (first[1] + b * second[1])


@task.mistake("You stopped before the last step: acc is a sum that is weighed, not yet an average. Divide it by l.")
def not_divided(first, second):
    a, b = mended(first, second, torch.exp)
    return a * first[2] + b * second[2]
