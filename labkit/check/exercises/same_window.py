"""Windows as a matrix: which pairs of tokens are left when attention stays inside tiles of the grid."""

from __future__ import annotations

import torch

from labkit.attention import dense, windows
from labkit.check.exercise import Exercise


def reference(h, w, size):
    return dense.among(windows.regions((h, w), size))


task = Exercise(
    lesson="06_cheaper_attention",
    reference=reference,
    source="labkit.attention.windows.regions",
    axes=("query", "key"),
    hints=(
        "The window of the token in row r and column c is (r // size, c // size).",
        "Give each window one number, and compare all tokens' numbers with `numbers[:, None] == numbers[None]`.",
    ),
    praise="With this as a mask, plain attention is window attention, at the full price.",
)


@task.stub
def same_window(h, w, size):
    """Write `same_window(h, w, size)`: an (h w, h w) boolean matrix, True where two tokens lie in the same window of
    size × size. Tokens are counted row by row; where the grid does not divide, the last windows are smaller.
    """
    return torch.zeros(h * w, h * w, dtype=torch.bool)


@task.cases
def cases(dice):
    yield from ((2, 4, 2), (4, 2, 2), (4, 8, 2), (6, 9, 3), (5, 4, 3), (3, 3, 3), (16, 4, 2))


def places(h, w):
    token = torch.arange(h * w)
    return token // w, token % w


def equal(numbers):
    return numbers[:, None] == numbers[None]


@task.mistake(
    "You count off size² tokens in reading order; those lie in one row. A window is `size` columns wide and `size` "
    "rows high: look at row and column apart."
)
def runs_of_tokens(h, w, size):
    return equal(torch.arange(h * w) // size**2)


@task.mistake(
    "Whole bands of rows share a window: you compare the row of the window only. Two tokens also need the same "
    "column of windows."
)
def bands(h, w, size):
    return equal(places(h, w)[0] // size)


@task.mistake(
    "Different windows get the same number: r // size + c // size is 1 for the window on the right and for the one "
    "below. Multiply the first part by the number of windows in a row."
)
def colliding_numbers(h, w, size):
    row, column = places(h, w)
    return equal(row // size + column // size)


@task.mistake(
    "This is a neighbourhood: each token has a window around itself. Windows tile the grid, and two tokens beside a "
    "border do not meet."
)
def neighbourhood(h, w, size):
    row, column = places(h, w)
    return ((row[:, None] - row).abs() < size) & ((column[:, None] - column).abs() < size)


@task.mistake(
    "Rows and columns are exchanged: tokens are counted row by row, so the row is the number // w, and the column "
    "the number % w. It shows on grids that are not square."
)
def divided_by_h(h, w, size):
    token = torch.arange(h * w)
    return equal(token // h // size * h * w + token % h // size)


@task.mistake(
    "You divide the grid into size × size windows; asked are windows that are `size` tokens wide and high, however "
    "many of them there are."
)
def size_windows(h, w, size):
    row, column = places(h, w)
    return equal(row * size // h * size + column * size // w)
