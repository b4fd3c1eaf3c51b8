"""Idle channels: a plain MLP at one end, one linear layer at the other, and the same function once folded."""

from __future__ import annotations

import pytest
import torch
from timm.layers import Mlp
from torch import nn

from labkit.compress.fold import fold_layer_scale
from labkit.compress.idle import ChannelIdleFFN, FoldedFFN, fold_idle
from labkit.compress.rmsnorm import to_pre_rmsnorm
from labkit.errors import LabkitError
from labkit.vit import ViT
from tests import checks
from tests.weights import normal, randomized

DIM, HIDDEN = 32, 128
X = normal(2, 5, DIM)


def idle_vit(ratio: float = 0.75, **options) -> ViT:
    vit = ViT(16, 8, 5, DIM, 2, 2, **options)
    for block in vit.blocks:
        block.mlp = ChannelIdleFFN(DIM, HIDDEN, ratio)
    return randomized(vit)


@pytest.mark.paper("S311")
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.75, 1.0])
def test_folded_it_is_the_same_function(ratio):
    ffn = randomized(ChannelIdleFFN(DIM, HIDDEN, ratio))
    checks.exact_limit(ffn.reparameterize(), ffn, X, tol=1e-12)
    checks.equal_gradients(ffn.reparameterize(), ffn, X, tol=1e-12)
    assert not ffn.reparameterize().training and ffn.train().reparameterize().training


@pytest.mark.paper("S311")
def test_with_no_idle_channel_it_is_the_mlp_of_timm():
    ffn = randomized(ChannelIdleFFN(DIM, HIDDEN, 0.0))
    plain = Mlp(DIM, HIDDEN).double()
    plain.load_state_dict(ffn.state_dict())
    checks.exact_limit(ffn, plain, X, tol=1e-12)


@pytest.mark.paper("S311")
def test_with_no_active_channel_it_is_a_single_linear_layer():
    ffn = randomized(ChannelIdleFFN(DIM, HIDDEN, 1.0))
    folded = ffn.reparameterize()
    assert [type(layer) for layer in folded.modules() if not list(layer.children())] == [nn.Linear]
    checks.exact_limit(nn.Sequential(ffn.fc1, ffn.fc2), ffn, X, tol=1e-12)
    checks.exact_limit(folded.direct, ffn, X, tol=1e-12)


@pytest.mark.paper("S311")
@pytest.mark.parametrize(("ratio", "macs"), [(0.0, 9216), (0.125, 8192), (0.5, 5120), (0.75, 3072), (1.0, 1024)])
def test_its_cost_for_each_token(ratio, macs):
    ffn, token = ChannelIdleFFN(DIM, HIDDEN, ratio), torch.zeros(1, 1, DIM)
    assert macs == DIM**2 + 2 * DIM * HIDDEN * (1 - ratio)
    checks.cost_law(2 * DIM * HIDDEN, ffn, token)
    checks.cost_law(macs, ffn.reparameterize(), token)


@pytest.mark.paper("S311")
def test_a_whole_model_folds_with_the_gain_and_shift_of_its_norms():
    vit, images = idle_vit(), normal(2, 3, 16, 16)
    folded = fold_idle(vit)
    checks.exact_limit(folded, vit, images, tol=1e-12)
    for plain, block in zip(vit.blocks, folded.blocks, strict=True):
        assert isinstance(plain.mlp, ChannelIdleFFN) and plain.norm2.weight is not None
        assert isinstance(block.mlp, FoldedFFN) and not list(block.norm2.parameters())


def test_the_foldings_go_together():
    vit, images = idle_vit(layer_scale=0.1), normal(2, 3, 16, 16)
    checks.exact_limit(fold_idle(fold_layer_scale(vit)), vit, images, tol=1e-12)
    checks.exact_limit(fold_idle(to_pre_rmsnorm(vit)), vit, images, tol=1e-10)


def test_only_the_last_channels_are_idle():
    ffn = randomized(ChannelIdleFFN(DIM, HIDDEN, 0.75, act=nn.ReLU))
    hidden = ffn.fc1(X)
    hidden[..., :32] = hidden[..., :32].relu()
    checks.equal(ffn(X), ffn.fc2(hidden), 1e-12, "the FFN and its formula")
    checks.exact_limit(ffn.reparameterize(), ffn, X, tol=1e-12)


def test_it_keeps_the_conventions_of_an_mlp():
    for ffn in (ChannelIdleFFN(DIM, HIDDEN, 0.75), ChannelIdleFFN(DIM, HIDDEN, 0.75).reparameterize()):
        checks.permutation_equivariant(ffn, X.float())
        checks.gradients_flow(ffn, X.float())
        checks.follows_dtype_and_device(ffn, X.float())


def test_what_does_not_fit_is_a_sentence():
    with pytest.raises(LabkitError, match=r"idle_ratio=1.5 is no fraction; choose a number from 0 to 1"):
        ChannelIdleFFN(DIM, HIDDEN, 1.5)
    with pytest.raises(LabkitError, match="No block of this model has a ChannelIdleFFN"):
        fold_idle(ViT(16, 8, 5, DIM, 1, 2))
