"""Biases of displacements: Swin's table and Swin V2's network, as timm computes them, and what a larger grid gets."""

from __future__ import annotations

import pytest
import torch
from timm.layers import RelPosBias, RelPosMlp
from timm.layers.pos_embed_rel import gen_relative_position_index

from labkit.errors import LabkitError
from labkit.positions.grid import displacement_index
from labkit.positions.relative import ContinuousBias, RelativeBias
from tests import checks
from tests.positions.schemes import crop, depends_on_displacement
from tests.weights import normal, randomized

GRID, HEADS = (3, 5), 2


def test_the_table_and_its_index_are_timms():
    checks.equal(displacement_index(GRID), gen_relative_position_index(GRID))
    ours, theirs = randomized(RelativeBias(GRID, HEADS)), RelPosBias(GRID, HEADS).double()
    theirs.load_state_dict(ours.state_dict())
    checks.equal(ours.bias(GRID), theirs.get_bias()[0])


@pytest.mark.parametrize("grid", [GRID, (6, 7)])
def test_the_network_is_timms_less_a_constant(grid):
    """timm adds 16 sigmoid; ours is 8 lower at every pair of patches, which no softmax over patches sees."""
    ours = randomized(ContinuousBias(GRID, HEADS, hidden=8), 1.0).float()
    theirs = RelPosMlp(grid, HEADS, 8, mode="swin", pretrained_window_size=GRID).eval()
    theirs.load_state_dict(ours.state_dict())
    bias = ours.bias(grid)
    checks.equal(bias + 8, theirs.get_bias()[0], 1e-5, "our bias + 8 and timm's")
    checks.equal(bias.softmax(dim=-1), theirs.get_bias()[0].softmax(dim=-1), 1e-5, "after the softmax")
    assert bias.std() > 0.3


def test_an_untrained_network_leaves_the_class_token_its_share():
    bias = ContinuousBias(GRID, HEADS)
    torch.nn.init.zeros_(bias.mlp.fc2.weight)
    checks.equal(bias.bias(GRID), torch.zeros(HEADS, 15, 15))


@pytest.mark.parametrize("make", [RelativeBias, ContinuousBias])
def test_biases_depend_on_the_displacement_and_not_on_its_length_alone(make):
    bias = randomized(make(GRID, HEADS), 1.0).bias(GRID)
    assert depends_on_displacement(bias, GRID, 1e-12)
    assert not torch.allclose(bias, bias.transpose(-2, -1), atol=0.01)


@pytest.mark.parametrize("make", [RelativeBias, ContinuousBias])
def test_a_smaller_grid_is_a_crop(make):
    position = randomized(make(GRID, HEADS), 1.0)
    for corner in ((0, 0), (1, 2)):
        cropped = crop(position.bias(GRID), GRID, (2, 3), corner)
        checks.equal(position.bias((2, 3)), cropped, 1e-12, "a smaller grid's bias and a crop")


def test_a_larger_grid_is_a_sentence_for_the_table_and_smooth_for_the_network():
    with pytest.raises(LabkitError, match="made for a grid of 3x5 knows none of the longer ones on 3x6"):
        RelativeBias(GRID, HEADS).bias((3, 6))
    position = randomized(ContinuousBias(GRID, HEADS, hidden=8))
    large = position.bias((6, 10))
    checks.equal(crop(large, (6, 10), GRID, (0, 0)), position.bias(GRID), 1e-12, "what the training grid had")
    assert large.isfinite().all() and depends_on_displacement(large, (6, 10), 1e-12)


def test_tokens_before_the_patches_and_the_bias_that_was_there():
    position, (q, k) = randomized(RelativeBias(GRID, HEADS)), normal(2, 2, HEADS, 17, 4)
    before = normal(2, 1, 1, 17)
    added = position(q, k, before, GRID, 2)[2] - before
    checks.equal(added[..., 2:, 2:], position.bias(GRID).expand(2, -1, -1, -1), 1e-12)
    checks.equal(added[..., :2, :], torch.zeros(2, HEADS, 2, 17), 1e-12)
    checks.equal(added[..., :, :2], torch.zeros(2, HEADS, 17, 2), 1e-12)
    checks.equal(position(q[:, :, :3], k, before, GRID, 2)[2], (added + before)[..., :3, :], 1e-12, "the first rows")
