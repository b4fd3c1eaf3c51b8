"""A map is worth something when what it marks is there: the share of the attention that lies on the object."""

from __future__ import annotations

import torch

from labkit.check.exercise import Exercise, uniform
from labkit.explain.localisation import mass


def reference(attention, inside):
    """Each image as a map of one row."""
    return mass(attention[:, None], inside[:, None])


task = Exercise(
    lesson="00_start_here",
    reference=reference,
    source="labkit.explain.localisation.mass",
    axes=("images",),
    hints=(
        "A True counts as 1 in a product, a False as 0.",
        "Multiply, then sum over the patches: `dim=1`. A share is a part divided by the whole, so do not trust the "
        "rows to sum to 1.",
    ),
    praise="It is the measure that section 2 used on all test images.",
)


@task.stub
def attention_on_object(attention, inside):
    """Write `attention_on_object(attention, inside)`: for each image, the share of its attention that lies on patches
    of the object. Both inputs have shape (images, patches), `inside` is True or False; the result has shape (images,).
    """
    return torch.zeros(len(attention))


@task.cases
def cases(dice):
    for images, patches in ((1, 4), (3, 5), (2, 16)):
        inside = uniform(dice, images, patches) < 0.4
        inside[:, 0], inside[:, 1] = True, False
        yield uniform(dice, images, patches), inside


@task.mistake("You did not divide: a sum is a share only where the row sums to 1, and these rows do not.")
def not_divided(attention, inside):
    return (attention * inside).sum(dim=1)


@task.mistake("You divided by the number of patches: that is a mean. The whole, for a share, is the row's attention.")
def mean_over_patches(attention, inside):
    return (attention * inside).mean(dim=1)


@task.mistake(
    "You divided by the number of patches on the object: that is how much one of them gets on average, not their share."
)
def mean_inside(attention, inside):
    return (attention * inside).sum(dim=1) / inside.sum(dim=1)


@task.mistake("You summed over the images (`dim=0`): the result says something of each patch, not of each image.")
def over_images(attention, inside):
    return (attention * inside).sum(dim=0) / attention.sum(dim=0)


@task.mistake(
    "You summed over everything: a sum without `dim` throws the images together. Each image has its own share."
)
def one_for_all(attention, inside):
    return (attention * inside).sum() / attention.sum()


@task.mistake(
    "The part is summed for each image, the whole over all of them: right for one image, too small for several. Give "
    "the second sum a `dim`, too."
)
def divided_by_the_batch(attention, inside):
    return (attention * inside).sum(dim=1) / attention.sum()


@task.mistake("This is the share on the background: you took the patches where `inside` is False.")
def on_background(attention, inside):
    return (attention * ~inside).sum(dim=1) / attention.sum(dim=1)
