"""No bias inside a softmax tells a place; gains after it do, and gains of one are the attention they repair."""

from __future__ import annotations

import pytest
import torch

from labkit.errors import LabkitError
from labkit.positions.alibi import ALiBi
from labkit.positions.lookhere import LookHere
from labkit.positions.mixer import replace_attention
from labkit.positions.relative import ContinuousBias, RelativeBias
from labkit.positions.urpe import URPEAttention
from tests import checks
from tests.positions.schemes import DIM, GRID, HEADS, depends_on_displacement, per_block, vit
from tests.weights import normal, randomized

BIASES = {
    "ALiBi": lambda: ALiBi(HEADS),
    "table": lambda: RelativeBias(GRID, HEADS),
    "network": lambda: ContinuousBias(GRID, HEADS, 8),
    "LookHere": lambda: LookHere(HEADS),
}
SAME = normal(2, 1, DIM).expand(2, 16, DIM)  # the same token at every place of the grid


def stack(bias):
    return randomized(vit(per_block(BIASES[bias]), pool="avg"), 1.0).set_impl("plain")


def after_the_blocks(model, x):
    return list(model.steps(x, GRID))[-1].x


def repaired(model, std=0.0):
    model = replace_attention(model, lambda dim, heads: URPEAttention(dim, heads, GRID))
    for block in model.blocks:
        block.attn.gains.data += std * torch.randn(block.attn.gains.shape, generator=torch.Generator().manual_seed(0))
    return model


@pytest.mark.paper("S101")
@pytest.mark.parametrize("bias", BIASES)
def test_equal_tokens_stay_equal_under_every_relative_bias(bias):
    out = after_the_blocks(stack(bias), SAME)
    checks.equal(out, out[:, :1].expand_as(out), 1e-11, "the tokens of all places and the first")
    assert not torch.allclose(out, SAME)


@pytest.mark.paper("S101")
@pytest.mark.parametrize("bias", BIASES)
def test_gains_after_the_softmax_tell_the_places_apart(bias):
    out = after_the_blocks(repaired(stack(bias), std=0.3), SAME)[0]
    assert torch.pdist(out).min() > 1e-2, "no two of the 16 places have the same token"


@pytest.mark.paper("S101")
@pytest.mark.parametrize("bias", BIASES)
def test_gains_of_one_are_the_attention_they_repair_bit_for_bit(bias):
    model, x = stack(bias), normal(2, 16, DIM)
    checks.equal(after_the_blocks(repaired(model), x), after_the_blocks(model, x), what="gains of one and no gains")


@pytest.mark.paper("S101")
def test_gains_are_constant_along_each_displacement_and_spare_the_class_token():
    attn = randomized(URPEAttention(DIM, HEADS, GRID))
    gain = attn.gain(GRID)
    assert depends_on_displacement(gain, GRID) and gain.unique().numel() == HEADS * 7 * 7
    x = normal(2, 17, DIM)
    v = attn.project(x)[2]
    probabilities = attn.attend(x, grid=GRID, prefix=1)[1].attn
    mixed = attn.mix(probabilities, v, GRID, 1)
    checks.equal(mixed[:, :, 0], (probabilities @ v)[:, :, 0], 1e-12, "what the class token mixes")
    by_hand = probabilities.clone()
    by_hand[:, :, 1:, 1:] *= gain
    checks.equal(mixed, by_hand @ v, 1e-12, "what all tokens mix")
    checks.rows_sum_to_one(probabilities)


def test_a_larger_grid_is_a_sentence():
    with pytest.raises(LabkitError, match="made for a grid of 4x4 knows none of the longer ones on 4x5"):
        URPEAttention(DIM, HEADS, GRID)(torch.zeros(1, 20, DIM), (4, 5))
