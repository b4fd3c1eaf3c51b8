"""A rotation of pairs of channels: it changes no length, and so a score sees the difference of two angles alone."""

from __future__ import annotations

import torch

from labkit.check.exercise import Exercise, normal
from labkit.positions.rope import rotate

task = Exercise(
    lesson="03_where_am_i",
    reference=rotate,
    axes=("queries", "d"),
    hints=(
        "A pair (a, b) becomes (a cos - b sin, a sin + b cos).",
        "`x[..., ::2]` are the first channels of the pairs; put the results back with `torch.stack(..., "
        "dim=-1).flatten(-2)`.",
    ),
    praise="A rotation keeps the length of each pair: only the angle between q and k changes.",
)


@task.stub
def turn_pairs(x, angle):
    """Write `turn_pairs(x, angle)`: x (..., d) has pairs of channels (0, 1), (2, 3), …; turn each by `angle`
    (..., d / 2), counter-clockwise. Then say why it cannot change the length of a query.
    """
    return torch.zeros_like(x)


@task.cases
def cases(dice):
    for n, d in ((1, 2), (3, 4), (5, 12)):
        yield normal(dice, n, d), normal(dice, n, d // 2)


def together(a, b):
    return torch.stack([a, b], dim=-1).flatten(-2)


@task.mistake("You turn the other way: the signs of the two sines are exchanged.")
def clockwise(x, angle):
    return rotate(x, -angle)


@task.mistake(
    "Your pairs are a channel and the one half of d further on. That convention exists, too; here a pair is two "
    "neighbours."
)
def halves(x, angle):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], dim=-1)


@task.mistake(
    "The numbers are right and at the wrong places: all first channels, then all second. Put each pair together."
)
def not_interleaved(x, angle):
    a, b = x[..., ::2], x[..., 1::2]
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], dim=-1)


@task.mistake("Both sines have a plus: the length changes, so it is no rotation. One of the two is subtracted.")
def two_plus(x, angle):
    a, b = x[..., ::2], x[..., 1::2]
    return together(a * angle.cos() + b * angle.sin(), a * angle.sin() + b * angle.cos())


@task.mistake("The second channel is made from the *new* first one: keep the old values until both are computed.")
def overwritten(x, angle):
    a = x[..., ::2] * angle.cos() - x[..., 1::2] * angle.sin()
    return together(a, a * angle.sin() + x[..., 1::2] * angle.cos())


@task.mistake("You scale each channel by the cosine; a rotation also mixes the two channels of a pair, by the sine.")
def only_cosines(x, angle):
    return x * angle.cos().repeat_interleave(2, dim=-1)
