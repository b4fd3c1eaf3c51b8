"""A convolution is a matrix too: one whose weights know only the step between two tokens."""

from __future__ import annotations

import torch

from labkit.attention import grid
from labkit.check.exercise import Exercise, normal


def reference(kernel, h, w):
    one_by_one = torch.eye(h * w)[..., None]  # as many pictures as tokens, one token lit in each
    return grid.depthwise(one_by_one, kernel[None, None], (h, w))[..., 0].T


task = Exercise(
    lesson="06_cheaper_attention",
    reference=reference,
    source="labkit.attention.grid.depthwise",
    axes=("query", "key"),
    hints=(
        "The query at (r, c) reads the key at (r + i - k // 2, c + j - k // 2) with the weight `kernel[i, j]`.",
        "Four loops are fine: over r, c, i, j. Leave out keys outside the grid; token (r, c) has the number r w + c.",
    ),
    praise="k² numbers fill the whole matrix; attention computes every entry anew for each image.",
)


@task.stub
def convolution_matrix(kernel, h, w):
    """Write `convolution_matrix(kernel, h, w)`: the (h w, h w) matrix by which a k × k convolution (k is odd) mixes the
    tokens of an h × w grid, counted row by row. The middle of the kernel lies on the query, as in torch the kernel is
    not turned round, and what lies outside the grid counts as zero.
    """
    return torch.zeros(h * w, h * w)


@task.cases
def cases(dice):
    for k, h, w in ((3, 2, 2), (3, 3, 4), (3, 4, 3), (5, 5, 6), (1, 2, 3)):
        yield normal(dice, k, k), h, w


def fill(kernel, h, w, wraps=False, number=lambda r, c, h, w: r * w + c):
    matrix = torch.zeros(h * w, h * w)
    k = len(kernel)
    for r in range(h):
        for c in range(w):
            for i in range(k):
                for j in range(k):
                    y, x = r + i - k // 2, c + j - k // 2
                    if wraps or (0 <= y < h and 0 <= x < w):
                        matrix[number(r, c, h, w), number(y % h, x % w, h, w)] += kernel[i, j]
    return matrix


@task.mistake(
    "The kernel is turned round (or the matrix transposed, which is the same here). Row i holds what query i reads, "
    "and kernel[0, 0] is for its neighbour above on the left."
)
def turned_round(kernel, h, w):
    return fill(kernel.flip(0, 1), h, w)


@task.mistake(
    "Your matrix wraps around: tokens at the right border read the left border, or the bottom the top. What lies "
    "outside the grid counts as zero."
)
def wrapped(kernel, h, w):
    return fill(kernel, h, w, wraps=True)


@task.mistake(
    "The row's end is not seen: the neighbour of the last token in a row is the first of the next row in the count, "
    "but not on the grid. Test the column too."
)
def ends_of_rows(kernel, h, w):
    matrix, k = torch.zeros(h * w, h * w), len(kernel)
    for token in range(h * w):
        for i in range(k):
            for j in range(k):
                key = token + (i - k // 2) * w + j - k // 2
                if 0 <= key < h * w:
                    matrix[token, key] += kernel[i, j]
    return matrix


@task.mistake(
    "Rows and columns of the kernel are exchanged: i steps down, j to the right. A kernel that is its own mirror "
    "image would hide it."
)
def transposed_kernel(kernel, h, w):
    return fill(kernel.T, h, w)


@task.mistake(
    "You counted the tokens column by column. The token in row r and column c has the number r w + c: look at a grid "
    "that is not square."
)
def column_by_column(kernel, h, w):
    return fill(kernel, h, w, number=lambda r, c, h, w: c * h + r)


@task.mistake(
    "The corner of the kernel lies on the query, not its middle: every token reads only what is right of it and "
    "below. Subtract k // 2 from both steps."
)
def corner_on_the_query(kernel, h, w):
    k = len(kernel)
    larger = torch.zeros(2 * k - 1, 2 * k - 1)
    larger[k - 1 :, k - 1 :] = kernel
    return fill(larger, h, w)
