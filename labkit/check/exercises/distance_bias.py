"""A far key pays: the simplest position of all, with nothing to learn and no size."""

from __future__ import annotations

import torch

from labkit.check.exercise import Exercise
from labkit.positions.alibi import ALiBi


def reference(h, w, slope):
    return ALiBi(1, slopes=(slope,)).bias((h, w))[0]


def places(h, w):
    return torch.cartesian_prod(torch.arange(h), torch.arange(w)).float()


task = Exercise(
    lesson="03_where_am_i",
    reference=reference,
    source="labkit.positions.alibi.ALiBi",
    axes=("queries", "keys"),
    hints=(
        "`torch.cartesian_prod(torch.arange(h), torch.arange(w))` is the place of each patch.",
        "`torch.cdist` of the places with themselves; it wants floats.",
    ),
    praise="It is the package's ALiBi, for one head.",
)


@task.stub
def distance_bias(h, w, slope):
    """Write `distance_bias(h, w, slope)`: (h·w, h·w), minus slope times the Euclidean distance between the patches,
    which are counted row by row.
    """
    return torch.zeros(h * w, h * w)


@task.cases
def cases(dice):
    return [(2, 3, 1.0), (1, 4, 0.5), (3, 5, 0.25), (4, 2, 2.0)]


@task.mistake("A far key should pay, so the bias is negative; yours rewards distance.")
def rewarded(h, w, slope):
    return -reference(h, w, slope)


@task.mistake(
    "That is the distance along the streets, |Δrow| + |Δcolumn|; Euclidean is the root of the sum of the squares."
)
def by_streets(h, w, slope):
    return -slope * torch.cdist(places(h, w), places(h, w), p=1)


@task.mistake("The root is missing: these are squared distances, and a patch two steps away pays four times.")
def squared(h, w, slope):
    return -slope * torch.cdist(places(h, w), places(h, w)).square()


@task.mistake(
    "You counted along the sequence, |i - j|, as in a text: there the end of a row is next to the next row's start."
)
def as_text(h, w, slope):
    order = torch.arange(h * w).float()
    return -slope * (order[:, None] - order).abs()


@task.mistake("h and w are exchanged: h counts the rows, and patches are counted row by row, so there are w in each.")
def exchanged(h, w, slope):
    return reference(w, h, slope)


@task.mistake("The slope is missing: every head would be equally near-sighted.")
def no_slope(h, w, slope):
    return reference(h, w, 1.0)
