"""Which mixer has the fewest pairs depends on the grid: three laws, compared."""

from __future__ import annotations

from labkit.attention import axial, dense, windows
from labkit.check.exercise import Exercise

WIDTH = 4


def reference(h, w, s):
    """The package's own laws; the projections, which all three pay alike, do not matter."""
    plain = dense.MultiHead(WIDTH, 1).cost((h, w)).macs
    window = windows.WindowAttention(WIDTH, 1, window=(min(s, h), min(s, w))).cost((h, w)).macs
    costs = {"plain": plain, "axial": axial.axial_cost((h, w), WIDTH, 1).macs, "window": window}
    return min(costs, key=lambda name: costs[name])


task = Exercise(
    lesson="06_cheaper_attention",
    reference=reference,
    source="labkit.attention.windows.WindowAttention.cost and its neighbours",
    hints=(
        "n = h w. Divide all three by 2 n d.",
        "Compare h w, h + w and s²; a window is never larger than the grid.",
    ),
    praise="Which is cheaper is a matter of the grid. Which is better, the law does not say.",
)


@task.stub
def cheapest_mixer(h, w, s):
    """Write `cheapest_mixer(h, w, s)`. On an h × w grid of n tokens, plain attention pays 2 n² d for its pairs, axial
    attention (rows, then columns) 2 n (h + w) d, and windows of s × s pay 2 n s² d, where a window that is larger than
    the grid ends at its border. Return "plain", "axial" or "window": the cheapest, and where two are equal the one that
    is named first here.
    """
    return ""


@task.cases
def cases(dice):
    yield from (
        (2, 2, 2),
        (1, 2, 4),
        (1, 9, 3),
        (2, 12, 4),
        (8, 8, 4),
        (14, 14, 7),
        (28, 28, 7),
        (4, 32, 8),
        (64, 2, 2),
    )


def cheapest(plain, axial, window):
    costs = {"plain": plain, "axial": axial, "window": window}
    return min(costs, key=lambda name: costs[name])


@task.mistake(
    "A window cannot be larger than the grid. Look at a grid of one row: of the s rows of a window only one has "
    "tokens to meet."
)
def window_beyond_the_grid(h, w, s):
    return cheapest(h * w, h + w, s * s)


@task.mistake(
    "Where two are equal you return the later one; asked is the earlier. `min` over a dictionary keeps the first, <= "
    "in a chain of ifs keeps the last."
)
def later_of_equals(h, w, s):
    costs = {"window": min(s, h) * min(s, w), "axial": h + w, "plain": h * w}
    return min(costs, key=lambda name: costs[name])


@task.mistake(
    "You forgot that windows pay for each of the n tokens: s² is what one token pays, beside h w for plain and h + w "
    "for axial attention."
)
def one_token_for_all(h, w, s):
    return cheapest(h * w * h * w, h * w * (h + w), min(s, h) * min(s, w))


@task.mistake("A window has s² cells, not s: it is s wide and s high.")
def side_for_area(h, w, s):
    return cheapest(h * w, h + w, s)


@task.mistake("Axial attention attends twice, along the row and along the column: h + w, not the longer of the two.")
def longer_side(h, w, s):
    return cheapest(h * w, max(h, w), min(s, h) * min(s, w))


@task.mistake("You return the dearest of the three; asked is the cheapest.")
def dearest(h, w, s):
    costs = {"plain": h * w, "axial": h + w, "window": min(s, h) * min(s, w)}
    return max(costs, key=lambda name: costs[name])
