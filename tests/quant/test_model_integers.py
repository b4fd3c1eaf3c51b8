"""The joined model multiplies exact integers, on the levels that its recipe says."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from labkit.quant import Recipe, calibrate, layers, points, quantize, watched
from labkit.quant import model as joined
from labkit.quant.grids import Uniform
from labkit.quant.layers import RoundedLinear
from labkit.quant.warped_grids import Twin
from labkit.vit import ViT
from tests import checks
from tests.quant.joined import IMAGES, RECIPES, close, made


@pytest.mark.parametrize("weights, inputs", [(8, 8), (2, 3), (4, 8), (8, 4), (16, 16), (5, 16)])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("full", [False, True])
def test_the_sum_of_integers_is_exact(weights, inputs, affine, full):
    """In int64, for random codes and for the largest sums there can be; odd, so that a lost last bit shows."""
    dice, d = torch.Generator().manual_seed(weights), 1537
    grid = Uniform(torch.ones(7, 1), torch.zeros(7, 1, dtype=torch.int32), weights, not affine)
    first, last = grid.ends
    codes = torch.randint(first, last + 1, (7, d), generator=dice, dtype=torch.int32)
    if affine:
        grid = replace(grid, zero=torch.randint(0, 2**weights, (7, 1), generator=dice, dtype=torch.int32))
    zero = torch.tensor(2**inputs // 3, dtype=torch.int32)
    steps = torch.randint(-int(zero), 2**inputs - int(zero), (5, d), generator=dice)
    if full:
        codes[:], steps[:] = last, 2**inputs - 1 - int(zero)
    layer = RoundedLinear(nn.Linear(d, 7, bias=False, dtype=torch.float64))
    layer.freeze(grid, torch.zeros(7, d))
    layer.codes, layer.input.grid = codes, Uniform(torch.tensor(1.0), zero, inputs)
    exact = steps @ (codes - grid.zero).long().T
    assert torch.equal(layer(steps.double()).long(), exact)
    assert torch.equal(layer.part(steps.double(), 2, 5).long(), exact[:, 2:5])
    assert torch.equal(layer(steps.float()), exact.float())


@pytest.mark.parametrize("name", RECIPES)
def test_each_layer_multiplies_what_its_codes_say(name):
    small = made(name)
    with watched(small) as notes:
        small(IMAGES)
    for key, layer in layers(small).items():
        behind = copy.copy(layer)  # the rotation, which comes before the point
        behind.rotated = False
        x = torch.cat([seen.flatten(0, -2) for seen in notes[f"{key}.input"]])
        grid = layer.input.grid_for(x)
        values = x.double() if grid is None else grid.decode(grid.encode(x)).double()
        expected = values @ layer.weight.double().T + (0 if layer.bias is None else layer.bias.double())
        close(behind.part(x).double(), expected, 2e-6)
        if layer.codes is not None:
            low, high = layer.grid.ends if isinstance(layer.grid, Uniform) else (-127, 127)
            assert layer.codes.min() >= low and layer.codes.max() <= high and layer.codes.dtype == torch.int32


def test_a_rotated_layer_rounds_what_it_has_rotated(model):
    small, plain = (quantize(model, Recipe(None, 8, fold=fold), IMAGES) for fold in ("rotate", "none"))
    layer, other = (layers(m)["blocks.1.mlp.fc1"] for m in (small, plain))
    with watched(plain) as notes:
        plain(IMAGES)
    x = notes["blocks.1.mlp.fc1.input"][0][0]
    with watched(small) as notes:
        layer(x)
    seen = notes["blocks.1.mlp.fc1.input"][0]
    close(seen.norm(dim=1), x.norm(dim=1), 1e-5)
    assert (seen - x).abs().max() > 0.1
    close(layer(x), other(x), 0.03)


def test_each_token_has_a_grid_of_its_own(model):
    small = quantize(model, Recipe(8, 8, per_token=True))
    layer = layers(small)["blocks.0.attn.qkv"]
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    scaled = x * torch.tensor([1.0, 1000.0, 0.0, 1.0, 1e-3])[:, None]
    rounded = layer.input(scaled)
    assert ((rounded - scaled).abs() <= scaled.abs().amax(-1, keepdim=True) / 254 * 1.001).all()
    assert torch.equal(rounded[:, [0, 3]], layer.input(x)[:, [0, 3]])
    checks.batch_independent(small, IMAGES[:2], tol=2e-2)


def test_levels_are_where_the_recipe_says(model):
    small = quantize(model, Recipe(5, 6, attention=7, gelu="twin"), IMAGES)
    for name, layer in layers(small).items():
        end = not name.startswith("blocks.")
        assert layer.grid.bits == (8 if end else 5) and layer.grid.signed
        assert layer.grid.scale.shape == (layer.out_features, 1)
        kind = Twin if name.endswith("fc2") else Uniform
        assert type(layer.input.grid) is kind and layer.input.grid.bits == (8 if end else 6)
    for name, point in points(small).items():
        if not name.endswith(".input"):
            assert point.grid.bits == 7
            assert point.grid.levels().min() >= 0 or not name.endswith("softmax")
    names = set(points(small))
    assert {f"blocks.2.attn.{part}" for part in ("q", "k", "v", "softmax")} <= names
    assert {"patch_embed.proj.input", "head.input", "blocks.0.mlp.fc1.input"} <= names


def test_calibration_takes_every_row_of_the_last_block(model):
    """Fast inference reads one row there, and its extremes alone would clip what `observe` shows."""
    small = quantize(model, Recipe(), IMAGES)
    with watched(model_points := joined.prepare(copy.deepcopy(model), Recipe())) as notes:
        model_points.last = "full"
        model_points(IMAGES)
    seen = torch.cat(notes["blocks.2.mlp.fc1.input"])
    assert seen.shape[1] > 1
    grid = layers(small)["blocks.2.mlp.fc1"].input.grid
    assert (grid.round(seen) - seen).abs().max() <= grid.scale * 0.501
    assert small.last == model.last == "class"


@pytest.mark.parametrize("clip", ["percentile", "moving_average"])
def test_every_rule_of_clipping_arrives_at_every_point(clip, model, monkeypatch):
    monkeypatch.setattr(joined, "BATCH", 2)  # so that there is something to average over
    one, other = (quantize(model, Recipe(4, 4, attention=4, clip=c), IMAGES) for c in ("min_max", clip))
    spans = [
        {name: float(point.grid.levels().amax() - point.grid.levels().amin()) for name, point in points(m).items()}
        for m in (one, other)
    ]
    narrower = [name for name in spans[0] if spans[1][name] < spans[0][name] * 0.9999]
    assert all(spans[1][name] <= spans[0][name] * 1.0001 for name in spans[0])
    assert len(narrower) > len(spans[0]) / 2
    assert any(name.endswith("fc1.input") for name in narrower) and any(name.endswith(".k") for name in narrower)


@pytest.mark.parametrize("clip", ["mse", "kl"])
def test_the_rules_that_search_are_asked_with_the_bits(clip, model, monkeypatch):
    asked = []
    monkeypatch.setattr(calibrate, clip, lambda x, bits: asked.append(bits) or calibrate.min_max(x, bits))
    small = quantize(model, Recipe(4, 5, attention=6, clip=clip), IMAGES)
    assert sorted(asked) == sorted(point.grid.bits for point in points(small).values())
    assert {4, 5, 6, 8} - set(asked) == {4}


def test_rounding_what_is_rounded_changes_nothing(model):
    small = quantize(model, Recipe(4, None, ends="same"))
    again = copy.deepcopy(model)
    for name, layer in layers(small).items():
        weight = again.get_submodule(name).weight
        weight.data.copy_(layer.weight.reshape(weight.shape))
    twice = layers(quantize(again, Recipe(4, None, ends="same")))
    for name, layer in layers(small).items():
        checks.equal(twice[name].codes, layer.codes)
    for name, point in points(quantize(model, Recipe(attention=8), IMAGES)).items():
        x = torch.randn(50, generator=torch.Generator().manual_seed(len(name))).abs()
        checks.equal(point(point(x)), point(x))


def test_a_corrected_bias_leaves_no_mean_error(model):
    recipe = Recipe(3, 4, correct_bias=True)
    small, plain = (quantize(model, r, IMAGES) for r in (recipe, replace(recipe, correct_bias=False)))
    floats = joined.prepare(copy.deepcopy(model), Recipe())
    floats.last = "full"
    with watched(floats) as notes:
        floats(IMAGES)
    for name, layer in layers(floats).items():
        x = torch.cat([seen.flatten(0, -2) for seen in notes[f"{name}.input"]])
        right = layer.part(x).mean(dim=0)
        size = (layers(plain)[name].part(x).mean(dim=0) - right).abs().max()
        assert (layers(small)[name].part(x).mean(dim=0) - right).abs().max() < 1e-4 + 0.01 * size


def test_better_rounding_is_better():
    torch.manual_seed(0)
    model = ViT((16, 16), 8, 5, dim=16, depth=1, heads=2).eval()
    images = torch.rand(32, 3, 16, 16)

    def error(recipe: Recipe) -> float:
        return (quantize(model, recipe, images)(images) - model(images)).square().mean().item()

    assert error(Recipe(3, None, rounding="gptq")) < error(Recipe(3, None))
    assert error(Recipe(3, None, rounding="adaptive")) < error(Recipe(3, None))
    assert error(Recipe(8, 8)) < error(Recipe(6, 6)) < error(Recipe(4, 4))
