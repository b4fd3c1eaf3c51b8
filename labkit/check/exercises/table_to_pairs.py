"""A relative bias is a small table: one entry for each way from a key to a query, looked up for each pair."""

from __future__ import annotations

import torch

from labkit.check.exercise import Exercise, normal
from labkit.positions.grid import for_each_pair


def reference(table, h, w):
    return for_each_pair(table[:, None], (h, w))[0]


task = Exercise(
    lesson="03_where_am_i",
    reference=reference,
    source="labkit.positions.grid.displacement_index",
    axes=("queries", "keys"),
    hints=(
        "Δrow = row[:, None] - row[None, :] is (h·w, h·w), from -(h - 1) to h - 1; add h - 1, and it counts from 0.",
        "A row of the table has 2w - 1 entries: the number of a way is (Δrow + h - 1)(2w - 1) + Δcolumn + w - 1.",
    ),
    praise="(2h - 1)(2w - 1) numbers instead of (h w)²: Swin's table.",
)


@task.stub
def table_to_pairs(table, h, w):
    """Write `table_to_pairs(table, h, w)`: `table` has one number for each way (Δrow, Δcolumn) = place of the query
    minus place of the key, (2h - 1)(2w - 1) in all, counted row by row from (-(h - 1), -(w - 1)). Return the number
    of each pair of patches, (h·w queries, h·w keys).
    """
    return torch.zeros(h * w, h * w)


@task.cases
def cases(dice):
    for h, w in ((1, 2), (2, 3), (4, 2), (3, 3)):
        yield normal(dice, (2 * h - 1) * (2 * w - 1)), h, w


def ways(h, w):
    """Δrow and Δcolumn of each pair."""
    row, column = torch.cartesian_prod(torch.arange(h), torch.arange(w)).unbind(dim=1)
    return row[:, None] - row, column[:, None] - column


@task.mistake("You count from the query to the key; the table counts from the key to the query: it is mirrored.")
def mirrored(table, h, w):
    return reference(table, h, w).T


@task.mistake("You step w entries for one Δrow; a row of the table has 2w - 1 of them, as Δcolumn takes 2w - 1 values.")
def width_w(table, h, w):
    down, across = ways(h, w)
    return table[(down + h - 1) * w + across + w - 1]


@task.mistake(
    "The offset is missing: Δ = (0, 0) reads entry 0, and negative numbers silently count from the end of the table. "
    "Add h - 1 and w - 1."
)
def no_offset(table, h, w):
    down, across = ways(h, w)
    return table[down * (2 * w - 1) + across]


@task.mistake(
    "You took the absolute value of Δ: left and right get the same number, and the table could tell them apart."
)
def unsigned(table, h, w):
    down, across = ways(h, w)
    return table[(down.abs() + h - 1) * (2 * w - 1) + across.abs() + w - 1]


@task.mistake("You count the table column by column: Δrow steps over a whole row, 2w - 1 entries; Δcolumn over one.")
def by_columns(table, h, w):
    down, across = ways(h, w)
    return table[(across + w - 1) * (2 * h - 1) + down + h - 1]


@task.mistake(
    "h and w are exchanged in the places: patch i is in row i // w and column i % w, as each row has w patches."
)
def exchanged(table, h, w):
    down, across = ways(w, h)
    return table[(down + h - 1) * (2 * w - 1) + across + w - 1]
