"""Every family of plain timm models reduces its tokens: unchanged at full budget, prefix and LayerScale respected."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from labkit import tokens
from labkit.convert import from_timm
from labkit.evidence import Reducer
from labkit.tokens.cluster import dpc_knn
from labkit.tokens.score import attention_received, class_attention, class_value
from labkit.vit import ViT
from tests import checks

FAMILIES = [
    "deit_small_patch16_224",
    "deit_small_distilled_patch16_224",  # two tokens, two heads
    "deit3_small_patch16_224",  # LayerScale, and no position for the class token
    "vit_small_patch14_dinov2",  # LayerScale
    "vit_small_patch14_reg4_dinov2",  # and four registers
    "vit_medium_patch16_reg1_gap_256",  # a register, and the mean is read
    "vit_base_patch16_clip_224",  # a norm before the blocks
    "vit_base_patch16_siglip_224",  # no token before the patches, read by attention
    "vit_base_patch16_siglip_gap_224",  # no token before the patches, and the mean is read
]
PATCHES = 16


def theirs(name: str) -> nn.Module:
    """A narrow model of the family, whose every part speaks: LayerScale of 1e-5 would hide what goes wrong."""
    torch.manual_seed(0)
    side = 4 * (14 if "patch14" in name else 16)
    model = timm.create_model(name, img_size=side, embed_dim=48, depth=3, num_heads=3, num_classes=5)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.1 if parameter.ndim > 1 else 0.3
            parameter.add_(torch.randn_like(parameter) * scale)
    return model.eval()


def images(model: ViT) -> torch.Tensor:
    side = 4 * model.patch_embed.proj.stride[0]
    return torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(1))


def full(prefix: int) -> dict[str, Reducer]:
    score, value = (class_attention, class_value) if prefix else (attention_received, attention_received)
    return {
        "keep": tokens.Keep(1.0, score),
        "fuse": tokens.Fuse(1.0, score),
        "share": tokens.KeepShare(1.0, score),
        "sample": tokens.Sample(100_000, value),
        "merge": tokens.Merge(0),
        "energy": tokens.MergeByEnergy(0),
        "criteria": tokens.MergeByCriteria(0),
        "cluster": tokens.Cluster(PATCHES, dpc_knn),
        "shrink": tokens.Shrink((4, 4), (4, 4)),
        "pool": tokens.AveragePool((4, 4), 1),
    }


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_at_full_budget_every_model_is_unchanged(name):
    original = theirs(name)
    plain = from_timm(original)
    x = images(plain)
    expected = original(x)
    assert expected.std() > 0.1, "the logits hardly vary: equality would prove nothing"
    for what, reducer in full(plain.prefix).items():
        slim = tokens.attach(plain, reducer, range(3))
        checks.equal(slim(x), plain(x), 2e-6 * float(expected.abs().max()), what)
        checks.equal(slim(x), expected, 1e-5 * float(expected.abs().max()), f"{what} and timm")


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_fewer_tokens_never_touch_the_prefix_and_an_image_comes_out_as_it_would_alone(name):
    plain = from_timm(theirs(name))
    x, prefix = images(plain), plain.prefix
    score = class_attention if prefix else attention_received
    for reducer in (tokens.Keep(0.5, score), tokens.Fuse(0.5, score), tokens.Merge(4), tokens.KeepShare(0.5, score)):
        slim = tokens.attach(plain, reducer, [0, 1])
        seen = slim.observe(x)
        alone = torch.eye(prefix).expand(3, -1, -1)
        for step in seen.steps[:2]:
            checks.equal(step.map[:, :prefix, :prefix], alone, 0.0, "the prefix")
            assert not step.map[:, prefix:, :prefix].any() and not step.map[:, :prefix, prefix:].any()
        tolerance = 1e-5 * float(seen.logits.abs().max())
        checks.equal(tokens.packed(slim, x, 0.0), seen.logits, tolerance, f"{reducer}, packed")
        checks.equal(torch.cat([slim(image[None]) for image in x]), seen.logits, tolerance, f"{reducer}, alone")
        assert (seen.logits - plain(x)).abs().max() > 1e-4 * seen.logits.abs().max(), "the reducer did nothing"
