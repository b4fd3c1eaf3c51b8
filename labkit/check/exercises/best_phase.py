"""Where the grid should begin: at the phase that holds the most, so that a shift of the image moves it along."""

from __future__ import annotations

import torch

from labkit.check.exercise import Exercise, normal, uniform
from labkit.patching import polyphase


def reference(picture, p):
    row, column = polyphase.polyphase_anchor(picture[None], p)[1][0].tolist()
    return row, column


task = Exercise(
    lesson="02_images_to_tokens",
    reference=reference,
    source="labkit.patching.polyphase.polyphase_anchor",
    parts=("row", "column"),
    hints=(
        "The pixels of phase (i, j) are `picture[:, i::p, j::p]`.",
        "Loop over i and j, and take the largest of the norms with `max` and a key.",
    ),
    praise="The package chooses the same.",
)


@task.stub
def best_phase(picture, p):
    """Write `best_phase(picture, p)`: for a picture (c, h, w), the (row, column) in 0 … p - 1 at which the pixels
    that lie p apart, over all channels, have the largest norm together.
    """
    return -1, -1


@task.cases
def cases(dice):
    yield normal(dice, 1, 4, 4), 2
    for c, h, w, p, row, column in ((3, 8, 12, 4, 1, 3), (2, 15, 10, 5, 4, 0), (3, 9, 6, 3, 0, 2)):
        picture = normal(dice, c, h, w)
        picture[:, row::p, column::p] *= 2  # a phase with much in it, above and below zero
        picture[0, 2, 1] = 3.5  # the brightest pixel lies elsewhere
        yield picture, p
    picture = 1 + 0.1 * uniform(dice, 2, 8, 12)
    picture[0, 4:, 8:] += 0.5  # a bright patch, of no phase in particular
    picture[:, 1::4, 2::4] += 0.2
    yield picture, 4
    picture = torch.zeros(1, 4, 4)
    picture[0, 0, 1], picture[0, 1::2, ::2] = 10.0, 4.0  # 10 against four times 4: norms of 10 and 8, sums of 10 and 16
    yield picture, 2


def best(picture, p, score):
    phases = [(i, j) for i in range(p) for j in range(p)]
    return max(phases, key=lambda at: float(score(picture[:, at[0] :: p, at[1] :: p].double())))


@task.mistake("The column comes first in yours; expected is (row, column), as in `picture[:, row, column]`.")
def column_first(picture, p):
    return reference(picture, p)[::-1]


@task.mistake("You compare sums: bright and dark pixels cancel. A norm squares them first.")
def by_sum(picture, p):
    return best(picture, p, lambda pixels: pixels.sum())


@task.mistake(
    "You look for the single brightest pixel; a phase is all pixels that lie p apart, and their norm decides."
)
def by_maximum(picture, p):
    return best(picture, p, lambda pixels: pixels.abs().max())


@task.mistake("Only the first channel is asked: a norm over all channels sees what one of them may lack.")
def one_channel(picture, p):
    return reference(picture[:1], p)


@task.mistake(
    "You look for the best *patch*, a block of p × p neighbours; a phase is every p-th pixel of the whole picture, "
    "`[:, i::p, j::p]`."
)
def best_patch(picture, p):
    h, w = picture.shape[1] // p, picture.shape[2] // p
    places = [(i, j) for i in range(h) for j in range(w)]
    return max(places, key=lambda at: float(picture[:, at[0] * p :, at[1] * p :][:, :p, :p].norm()))


@task.mistake(
    "`[:, i:p, j:p]` is a corner of the picture; with a second colon p is the step: `[:, i::p, j::p]`, every p-th "
    "pixel."
)
def no_step(picture, p):
    phases = [(i, j) for i in range(p) for j in range(p)]
    return max(phases, key=lambda at: float(picture[:, at[0] : p, at[1] : p].norm()))


@task.mistake(
    "You add up absolute values; a norm adds up squares, so that a few strong pixels outweigh many weak ones."
)
def by_absolute_values(picture, p):
    return best(picture, p, lambda pixels: pixels.abs().sum())
