"""The joined model: exact where nothing is rounded, at home in all families and dials, harmless to its original."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

import labkit
from labkit import tokens
from labkit.blocks import parallel
from labkit.errors import LabkitError
from labkit.layers import MLP
from labkit.mlp import GatedMLP, SplitGatedMLP
from labkit.quant import Recipe, layers, points, quantize, untouched, watched
from labkit.quant import model as joined
from labkit.quant.grids import Float8, Uniform
from labkit.vit import ViT
from tests import checks, oblong
from tests.quant.joined import IMAGES, RECIPES, close, made
from tests.timm_families import SMALL, build


# --- nothing is rounded -------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", oblong.POOLS)
def test_without_bits_it_is_the_float_model(options):
    model = oblong.model(**options)
    for recipe in (Recipe(None, None), Recipe(None, None, ends=None, rounding="gptq", correct_bias=True)):
        close(quantize(model, recipe, IMAGES)(IMAGES), model(IMAGES), 1e-6)


def test_all_is_none_but_one(model):
    """Each kind of bits alone changes the logits, so none of them is forgotten."""
    before = model(IMAGES)
    for recipe in (Recipe(3, None), Recipe(None, 3), Recipe(None, None, attention=3)):
        assert (quantize(model, recipe, IMAGES)(IMAGES) - before).abs().max() > 1e-3
    ends = quantize(model, Recipe(8, 8, ends=None), IMAGES)
    assert [name for name, layer in layers(ends).items() if layer.codes is None] == ["patch_embed.proj", "head"]
    assert {layer.grid.bits for layer in layers(quantize(model, Recipe(4, 4, ends="same"), IMAGES)).values()} == {4}


@pytest.mark.parametrize("options", [{}, {"fold": "channels", "centred": True}, {"symmetric": False, "per": 8}])
def test_sixteen_bits_are_nearly_none(options, model):
    recipe = Recipe(16, 16, attention=16, ends="same", **options)
    close(quantize(model, recipe, IMAGES)(IMAGES), model(IMAGES), 1e-3)


def gated(kind) -> ViT:
    model = oblong.model(layer_scale=0.5)
    for block in model.blocks:
        block.mlp = kind(32, 40)
    return oblong_random(model)


def oblong_random(model: ViT) -> ViT:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.1)
    return model.eval()


MODELS = {
    "plain": oblong.model,
    "gated": lambda: gated(GatedMLP),
    "split": lambda: gated(SplitGatedMLP),
    "norms that learn nothing": lambda: oblong.model(norm=lambda d: nn.LayerNorm(d, elementwise_affine=False)),
    "norms without bias": lambda: oblong.model(norm=lambda d: nn.LayerNorm(d, bias=False)),
    "side by side": lambda: parallel(oblong.model(), 3),
    "patches alone": lambda: oblong.model(pool="avg"),
}


@pytest.mark.parametrize("fold", ["channels", "smooth", "rotate"])
@pytest.mark.parametrize("name", MODELS)
def test_every_fold_is_exact_before_rounding(fold, name):
    model = MODELS[name]()
    folded = quantize(model, Recipe(None, None, fold=fold), IMAGES)
    close(folded(IMAGES), model(IMAGES), 1e-5)
    gains = [
        [m.weight for m in net.modules() if isinstance(m, nn.LayerNorm) and m is not net.norm]
        for net in (folded, model)
    ]
    moved = [a is not None and (b is None or (a - b).abs().max() > 1e-3) for a, b in zip(*gains, strict=True)]
    assert all(moved) if fold != "rotate" else not any(moved)


def test_centred_keys_change_nothing_by_themselves(model):
    recipe = Recipe(None, None, attention=16)
    one, other = (quantize(model, replace(recipe, centred=centred), IMAGES)(IMAGES) for centred in (False, True))
    close(one, other, 1e-3)


def test_folding_wants_a_norm_with_a_shift():
    model = oblong.model(norm=nn.RMSNorm)
    with pytest.raises(LabkitError, match="this norm is RMSNorm"):
        quantize(model, Recipe(fold="channels"), IMAGES)
    close(quantize(model, Recipe(None, None, fold="rotate"), IMAGES)(IMAGES), model(IMAGES), 1e-5)


def test_an_mlp_of_another_kind_is_rounded_and_not_folded():
    """Who else reads the norm in it is unknown."""

    class Forked(MLP):
        def forward(self, x):
            return super().forward(x) + x

    model = oblong.model()
    model.blocks[0].mlp = Forked(32, 64)
    folded = quantize(model, Recipe(None, None, fold="smooth"), IMAGES)
    close(folded(IMAGES), model(IMAGES), 1e-5)
    assert "blocks.0.mlp.fc1" in layers(folded)


# --- the model around them ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", RECIPES)
def test_the_class_row_alone_is_the_row_of_all(name):
    small = copy.deepcopy(made(name))
    fast = small(IMAGES)
    small.last = "full"
    close(fast, small(IMAGES), 1e-5)


def test_maps_are_those_that_were_multiplied(model):
    small = quantize(model, Recipe(8, 8, attention=4, softmax="log2"), IMAGES)
    seen = small.observe(IMAGES)
    trace = labkit.trace(small, IMAGES)
    close(seen.logits, small(IMAGES), 1e-5)
    close(trace.logits, small(IMAGES), 1e-5)
    for i, step in enumerate(seen.steps):
        levels = points(small)[f"blocks.{i}.attn.softmax"].grid.levels()
        assert torch.isin(step.evidence.attn, levels).all() and len(step.evidence.attn.unique()) > 3
        checks.equal(trace.attention[i], step.evidence.attn, 1e-6)
        checks.equal(step.evidence.attention(slice(0, 1)), step.evidence.attn[:, :, :1])
    untouched_maps = labkit.trace(quantize(model, Recipe(), IMAGES), IMAGES).attention[0]
    checks.rows_sum_to_one(untouched_maps)


@pytest.mark.parametrize("reducer", [tokens.Merge(4), tokens.Keep(0.6)])
@pytest.mark.parametrize("name", ["W8/A8", "tokens"])
def test_reducers_go_with_rounding_in_either_order(reducer, name, model):
    after = tokens.attach(made(name), reducer, [0, 1])
    before = quantize(tokens.attach(model, reducer, [0, 1]), RECIPES[name], IMAGES)
    plain = tokens.attach(model, reducer, [0, 1])(IMAGES)
    for slim in (after, before):
        counts = [step.x.shape[1] for step in slim.observe(IMAGES).steps]
        assert counts == [step.x.shape[1] for step in tokens.attach(model, reducer, [0, 1]).observe(IMAGES).steps]
        assert slim(IMAGES).isfinite().all() and (slim(IMAGES) - plain).abs().max() < 2 * plain.abs().max()
    fine = Recipe(16, 16, attention=16, ends="same")
    one = tokens.attach(quantize(model, fine, IMAGES), reducer, [0]).observe(IMAGES)
    two = quantize(tokens.attach(model, reducer, [0]), fine, IMAGES).observe(IMAGES)
    checks.equal(one.maps[1], two.maps[1])
    checks.equal(one.maps[1], tokens.attach(model, reducer, [0]).observe(IMAGES).maps[1])


def test_batches_may_keep_different_numbers_of_tokens(model, monkeypatch):
    monkeypatch.setattr(joined, "BATCH", 1)
    slim = tokens.attach(model, tokens.KeepShare(0.6), [0])
    counts = {slim.observe(image[None]).steps[0].x.shape[1] for image in IMAGES}
    assert len(counts) > 1
    for recipe in (
        Recipe(attention=8),
        Recipe(fold="smooth", clip="percentile", attention=4, softmax="log2", centred=True),
    ):
        assert quantize(slim, recipe, IMAGES)(IMAGES).isfinite().all()


def test_one_block_that_runs_twice_is_rounded_once():
    model = oblong.model()
    model.blocks = nn.ModuleList([model.blocks[0], model.blocks[1], model.blocks[0]])
    for fold in ("none", "channels", "rotate"):
        recipe = Recipe(None, None, fold=fold)
        close(quantize(model, recipe, IMAGES)(IMAGES), model(IMAGES), 1e-5)
        small = quantize(model, Recipe(attention=8, fold=fold), IMAGES)
        assert small.blocks[0] is small.blocks[2] and "blocks.2.attn.qkv" not in layers(small)
        assert (small(IMAGES) - model(IMAGES)).abs().max() < model(IMAGES).abs().max()


def swiglu() -> nn.Module:
    return timm.create_model("vit_giant_patch14_reg4_dinov2", num_classes=5, img_size=(28, 42), **SMALL).eval()


FAMILIES = {
    "deit": (lambda: build("vit"), (32, 48), []),
    "distilled": (lambda: build("deit"), (32, 48), []),
    "dinov2 with registers": (lambda: build("dinov2 with registers"), (28, 42), []),
    "siglip": (
        lambda: build("vit without class token"),
        (32, 48),
        [f"attn_pool.{name}" for name in ("q", "kv", "proj", "mlp.fc1", "mlp.fc2")],
    ),
    "swiglu": (swiglu, (28, 42), []),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_timm(name):
    make, size, floats = FAMILIES[name]
    model = ViT.from_timm(make())
    x = torch.rand(4, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = model(x)
    for fold in ("none", "channels", "smooth", "rotate"):
        close(quantize(model, Recipe(None, None, fold=fold), x)(x), expected, 2e-5)
        fine = quantize(model, Recipe(16, 16, attention=16, ends="same", fold=fold), x)
        close(fine(x), expected, 1e-3)
        assert untouched(fine) == floats
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert sorted(layers(fine)) == sorted(set(linears) - set(floats))
    small = quantize(model, Recipe(8, 8, attention=8, fold="channels"), x)
    assert (small(x) - expected).abs().max() < expected.abs().max()
    full = small(x)
    small.last = "full"
    close(full, small(x), 1e-5)


# --- no harm and no surprise --------------------------------------------------------------------------------
def test_the_original_is_as_it_was():
    model = oblong.model().train()
    model.last, before = "full", copy.deepcopy(model.state_dict())
    model.set_impl("plain")
    shapes = [(name, type(m)) for name, m in model.named_modules()]
    random = torch.get_rng_state()
    small = quantize(model, RECIPES["channels"], IMAGES)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training and not small.training and (model.last, small.last) == ("full", "full")
    assert model.impl == "plain" and shapes == [(name, type(m)) for name, m in model.named_modules()]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    pointers = {p.data_ptr() for p in model.parameters()}
    assert not pointers & {t.data_ptr() for t in small.state_dict().values()}
    assert not any(p.grad_fn for p in small.parameters()) and not small(IMAGES).isnan().any()


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_the_same_every_time(name, model):
    one, other = made(name), quantize(model, RECIPES[name], IMAGES)
    checks.equal(one(IMAGES), other(IMAGES))
    checks.equal(one(IMAGES), copy.deepcopy(one)(IMAGES))


def test_a_copy_has_grids_of_its_own(model):
    small = quantize(model, Recipe(), IMAGES)
    copied = copy.deepcopy(small)
    before = small(IMAGES)
    for point in points(copied).values():
        point.grid.scale.mul_(3)
    layers(copied)["head"].codes.zero_()
    checks.equal(small(IMAGES), before)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("precision", [torch.float64, torch.float16, torch.bfloat16])
def test_it_runs_in_every_precision(name, precision):
    small = made(name)
    grids = {key: point.grid for key, point in points(small).items()}
    moved = copy.deepcopy(small).to(precision)
    out = moved(IMAGES.to(precision))
    assert out.dtype == precision and out.isfinite().all()
    assert (out.float() - small(IMAGES)).abs().max() < small(IMAGES).abs().max()
    for key, point in points(moved).items():
        assert (point.grid is None) == (grids[key] is None)
        if isinstance(point.grid, Uniform | Float8):
            assert point.grid.scale.dtype == torch.float32


def test_a_float64_model_is_rounded_in_float64():
    model = oblong.model().double()
    for recipe in (Recipe(4, 8, attention=8), Recipe("e4m3", "e5m2"), Recipe(4, None), RECIPES["smooth"]):
        assert quantize(model, recipe, IMAGES.double())(IMAGES.double()).dtype == torch.float64
    fine = Recipe(16, 16, attention=16, ends="same")
    close(quantize(model, fine, IMAGES.double())(IMAGES.double()), model(IMAGES.double()), 1e-3)


def test_watching_ends_and_alters_nothing(model):
    small = quantize(model, Recipe(attention=8), IMAGES)
    before = small(IMAGES)
    with watched(small) as notes:
        checks.equal(small(IMAGES), before, tol=1e-5)
        small(IMAGES)
    assert set(notes) == set(points(small))
    assert all(len(seen) == 2 and seen[0].shape == seen[1].shape for seen in notes.values())
    assert notes["blocks.2.mlp.fc1.input"][0].shape[1] > 1 and small.last == "class"  # all rows, and only meanwhile
    with pytest.raises(LabkitError), watched(small):
        small(IMAGES[:, :2])
    assert all(point.seen is None for point in points(small).values())


def test_weights_and_tokens_need_no_images(model):
    for recipe in (
        Recipe(4, None),
        Recipe(None, None),
        Recipe(8, 8, per_token=True),
        Recipe(None, None, fold="rotate"),
    ):
        checks.equal(quantize(model, recipe)(IMAGES), quantize(model, recipe, IMAGES)(IMAGES))


def test_mixed_bits_are_those_that_were_told(model):
    told = {"blocks.0.attn.qkv": (3, 16), "head": (None, 5), "blocks.2.mlp.fc2": ("e4m3", None)}
    small = layers(quantize(model, Recipe(4, 6, layers=told), IMAGES))
    assert (small["blocks.0.attn.qkv"].grid.bits, small["blocks.0.attn.qkv"].input.grid.bits) == (3, 16)
    assert small["head"].codes is None and small["head"].input.grid.bits == 5
    assert small["blocks.2.mlp.fc2"].grid.kind == "e4m3" and small["blocks.2.mlp.fc2"].input.grid is None
    assert (small["blocks.1.attn.qkv"].grid.bits, small["blocks.1.attn.qkv"].input.grid.bits) == (4, 6)
    assert small["patch_embed.proj"].grid.bits == 8
