"""What the joined model refuses, in one sentence: recipes that mean nothing, images and models it cannot take."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import labkit
from labkit.errors import LabkitError
from labkit.quant import Recipe, points, quantize
from labkit.quant.grids import Uniform
from labkit.quant.layers import RoundedAttention
from tests import checks
from tests.quant.joined import IMAGES, RECIPES, made


@pytest.mark.parametrize(
    "fields, sentence",
    [
        ({"weights": 1}, r"weights=1 are no bits; expected 2 to 16"),
        ({"weights": 17}, "weights=17"),
        ({"weights": True}, "weights=True"),
        ({"weights": 4.0}, r"weights=4\.0"),
        ({"activations": "e3m4"}, "activations='e3m4'"),
        ({"activations": "8"}, "activations='8'"),
        ({"attention": "e4m3"}, "whole numbers of bits"),
        ({"attention": 0}, "attention=0"),
        ({"attention": False}, "attention=False"),
        ({"ends": "none"}, "ends='none'"),
        ({"layers": {"head": 4}}, r"layers\['head'\]=4; expected the bits of both"),
        ({"layers": {"head": (4, 4, 4)}}, "expected the bits of both"),
        ({"layers": {"head": "e4m3"}}, "expected the bits of both"),
        ({"layers": {"head": (4, 1)}}, r"layers\['head'\]=1 are no bits"),
        ({"per": "group"}, "per='group'; choose"),
        ({"per": 0}, "per=0"),
        ({"per": True}, "per=True"),
        ({"clip": "percentil"}, r'clip=.*choose one of min_max.*Did you mean "percentile"'),
        ({"clip": 3}, "clip=3 is unknown"),
        ({"fold": "channel"}, 'Did you mean "channels"'),
        ({"softmax": "log"}, "softmax='log' is unknown"),
        ({"gelu": "relu"}, "gelu='relu' is unknown"),
        ({"rounding": "up"}, "rounding='up' is unknown"),
        ({"softmax": "log2"}, "softmax='log2' needs attention=bits"),
        ({"centred": True}, "centred=True needs attention=bits"),
        ({"per_token": True, "fold": "channels"}, "per_token goes with neither"),
        ({"per_token": True, "gelu": "twin"}, "per_token goes with neither"),
        ({"per_token": True, "activations": "e4m3"}, "8-bit float"),
        ({"per_token": True, "layers": {"head": (8, "e4m3")}}, "8-bit float"),
    ],
)
def test_recipes_that_mean_nothing_are_refused(fields, sentence):
    with pytest.raises(LabkitError, match=sentence):
        Recipe(**fields)


def test_a_recipe_says_what_is_special():
    assert Recipe().describe() == "W8/A8"
    assert Recipe(4, None, fold="rotate", layers={"head": (8, 8)}).describe() == (
        "W4/ANone · layers={'head': (8, 8)} · fold=rotate"
    )
    with pytest.raises(AttributeError):
        Recipe().weights = 4


@pytest.mark.parametrize("name", ["W8/A8", "smooth", "floats"])
@pytest.mark.parametrize(
    "calibration, sentence",
    [
        (None, "there are none; pass calibration=images"),
        (IMAGES[:0], "there are none"),
        (list(IMAGES), "a list came"),
        (IMAGES.masked_fill(IMAGES > 0.99, torch.nan), "NaN"),
        (IMAGES.masked_fill(IMAGES > 0.99, torch.inf), "NaN|infinity|finite"),
        (IMAGES[0], "expected \\(batch, 3"),
        (IMAGES[:, :1], "expected \\(batch, 3"),
        (IMAGES[..., :13], "not divisible"),
    ],
)
def test_calibration_images_are_checked(name, calibration, sentence, model):
    with pytest.raises(LabkitError, match=sentence):
        quantize(model, RECIPES[name], calibration)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("grey", [0.0, 0.3])
def test_images_without_any_contrast_will_do(name, grey, model):
    """A grid holds 0 and the constant itself, so that the patch embedding sees these images unchanged."""
    flat = torch.full_like(IMAGES, grey)
    small = quantize(model, RECIPES[name], flat)
    assert small(flat).isfinite().all() and small(IMAGES).isfinite().all()
    point = points(small)["patch_embed.proj.input"]
    if isinstance(point.grid, Uniform):
        checks.equal(point(flat), flat, 1e-6)


def test_what_cannot_be_quantized_is_refused(model):
    with pytest.raises(LabkitError, match=r"Linear is no labkit ViT.*from_timm"):
        quantize(nn.Linear(3, 3), Recipe(), IMAGES)
    for recipe in (Recipe(), Recipe(None, None), Recipe(4, None)):
        with pytest.raises(LabkitError, match=r"quantized already; quantize the float model"):
            quantize(quantize(model, recipe, IMAGES), Recipe(), IMAGES)
    with pytest.raises(LabkitError, match=r"backend='int4' is unknown; choose"):
        quantize(model, Recipe(), IMAGES, backend="int4")
    with pytest.raises(LabkitError, match=r'"blocks\.0\.mlp\.fc3".*Did you mean "blocks\.0\.mlp\.fc[12]"'):
        quantize(model, Recipe(layers={"blocks.0.mlp.fc3": (4, 4)}), IMAGES)
    with pytest.raises(LabkitError, match="per=7 does not cut"):
        quantize(model, Recipe(4, None, per=7))


def test_a_block_that_does_not_run_is_named(model):
    """Its grid would have nothing to lie over."""

    class Skipped(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, x, grid, sizes=None, prefix=0, rows=None):
            return labkit.vit.Step(x[:, :rows], None, None, sizes)

    short = copy.deepcopy(model)
    short.blocks[1] = Skipped(short.blocks[1])
    with pytest.raises(LabkitError, match=r"nothing passed blocks\.1\.block\.attn\.qkv\.input"):
        quantize(short, Recipe(), IMAGES)
    assert quantize(short, Recipe(4, None))(IMAGES).isfinite().all()


def test_pixels_that_are_nan_are_refused(model):
    spoiled = IMAGES.clone()
    spoiled[0, 0, 0, 0] = torch.nan
    for recipe in (Recipe(), Recipe(4, None), Recipe(8, 8, per_token=True)):
        with pytest.raises(LabkitError, match="NaN"):
            quantize(model, recipe, IMAGES)(spoiled)


def test_no_images_and_images_of_another_size():
    for name in RECIPES:
        small = made(name)
        assert small(IMAGES[:0]).shape == (0, 5)
        assert small(F.interpolate(IMAGES, (48, 48))).isfinite().all()


def test_attention_that_is_not_rounded_is_the_plain_one(model):
    assert not any(isinstance(m, RoundedAttention) for m in quantize(model, Recipe(), IMAGES).modules())
    small = quantize(model, Recipe(attention=8), IMAGES).set_impl("fast")
    assert all(block.attn.impl == "plain" for block in small.blocks)
