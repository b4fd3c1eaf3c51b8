"""Two axes for the rotation: half of the pairs tell the row, half the column."""

from __future__ import annotations

import torch

from labkit.check.exercise import Exercise
from labkit.positions.rope import RoPEAxial


def reference(h, w, d):
    return RoPEAxial(d).angles((h, w), torch.zeros(1))


def rows_and_columns(h, w):
    """(h w, 1) each."""
    return torch.cartesian_prod(torch.arange(h), torch.arange(w)).float().split(1, dim=1)


def speeds(m):
    return 100.0 ** (-torch.arange(m) / m)


task = Exercise(
    lesson="03_where_am_i",
    reference=reference,
    source="labkit.positions.rope.RoPEAxial",
    axes=("patches", "pairs"),
    hints=(
        "Make two blocks of (h·w, d / 4): the row of each patch times the speeds, its column times the speeds.",
        "`torch.cartesian_prod` gives rows and columns; `torch.cat(..., dim=1)` sets the blocks side by side.",
    ),
    praise="Give them to `turn_pairs`, and you have the RoPE of section 2.",
)


@task.stub
def axial_angles(h, w, d):
    """Write `axial_angles(h, w, d)`: the angles (h·w, d / 2) by which axial RoPE turns the pairs of a head of d
    channels. The first d / 4 pairs turn by row · f, the others by column · f, with the same speeds f_i = 100^(-i / (d
    / 4)) for i = 0 … d / 4 - 1. Patches are counted row by row.
    """
    return torch.zeros(h * w, d // 2)


@task.cases
def cases(dice):
    return [(1, 3, 8), (2, 3, 4), (3, 2, 16), (4, 5, 8)]


@task.mistake("The columns are told first in yours; the first half of the pairs belongs to the row.")
def columns_first(h, w, d):
    return reference(h, w, d).roll(d // 4, dims=1)


@task.mistake(
    "Row and column take turns in yours, pair by pair; expected are all pairs of the row, then all of the column."
)
def in_turns(h, w, d):
    rows, columns = rows_and_columns(h, w)
    return torch.stack([rows * speeds(d // 4), columns * speeds(d // 4)], dim=-1).flatten(1)


@task.mistake(
    "You made one list of d / 2 speeds and cut it in two: the columns turn slower than the rows. Both get the same "
    "speeds."
)
def one_list(h, w, d):
    rows, columns = rows_and_columns(h, w)
    fast, slow = speeds(d // 2).chunk(2)
    return torch.cat([rows * fast, columns * slow], dim=1)


@task.mistake(
    "That is RoPE for a text: the place in the sequence times d / 2 speeds. The patch below is then w steps away."
)
def as_text(h, w, d):
    return torch.arange(h * w).float()[:, None] * speeds(d // 2)


@task.mistake(
    "Your base is 10 000, as for long texts; a grid has few rows, and axial RoPE here slows down to nearly 1 / 100."
)
def base_of_texts(h, w, d):
    return RoPEAxial(d, base=10_000.0).angles((h, w), torch.zeros(1))


@task.mistake("Your speeds end halfway, near 1 / 10: the exponent counts i in parts of the d / 4 pairs of one axis.")
def half_exponent(h, w, d):
    return RoPEAxial(d, base=10.0).angles((h, w), torch.zeros(1))


@task.mistake("h and w are exchanged: patches are counted row by row, w in each row.")
def exchanged(h, w, d):
    return reference(w, h, d)
