"""Several images in one sequence: the mask that makes each come out as it would alone."""

from __future__ import annotations

import torch

from labkit.check.exercise import Exercise
from labkit.patching import packing


def reference(segments):
    return packing.block_diagonal_bias(segments, torch.float32)[:, 0] == 0


task = Exercise(
    lesson="02_images_to_tokens",
    reference=reference,
    source="labkit.patching.packing.block_diagonal_bias",
    axes=("rows", "queries", "keys"),
    hints=(
        "Compare every place with every other place of its row: one of them as a column, one as a row.",
        "`segments[:, :, None]` is (rows, places, 1) and `segments[:, None, :]` is (rows, 1, places); `==` makes the "
        "square.",
    ),
    praise="The mask of section 4, one square for each row of places.",
)


@task.stub
def who_sees_whom(segments):
    """Write `who_sees_whom(segments)`: `segments` (rows, places) holds the number of the image that each place belongs
    to, and -1 where a place is empty. Return (rows, places, places): True where the first place may see the second, as
    both are of one image. Empty places see each other, so that no softmax is over nothing.
    """
    return torch.zeros(*segments.shape, segments.shape[1], dtype=torch.bool)


@task.cases
def cases(dice):
    yield (torch.tensor([[0, 0, 1]]),)
    yield (torch.tensor([[0, 0, 0, 1, 1], [2, 2, 3, -1, -1]]),)
    yield (packing.layout([5, 2, 4, 3, 2, 1], 7),)


@task.mistake("It is the other way round: True should mean *may see*, and you mark the pairs of different images.")
def hidden(segments):
    return ~reference(segments)


@task.mistake(
    "Empty places see nobody, so their softmax is 0 / 0; NaN then reaches everybody through the next sum over all "
    "places."
)
def empty_see_nobody(segments):
    return reference(segments) & (segments >= 0)[:, :, None]


@task.mistake("All rows get the mask of the first; each row holds other images: keep the axis of the rows.")
def first_row_for_all(segments):
    return reference(segments[:1]).expand(len(segments), -1, -1)


@task.mistake("No place sees what comes later: that is the causal mask. Patches of one image all see each other.")
def causal_too(segments):
    return reference(segments).tril()


@task.mistake("You only ask whether a place is empty: the images of a row see each other, and their answers mix.")
def not_empty(segments):
    there = segments >= 0
    return there[:, :, None] == there[:, None, :]


@task.mistake("This is the other form of a mask, 0 and -∞ to be added to the scores; expected here is True and False.")
def to_be_added(segments):
    return packing.block_diagonal_bias(segments, torch.float32)[:, 0]
