"""A learned table on a larger or smaller image: draw it as a picture with d channels and resize that."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from labkit.check.exercise import Exercise, normal
from labkit.vit import resample_positions

task = Exercise(
    lesson="03_where_am_i",
    reference=resample_positions,
    axes=("1", "places", "d"),
    hints=(
        "`F.interpolate` wants (batch, channels, rows, columns): the d channels come before the grid.",
        "`table.mT.unflatten(-1, old)` is (1, d, h, w).",
    ),
    praise="It is what the ViT does, and what timm does.",
)


@task.stub
def stretch_table(table, old, new):
    """Write `stretch_table(table, old, new)`: learned positions (1, h·w, d) of the grid `old`, resampled to the grid
    `new`, bicubic and antialiased.
    """
    return torch.zeros(1, new[0] * new[1], table.shape[-1])


@task.cases
def cases(dice):
    for old, new, d in (((2, 3), (4, 5), 2), ((3, 5), (6, 10), 4), ((6, 4), (3, 2), 3)):
        yield normal(dice, 1, old[0] * old[1], d), old, new


def resized(table, old, new, mode="bicubic", **how):
    return F.interpolate(table.mT.unflatten(-1, old), size=new, mode=mode, **how).flatten(2).mT


@task.mistake("You take the nearest row for each place: neighbours on the new grid share one position. Bicubic blends.")
def nearest(table, old, new):
    return resized(table, old, new, "nearest")


@task.mistake("That is bilinear; the table is to be resampled bicubic, as timm does it.")
def bilinear(table, old, new):
    return resized(table, old, new, "bilinear", antialias=True)


@task.mistake(
    "`antialias=True` is missing: a grid made much smaller would skip rows of the table, and torch's bicubic curve is "
    "another one without it."
)
def not_antialiased(table, old, new):
    return resized(table, old, new)


@task.mistake(
    "`reshape` to (1, d, h, w) cuts the table up: the d numbers of a place lie side by side. Transpose first."
)
def reshaped(table, old, new):
    picture = F.interpolate(table.reshape(1, -1, *old), size=new, mode="bicubic", antialias=True)
    return picture.flatten(2).mT


@task.mistake(
    "The way back is missing its transpose: you cut (1, d, h, w) anew into rows of d numbers. Flatten the grid, then "
    "transpose."
)
def cut_anew(table, old, new):
    return resized(table, old, new, antialias=True).mT.reshape(1, -1, table.shape[-1])


@task.mistake("That is bilinear, and not antialiased: the table is to be resampled bicubic, with `antialias=True`.")
def bilinear_not_antialiased(table, old, new):
    return resized(table, old, new, "bilinear")


@task.mistake(
    "You read the table column by column: the grid is (rows, columns), and its places are counted row by row."
)
def exchanged(table, old, new):
    return resized(table, old[::-1], new, antialias=True)
