"""Heads that look one way: what they see, what they pay, and that a larger image changes neither."""

from __future__ import annotations

import pytest
import torch

from labkit.errors import LabkitError
from labkit.positions.lookhere import LookHere, fov_union, lookhere_bias, lookhere_layers
from labkit.vit import Attention
from tests import checks
from tests.positions.schemes import crop, depends_on_displacement
from tests.weights import normal, randomized

EIGHT, SLOPES = tuple(range(0, 360, 45)), tuple(i / 8 for i in range(8))
COMPASS = {"→": 0, "↗": 45, "↑": 90, "↖": 135, "←": 180, "↙": 225, "↓": 270, "↘": 315}


def bias(grid, fov=45, prefix=0, directions=EIGHT, slopes=SLOPES):
    return lookhere_bias(grid, directions, fov, slopes, prefix)


@pytest.mark.paper("S227")
def test_a_picture_of_what_the_middle_of_a_3_by_3_grid_sees():
    def sees(direction, fov):
        return lookhere_bias((3, 3), [direction], fov, [1.0])[0, 4].isfinite().reshape(3, 3).int().tolist()

    middle = {name: sees(angle, 45) for name, angle in COMPASS.items()}
    assert middle["→"] == [[0, 0, 0], [0, 1, 1], [0, 0, 0]]
    assert middle["↗"] == [[0, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert middle["↑"] == [[0, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert middle["↙"] == [[0, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert sees(0, 180) == [[0, 1, 1], [0, 1, 1], [0, 1, 1]], "the edge of the view belongs to it"


@pytest.mark.paper("S227")
def test_the_bias_depends_only_on_the_displacement():
    assert depends_on_displacement(bias((5, 7)), (5, 7))


@pytest.mark.paper("S227")
def test_a_small_grid_is_any_crop_of_a_large_one():
    large, small = bias((9, 8)), bias((4, 5))
    for corner in ((0, 0), (2, 1), (5, 3)):
        checks.equal(crop(large, (9, 8), (4, 5), corner), small, what="a crop of the large bias and the small one")


@pytest.mark.paper("S227")
@pytest.mark.parametrize("fov", [45, 90, 180])
def test_opposite_heads_are_transposes(fov):
    equal_slopes = bias((4, 5), fov, slopes=(0.25,) * 8)
    for head in range(4):
        checks.equal(equal_slopes[head], equal_slopes[head + 4].T, what=f"heads {head} and {head + 4}")


@pytest.mark.paper("S227")
def test_eight_directions_of_45_degrees_tile_the_circle():
    seen = (bias((9, 9)) > -torch.inf).sum(dim=0)
    itself = torch.eye(81, dtype=torch.bool)
    assert (seen[~itself] == 1).all(), "every other patch is in the view of exactly one head"
    assert (seen[itself] == 8).all()
    assert fov_union(bias((9, 9))).all() and not fov_union(bias((9, 9))[:7]).all()


@pytest.mark.paper("S227")
def test_masked_keys_get_no_attention_and_the_class_token_is_free():
    attn = randomized(Attention(32, 8))
    attn.position = LookHere(8)
    scores = attn.position.bias((4, 5))
    evidence = attn.attend(normal(2, 21, 32), grid=(4, 5), prefix=1)[1]
    attention = evidence.attention()
    checks.equal(bias((4, 5), prefix=1)[:, 1:, 1:], bias((4, 5)))
    assert (bias((4, 5), prefix=1)[:, 0] == 0).all() and (bias((4, 5), prefix=1)[:, :, 0] == 0).all()
    assert (attention[:, :, 1:, 1:][:, scores == -torch.inf] == 0).all()
    assert (attention[:, :, 0] > 0).all() and (attention[:, :, :, 0] > 0).all()
    checks.rows_sum_to_one(attention, 1e-12)


@pytest.mark.paper("S227")
def test_looking_everywhere_for_nothing_is_plain_attention():
    everywhere = bias((4, 5), fov=360, slopes=(0.0,) * 8)
    assert (everywhere == 0).all()
    attn, plain = randomized(Attention(32, 8)), randomized(Attention(32, 8))
    attn.position = LookHere(8)
    attn.position.fov, attn.position.slopes = 360, [0.0] * 8
    checks.exact_limit(lambda x: attn(x, (4, 5)), plain, normal(2, 20, 32), tol=1e-12)


def test_distance_costs_the_slope():
    undirected = lookhere_bias((4, 5), [None], 90, [0.5])[0]
    assert undirected[0, 3 * 5 + 4] == -2.5 and undirected.isfinite().all()


def test_twelve_heads_are_the_papers_eight_directed_and_four_free_ones():
    twelve = LookHere(12)
    assert twelve.directions == [*EIGHT, None, None, None, None] and twelve.fov == 45
    assert twelve.slopes == [0.5] * 8 + [1 / 4, 1 / 16, 1 / 64, 1 / 256]
    assert LookHere(6).directions == [0, 90, 180, 270, None, None] and LookHere(6).fov == 90
    assert LookHere(16).slopes == [0.5] * 8 + [0.25] * 8
    first, *_, last = lookhere_layers(12, depth=5)
    assert (first.slopes[0], last.slopes[0]) == (0.75, 0.25)


def test_what_does_not_fit_is_a_sentence():
    with pytest.raises(LabkitError, match="3 heads cannot look in all directions"):
        LookHere(3)
    with pytest.raises(LabkitError, match="choose 0 < fov <= 360"):
        bias((2, 2), fov=0)
    with pytest.raises(LabkitError, match="made for 8 heads and the attention has 2"):
        bias((2, 2), slopes=(0.1, 0.2))
