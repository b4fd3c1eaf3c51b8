"""Attention written out is attention; replacing it keeps the weights and leaves the old model alone."""

from __future__ import annotations

import pytest
import torch

from labkit.errors import LabkitError
from labkit.positions.alibi import ALiBi
from labkit.positions.gaussian import GaussianAttention
from labkit.positions.mixer import OpenAttention, replace_attention
from labkit.vit import Attention, ViT
from tests import checks
from tests.weights import normal, randomized


@pytest.mark.parametrize("rows", [None, 1])
def test_left_unchanged_it_is_the_plain_attention_bit_for_bit(rows):
    plain, ours = randomized(Attention(16, 4, impl="plain")), randomized(OpenAttention(16, 4))
    plain.position = ours.position = ALiBi(4)
    x, bias = normal(2, 13, 16), normal(2, 1, 13, 13)
    (a, theirs), (b, own) = (attn.attend(x, bias, rows, (3, 4), 1) for attn in (plain, ours))
    checks.equal((b, own.attn, own.bias), (a, theirs.attn, theirs.bias), what="written out twice")


def test_replacing_keeps_weights_norms_and_positions_in_a_copy():
    model = randomized(ViT(32, 8, 5, 16, 2, 4, position=ALiBi(4)))
    model.blocks[0].attn.q_norm = randomized(torch.nn.LayerNorm(4))
    new = replace_attention(model, OpenAttention)
    assert {type(block.attn) for block in new.blocks} == {OpenAttention}
    assert {type(block.attn) for block in model.blocks} == {Attention}
    checks.exact_limit(new, model, normal(2, 3, 32, 32), tol=1e-12)
    new.blocks[0].attn.qkv.weight.data.zero_()
    assert model.blocks[0].attn.qkv.weight.abs().sum() > 0
    assert {p.dtype for p in replace_attention(model, GaussianAttention).parameters()} == {torch.float64}


def test_a_mixer_that_is_no_attention_is_refused():
    model = ViT(32, 8, 5, 16, 2, 4)
    model.blocks[1].attn = torch.nn.Identity()
    with pytest.raises(LabkitError, match="Block 1 mixes with Identity; only an Attention can be replaced"):
        replace_attention(model, OpenAttention)
