"""Strips: every value in its place and colour, tokens that keep theirs, and all of it fast."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from labkit.errors import LabkitError
from labkit.viz import strips
from labkit.viz.colour import colours

DRAW = torch.Generator().manual_seed(0)
IMAGE = torch.rand(3, 64, 64, generator=DRAW)
BLACK, WHITE = torch.zeros(3, 64, 64), torch.ones(1, 64, 64)


def middle(strip, panel: int, cell: tuple[int, int], grid: tuple[int, int], count: int) -> np.ndarray:
    """The pixel in the middle of a cell of a panel in the first row."""
    ((left, top, w, h), *_) = list(strips.panels(count, (64, 64, 3))[1])[panel:]
    x, y = left + (cell[1] + 0.5) * w / grid[1], top + (cell[0] + 0.5) * h / grid[0]
    return np.asarray(strip)[round(y), round(x)].astype(int)


# --- heat through the layers ----------------------------------------------------------------------------------------
def test_the_strongest_cell_of_all_layers_has_the_last_colour_and_only_it():
    maps = torch.zeros(3, 4, 4)
    maps[1, 2, 3], maps[2, 0, 0] = 0.8, 0.4
    strip = strips.overlay_strip(BLACK, maps)
    shown = {0.8: (2, (2, 3)), 0.4: (3, (0, 0)), 0.0: (1, (1, 1))}
    for value, (panel, cell) in shown.items():
        expected = 0.7 * colours(np.array(value), 0, 0.8)
        assert np.abs(middle(strip, panel, cell, (4, 4), 4) - expected).max() <= 2


def test_the_image_comes_first_as_it_is_and_then_in_grey():
    red = torch.zeros(3, 64, 64)
    red[0] = 1
    strip = strips.overlay_strip(red, torch.zeros(1, 2, 2))
    assert list(middle(strip, 0, (0, 0), (2, 2), 2)) == [255, 0, 0]
    below = 0.3 * 0.299 * 255 + 0.7 * colours(np.array(0.0), 0, 1)
    assert np.abs(middle(strip, 1, (0, 0), (2, 2), 2) - below).max() <= 2


# --- tokens through depth -------------------------------------------------------------------------------------------
def test_dropped_patches_are_dark_kept_ones_as_they_were_and_merged_ones_in_one_colour():
    labels = np.array([[0, 1, 2, 3], [0, 1, 1, -1]])
    strip = strips.film_strip(WHITE, labels, (2, 2))
    cells = [(0, 0), (0, 1), (1, 0), (1, 1)]
    before, after = ([middle(strip, panel, cell, (2, 2), 2) for cell in cells] for panel in (0, 1))
    assert all((pixel == 255).all() for pixel in before)
    assert (after[0] == 255).all() and after[3].max() < 50
    tinted = 255 * (0.25 + 0.75 * np.array(strips.tint(1)))
    assert np.abs(after[1] - tinted).max() <= 1 and (after[1] == after[2]).all()


def test_neighbouring_tokens_do_not_look_alike():
    tints = np.array([strips.tint(label) for label in range(196)])
    for step in range(1, 4):
        assert np.abs(tints[step:] - tints[:-step]).max(axis=1).min() > 0.1


# --- every head -----------------------------------------------------------------------------------------------------
def test_every_head_is_where_its_labels_say():
    attn = torch.zeros(2, 3, 6)
    attn[1, 2, 4] = 1  # row 1, column 1 of 2 x 3 patches
    strip = np.asarray(strips.head_montage(attn, (2, 3))).astype(int)
    rows, columns = np.nonzero((strip == colours(np.array(1.0), 0, 1)).all(axis=-1))
    inside = rows < 22 + 2 * (56 + 3)  # the colour bar is below
    top, left = 22 + 56 + 3, 66 + 2 * (84 + 3)
    assert abs(rows[inside].min() - (top + 28)) <= 1 and abs(rows[inside].max() - (top + 55)) <= 1
    assert abs(columns[inside].min() - (left + 28)) <= 1 and abs(columns[inside].max() - (left + 55)) <= 1


def test_twelve_by_twelve_heads_are_painted_in_a_tenth_of_a_second():
    attn = torch.rand(12, 12, 196, generator=DRAW).softmax(-1)
    seconds = []
    for _ in range(5):
        start = time.process_time()
        strips.head_montage(attn, (14, 14))
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.1


# --- all ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "strip",
    [
        strips.overlay_strip(IMAGE, torch.rand(1, 4, 4, generator=DRAW)),
        strips.film_strip(IMAGE, [[0, 1, 2, 3]], (2, 2)),
        strips.head_montage(torch.rand(1, 1, 4, generator=DRAW), (2, 2)),
    ],
    ids=["overlay", "film", "heads"],
)
def test_nothing_empty_is_left_on_the_right(strip):
    assert strip.width < 880 and np.asarray(strip)[:, -1].min() < 255


@pytest.mark.parametrize(
    "draw, sentence",
    [
        (lambda: strips.overlay_strip(IMAGE, torch.zeros(4, 4)), r"\(layers, gh, gw\); these have \(4, 4\)"),
        (lambda: strips.overlay_strip(IMAGE, torch.zeros(2, 4, 4), ["one"]), "1 titles for 2 maps"),
        (lambda: strips.overlay_strip(IMAGE + 1, torch.zeros(2, 4, 4)), "normalisation"),
        (lambda: strips.overlay_strip(IMAGE[0], torch.zeros(2, 4, 4)), r"\(3, h, w\)"),
        (lambda: strips.film_strip(IMAGE, [[0, 1, 2]], (2, 2)), "a label for each"),
        (lambda: strips.head_montage(torch.zeros(2, 3, 5), (2, 2)), "class token"),
        (lambda: strips.head_montage(torch.full((1, 1, 4), torch.nan), (2, 2)), "finite"),
    ],
)
def test_what_cannot_be_painted_is_a_sentence(draw, sentence):
    with pytest.raises(LabkitError, match=sentence):
        draw()
