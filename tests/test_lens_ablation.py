"""The logit lens ends where the model ends; a head that is taken away is a column of weights that is zero."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from labkit import tokens
from labkit.errors import LabkitError
from labkit.explain.ablation import head_effects, without
from labkit.explain.lens import logit_lens
from labkit.pooling import AttentionPool
from labkit.tracing.record import trace
from tests.checks import equal
from tests.oblong import POOLS, images, model


@pytest.mark.parametrize("options", POOLS, ids=str)
def test_the_last_depth_of_the_lens_is_the_model(options):
    vit = model(**options)
    seen = trace(vit, images())
    lens = logit_lens(vit, seen)
    assert lens.image.shape == (4, 3, 5) and lens.patches.shape == (4, 3, 4, 6, 5)
    with torch.no_grad():
        equal(lens.image[-1], vit(images()), 1e-5)
    assert not torch.allclose(lens.image[0], lens.image[-1], atol=1e-2)
    if vit.pool == "avg":  # the head is linear: the mean over the patches may come before or after it
        equal(lens.patches.mean(dim=(2, 3)), lens.image, 1e-5)


def test_each_patch_is_read_as_if_it_were_the_class_token():
    vit = model(registers=1)
    seen = trace(vit, images())
    x = seen.tokens[2].clone()
    x[:, 0] = x[:, 2 + 6 * 3 + 5]
    with torch.no_grad():
        equal(logit_lens(vit, seen).patches[2, :, 3, 5], vit.read(x), 1e-5)


def test_the_lens_works_with_an_attention_pool():
    torch.manual_seed(0)
    vit = model(pool=AttentionPool(32, 2), class_token=False)
    seen = trace(vit, images())
    lens = logit_lens(vit, seen)
    with torch.no_grad():
        equal(lens.image[-1], vit(images()), 1e-5)
        equal(lens.patches[-1, :, 1, 2], vit.read(seen.tokens[-1][:, 8:9]), 1e-5)


def test_dropped_patches_have_no_reading_and_merged_ones_share_one():
    slim = tokens.attach(model(), tokens.Keep(0.5), [1])
    lens = logit_lens(slim, trace(slim, images()))
    assert [round(float(level.isnan().float().mean()), 3) for level in lens.patches] == [0, 0, 0.5, 0.5]
    slim = tokens.attach(model(), tokens.Merge(8), [0])
    seen = trace(slim, images())
    patches = logit_lens(slim, seen).patches[1].flatten(1, 2)
    image, token = [int(i) for i in ((seen.provenance[1] > 0).sum(dim=2) == 2).nonzero()[0]]
    first, second = patches[image, seen.provenance[1][image, token] > 0]
    equal(first, second)


class DroppingPool(nn.Module):
    def forward(self, x):
        return F.dropout(x.mean(dim=1), 0.5, self.training)


def zeroed(vit, heads):
    """The same model whose output projection does not see these heads."""
    vit = copy.deepcopy(vit)
    with torch.no_grad():
        for layer, head in heads:
            vit.blocks[layer].attn.proj.weight[:, 16 * head : 16 * (head + 1)] = 0
    return vit


@pytest.mark.parametrize("heads", [[], [(0, 1)], [(2, 0)], [(0, 0), (1, 0), (1, 1)]], ids=str)
@pytest.mark.parametrize("impl", ["plain", "fast"])
@pytest.mark.parametrize("options", POOLS, ids=str)
@torch.no_grad()
def test_a_head_that_is_taken_away_is_a_column_of_zeros(options, impl, heads):
    vit = model(**options).set_impl(impl)
    ablated = without(vit, images(), heads, batch=2)
    equal(ablated, zeroed(vit, heads)(images()), 1e-5)
    assert torch.allclose(ablated, vit(images()), atol=1e-6) == (not heads)


@pytest.mark.parametrize("reducer", [tokens.Keep(0.5), tokens.Merge(8)], ids=["keep", "merge"])
@pytest.mark.parametrize("heads", [[], [(0, 1)], [(2, 0)]], ids=str)
@torch.no_grad()
def test_heads_of_a_model_with_fewer_tokens(reducer, heads):
    slim = tokens.attach(model(), reducer, [0])
    equal(without(slim, images(), heads), zeroed(slim, heads)(images()), 1e-5)


@pytest.mark.parametrize("target", [torch.tensor([0, 1, 0, 1, 4]), None], ids=["labels", "predicted"])
@torch.no_grad()
def test_the_effect_of_each_head(target):
    vit, x = model(registers=1), images(5)
    effects = head_effects(vit, x, target, batch=2)
    whole = vit(x)
    labels = whole.argmax(dim=1) if target is None else target
    assert effects.probability.shape == effects.accuracy.shape == (3, 2)
    for layer in range(3):
        for head in range(2):
            logits = zeroed(vit, [(layer, head)])(x)
            change = (logits.softmax(1) - whole.softmax(1))[torch.arange(5), labels].mean()
            accuracy = (logits.argmax(1) == labels).float().mean() - (whole.argmax(1) == labels).float().mean()
            equal(effects.probability[layer, head], change, 1e-5)
            equal(effects.accuracy[layer, head], accuracy, 1e-6)
    assert effects.probability.abs().min() > 1e-5


def test_a_model_in_training_is_asked_in_evaluation_mode_and_stays_in_training():
    vit = model(pool=DroppingPool(), class_token=True)
    with torch.no_grad():
        logits = vit(images())
    vit.train()
    equal(without(vit, images(), []), logits, 1e-5)
    equal(logit_lens(vit, trace(vit, images())).image[-1], logits, 1e-5)
    assert all(module.training for module in vit.modules())


def test_a_head_that_is_not_there_is_a_sentence():
    with pytest.raises(LabkitError, match="Layer 1 has no head 2; it has 2, counted from 0"):
        without(model(), images(), [(1, 2)])
    with pytest.raises(LabkitError, match="There is no layer 3"):
        without(model(), images(), [(3, 0)])
