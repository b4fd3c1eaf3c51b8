"""The way back from patches to the image: nothing is computed, every pixel only finds its place again."""

from __future__ import annotations

import torch

from labkit.check.exercise import Exercise, normal
from labkit.patching import patches


def reference(squares, p, h, w):
    return patches.uncut(squares, p, (h, w))


task = Exercise(
    lesson="02_images_to_tokens",
    reference=reference,
    source="labkit.patching.patches.uncut",
    axes=("images", "colours", "rows", "columns"),
    hints=(
        "Give the numbers their six axes with `reshape`: image, row of patches, column of patches, colour, row and "
        "column "
        "in the patch.",
        "`permute` to image, colour, row of patches, row in the patch, column of patches, column in the patch; then "
        "`reshape` again.",
    ),
    praise="Bit for bit: cutting loses nothing.",
)


@task.stub
def glue_patches(squares, p, h, w):
    """Write `glue_patches(squares, p, h, w)`: flattened patches (b, h w, 3 p²), h rows of w patches, each flattened
    from (3, p, p) → images (b, 3, h p, w p).
    """
    return torch.zeros(len(squares), 3, h * p, w * p)


@task.cases
def cases(dice):
    for b, p, h, w in ((1, 2, 1, 2), (2, 2, 2, 3), (3, 4, 3, 2)):
        yield normal(dice, b, h * w, 3 * p**2), p, h, w


def six(squares, p, h, w):
    return squares.reshape(len(squares), h, w, 3, p, p)


@task.mistake(
    "One reshape has the right shape and the wrong pixels: each patch stays in one piece of memory. Permute first."
)
def reshape_alone(squares, p, h, w):
    return squares.reshape(len(squares), 3, h * p, w * p)


@task.mistake(
    "The colours are in front, but then come both patch axes and both pixel axes: a row of pixels must alternate "
    "patch and pixel, h p w p."
)
def colours_only(squares, p, h, w):
    return six(squares, p, h, w).permute(0, 3, 1, 2, 4, 5).reshape(len(squares), 3, h * p, w * p)


@task.mistake("Each patch is mirrored at its diagonal: its rows and columns of pixels are exchanged in your permute.")
def patches_turned(squares, p, h, w):
    return six(squares, p, h, w).permute(0, 3, 1, 5, 2, 4).reshape(len(squares), 3, h * p, w * p)


@task.mistake(
    "The patches are whole and at each other's places: they are counted row by row, so reshape to h before w."
)
def by_columns(squares, p, h, w):
    found = squares.reshape(len(squares), w, h, 3, p, p)
    return found.permute(0, 3, 2, 4, 1, 5).reshape(len(squares), 3, h * p, w * p)


@task.mistake("You took the colour as the last axis of a patch, (p, p, 3); these are flattened from (3, p, p).")
def colours_last(squares, p, h, w):
    found = squares.reshape(len(squares), h, w, p, p, 3)
    return found.permute(0, 5, 1, 3, 2, 4).reshape(len(squares), 3, h * p, w * p)
