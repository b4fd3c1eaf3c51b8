"""From pixels to patches: which of them hold a piece of the object, if only one pixel of it?"""

from __future__ import annotations

import torch

from labkit.check.exercise import Exercise, uniform
from labkit.token_labels import coverage


def reference(masks, p):
    return coverage(masks, (masks.shape[1] // p, masks.shape[2] // p)) > 0


task = Exercise(
    lesson="00_start_here",
    reference=reference,
    source="labkit.token_labels.coverage",
    axes=("images", "patches"),
    hints=(
        "Give the rows and the columns of pixels two axes each: `masks.reshape(len(masks), h // p, p, w // p, p)`.",
        "Axes 2 and 4 are now the pixels of one patch: `any` over both, then `flatten(1)`.",
    ),
    praise="Cutting an image into patches is the same reshape: lesson 02 begins with it.",
)


@task.stub
def touches_object(masks, p):
    """Write `touches_object(masks, p)`: masks (images, h, w) say for each pixel whether it is the object. Return, as
    True or False of shape (images, patches), whether a patch of p × p pixels holds at least one such pixel. Patches are
    counted row by row.
    """
    return torch.zeros(len(masks), masks[0].numel() // p**2, dtype=torch.bool)


@task.cases
def cases(dice):
    for images, p, h, w in ((1, 2, 1, 2), (2, 3, 2, 3), (3, 4, 3, 2)):
        masks = uniform(dice, images, h * p, w * p) < 0.12
        masks[:, -p:, -p:] = True  # one patch as a whole, one but for a pixel
        masks[:, :p, -p:] = True
        masks[:, 0, -1] = False
        masks[:, :p, :p] = False
        masks[0, p - 1, 0] = True  # and one that it only just touches
        yield masks, p


@task.mistake(
    "You ask for patches that are object in *all* pixels; one pixel of it is enough to be touched: any, not all."
)
def wholly_inside(masks, p):
    b, h, w = masks.shape
    return masks.reshape(b, h // p, p, w // p, p).all(dim=4).all(dim=2).flatten(1)


@task.mistake("You ask for patches that are more than half object; the outline would be lost. One pixel is enough.")
def mostly_inside(masks, p):
    b, h, w = masks.shape
    return masks.reshape(b, h // p, p, w // p, p).float().mean(dim=(2, 4)).flatten(1) > 0.5


@task.mistake(
    "One reshape does not make squares: it takes p² pixels that follow each other in memory, mostly along a row. Give "
    "rows and columns two axes each."
)
def runs_of_pixels(masks, p):
    return masks.reshape(len(masks), -1, p * p).any(dim=2)


@task.mistake("The patches are counted column by column; expected is row by row, as one reads.")
def by_columns(masks, p):
    return reference(masks.transpose(1, 2), p)


@task.mistake("These are shares of the patch, between 0 and 1; expected is True or False: compare with 0.")
def shares(masks, p):
    return coverage(masks, (masks.shape[1] // p, masks.shape[2] // p))


@task.mistake("You look at one pixel of each patch, its upper left corner; the object may lie in any of the others.")
def corners_only(masks, p):
    return masks[:, ::p, ::p].flatten(1)
