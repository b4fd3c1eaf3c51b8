"""How far does a head look? The distances to all patches, weighed with its attention."""

from __future__ import annotations

import torch

from labkit.check.exercise import Exercise, normal, uniform
from labkit.explain import heads


def reference(attn, places):
    return heads.mean_distance(attn, torch.cdist(places, places))


task = Exercise(
    lesson="05_seeing_attention",
    reference=reference,
    source="labkit.explain.heads.mean_distance",
    axes=("head",),
    hints=(
        "`torch.cdist(places, places)` holds all distances.",
        "Divide each row of `attn` by its sum, weigh the distances with it, sum over the keys, and take the mean over "
        "the queries.",
    ),
    praise="This is the number that sorts heads into local and global ones.",
)


@task.stub
def looking_distance(attn, places):
    """Write `looking_distance(attn, places)`: the mean distance at which each head looks, (heads). `attn` is (heads,
    patches, patches), queries before keys, and `places` (patches, 2) has the row and column of each patch. What a
    patch gives to the class token has been cut off, so a row may sum to less than 1; only what is left counts.
    """
    return torch.zeros(attn.shape[0])


@task.cases
def cases(dice):
    for count, rows, columns in ((2, 1, 3), (1, 2, 3), (3, 4, 2)):
        places = torch.cartesian_prod(torch.arange(float(rows)), torch.arange(float(columns)))
        attn = (2 * normal(dice, count, len(places), len(places))).softmax(dim=-1)
        yield attn * (0.2 + 0.8 * uniform(dice, count, len(places), 1)), places


def apart(places):
    return torch.cdist(places, places)


def whole(attn):
    return attn / attn.sum(dim=-1, keepdim=True)


@task.mistake(
    "You did not divide by the sum of each row. What went to the class token then counts as a look at distance 0, "
    "and the head seems nearer than it is."
)
def rows_as_they_are(attn, places):
    return (attn * apart(places)).sum(dim=-1).mean(dim=-1)


@task.mistake("You summed over the queries too: the answer grows with the number of patches. Take their mean.")
def summed_queries(attn, places):
    return (whole(attn) * apart(places)).sum(dim=(-2, -1))


@task.mistake(
    "You took the mean over the keys. The weights of a row sum to 1 already, so their weighted sum is the mean; "
    "dividing again makes it too small."
)
def averaged_keys(attn, places):
    return (whole(attn) * apart(places)).mean(dim=(-2, -1))


@task.mistake(
    "You normalised the columns: that tells from how far a patch is looked at. A row belongs to one query, and the "
    "keys are the last axis."
)
def columns_for_rows(attn, places):
    share = attn / attn.sum(dim=-2, keepdim=True)
    return (share * apart(places)).sum(dim=-2).mean(dim=-1)


@task.mistake("These are squared distances: far patches count too much. Take the root, or use torch.cdist.")
def squared(attn, places):
    return (whole(attn) * apart(places).square()).sum(dim=-1).mean(dim=-1)


@task.mistake(
    "You walk along rows and columns, |Δrow| + |Δcolumn|. Asked is the straight line: a diagonal neighbour is 1.41 "
    "patches away, not 2."
)
def city_blocks(attn, places):
    return (whole(attn) * torch.cdist(places, places, p=1)).sum(dim=-1).mean(dim=-1)
