"""The joined model: exact where nothing is rounded, exact integers where something is, no damage to the original."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import labkit
from labkit import tokens
from labkit.blocks import parallel
from labkit.errors import LabkitError
from labkit.layers import MLP
from labkit.mlp import GatedMLP, SplitGatedMLP
from labkit.quant import Recipe, calibrate, layers, points, quantize, untouched, watched
from labkit.quant import model as joined
from labkit.quant.grids import Float8, Uniform
from labkit.quant.layers import RoundedAttention, RoundedLinear
from labkit.quant.warped_grids import Twin
from labkit.vit import ViT
from tests import checks, oblong
from tests.timm_families import SMALL, build

RECIPES = {
    "W8/A8": Recipe(attention=8),
    "W3 affine": Recipe(3, 6, attention=6, symmetric=False),
    "tensor": Recipe(4, 4, per="tensor", ends="same"),
    "groups": Recipe(4, 8, per=8),
    "weights": Recipe(4, None, ends=None),
    "inputs": Recipe(None, 8, attention=8),
    "floats": Recipe("e4m3", "e5m2"),
    "tokens": Recipe(8, 8, per_token=True),
    "channels": Recipe(4, 4, attention=4, fold="channels", softmax="adalog", gelu="twin", centred=True),
    "rotated": Recipe(8, 8, fold="rotate", clip="percentile"),
    "smooth": Recipe(4, 8, fold="smooth", rounding="gptq", correct_bias=True),
}
IMAGES = oblong.images(6)


@pytest.fixture(scope="module")
def model() -> ViT:
    return oblong.model()


@functools.cache
def made(name: str) -> ViT:
    """Made once for all tests; whoever changes it changes a copy."""
    return quantize(oblong.model(), RECIPES[name], IMAGES)


def close(a: torch.Tensor, b: torch.Tensor, tol: float) -> None:
    """Within a share of the largest number."""
    checks.equal(a, b, tol * b.abs().max().item())


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


# --- the integers -------------------------------------------------------------------------------------------
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


# --- what is refused ----------------------------------------------------------------------------------------
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
