"""The pointing game: where a map is highest, is there the object?"""

from __future__ import annotations

import torch

from labkit.check.exercise import Exercise, normal, uniform
from labkit.explain import localisation

task = Exercise(
    lesson="05_seeing_attention",
    reference=localisation.pointing,
    axes=("image",),
    hints=(
        "`maps.amax(dim=(1, 2), keepdim=True)` is the highest value of each map; compare the map with it.",
        "The peak is a map of ones and zeros: multiply it with `inside`, sum, and divide by the number of ones.",
    ),
    praise="A map that is the same everywhere gets exactly the area of the object: chance.",
)


@task.stub
def pointing_score(maps, inside):
    """Write `pointing_score(maps, inside)`: for each image, the share of object in the cell where its map is highest.
    Both are (images, rows, columns), and `inside` says how much of each cell is object. Where several cells are
    highest, their mean counts.
    """
    return torch.zeros(maps.shape[0])


@task.cases
def cases(dice):
    tied = torch.tensor([[[0.1, 0.9], [0.9, -1.0]], [[0.2, -3.0], [0.1, 0.0]]])
    yield tied, torch.tensor([[[0.0, 0.25], [1.0, 0.5]], [[0.75, 0.0], [0.5, 0.0]]])
    yield normal(dice, 3, 3, 2), uniform(dice, 3, 3, 2)
    yield torch.stack([torch.ones(2, 4), normal(dice, 2, 4), -uniform(dice, 2, 4)]), uniform(dice, 3, 2, 4)
    yield normal(dice, 4, 3, 3), (uniform(dice, 4, 3, 3) < 0.5).float() * uniform(dice, 4, 3, 3)


def peak(maps):
    return (maps == maps.amax(dim=(1, 2), keepdim=True)).float()


@task.mistake(
    "argmax takes the first of several equal cells, so a map that is the same everywhere points at the upper left "
    "corner. Take the mean over all cells that are highest."
)
def first_of_equals(maps, inside):
    return inside.flatten(1).gather(1, maps.flatten(1).argmax(dim=1, keepdim=True))[:, 0]


@task.mistake(
    "You count a cell as hit as soon as any object is in it. A cell that is a quarter object counts a quarter: where "
    "inside it the map points, nobody knows."
)
def any_object_is_a_hit(maps, inside):
    return (peak(maps) * (inside > 0)).sum(dim=(1, 2)) / peak(maps).sum(dim=(1, 2))


@task.mistake(
    "This is the mass of the map on the object: all cells count. In the pointing game only the highest cell does, "
    "however close the next one is."
)
def mass(maps, inside):
    return localisation.mass(maps, inside)


@task.mistake(
    "You look for the largest absolute value. A cell far below zero speaks against the class; the map points where "
    "it is highest, sign included."
)
def largest_magnitude(maps, inside):
    return localisation.pointing(maps.abs(), inside)


@task.mistake(
    "You took the highest value of all images together, so most images have no peak at all. Each map has its own: "
    "keep the first axis."
)
def peak_of_the_batch(maps, inside):
    best = (maps == maps.max()).float()
    return (best * inside).sum(dim=(1, 2)) / best.sum(dim=(1, 2)).clamp(min=1)


@task.mistake(
    "You summed over the cells that tie and did not divide by their number: a constant map would score as many cells "
    "as the object covers."
)
def ties_summed(maps, inside):
    return (peak(maps) * inside).sum(dim=(1, 2))
