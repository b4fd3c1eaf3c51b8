"""Integer kernels against their simulation: the same codes and sums layer by layer, and nearly the same model."""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import labkit
from labkit import tokens
from labkit.errors import LabkitError
from labkit.layers import MLP
from labkit.mlp import GatedMLP
from labkit.quant import Recipe, kernels, layers, points, quantize, untouched, watched
from labkit.quant.grids import Uniform
from labkit.quant.int8 import Int8Kernel, Int8MLP
from labkit.vit import ViT
from tests import checks, oblong
from tests.timm_families import build

RECIPES = {
    "W8/A8": Recipe(),
    "W4/A4": Recipe(4, 4),
    "mixed": Recipe(3, 6, layers={"blocks.1.mlp.fc1": (8, 8), "blocks.0.attn.qkv": (None, None)}),
    "one grid": Recipe(8, 7, per="tensor", ends="same"),
    "tokens": Recipe(8, 8, per_token=True),
    "rotated": Recipe(8, 8, fold="rotate"),
    "folded": Recipe(8, 8, fold="channels", correct_bias=True, clip="percentile"),
    "attention": Recipe(8, 8, attention=8),
}
IMAGES = oblong.images(6)
SENTENCE = "The 8-bit kernel is missing (a test took it away); computed in float64."


@pytest.fixture(scope="module", params=RECIPES)
def both(request, model) -> tuple[ViT, ViT]:
    """Simulated, and on kernels."""
    recipe = RECIPES[request.param]
    return quantize(model, recipe, IMAGES), quantize(model, recipe, IMAGES, backend="int8")


def close(a: torch.Tensor, b: torch.Tensor, tol: float) -> None:
    """Within a share of the largest number."""
    checks.equal(a, b, tol * b.abs().max().item())


def inputs(model: ViT) -> dict[str, torch.Tensor]:
    """What each layer reads, as it is called."""
    found: dict[str, torch.Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, x, name=name: found.setdefault(name, x[0]))
        for name, layer in layers(model).items()
    ]
    model.last = "full"
    model(IMAGES)
    model.last = "class"
    for hook in hooks:
        hook.remove()
    return found


def test_each_layer_gives_what_its_simulation_gives(both):
    """From the same input. Ties go one way or the other, which the layer's weight for one step more allows for."""
    simulated, fast = both
    seen, kernel_layers = inputs(simulated), layers(fast)
    assert set(seen) == set(kernel_layers)
    for name, layer in layers(simulated).items():
        x, other = seen[name], kernel_layers[name]
        assert torch.equal(other.codes, layer.codes) if layer.codes is not None else other.codes is None
        expected, found = layer(x), other(x)
        assert (other.kernel is None) == (layer.codes is None)
        assert found.dtype == expected.dtype and found.shape == expected.shape
        if isinstance(layer.input.grid, Uniform) and layer.codes is not None and not layer.rotated:
            step = layer.input.grid.scale
            x = x if x.ndim < 4 else F.unfold(x, 8, stride=8).mT
            ratio = (x / step).double()
            ties = (ratio - ratio.floor() - 0.5).abs().amin(dim=-1) < 1e-4
            sure = ~ties if expected.ndim < 4 else (~ties).reshape(len(expected), *expected.shape[-2:])
            flat = (expected if expected.ndim < 4 else expected.permute(0, 2, 3, 1))[sure]
            close((found if expected.ndim < 4 else found.permute(0, 2, 3, 1))[sure], flat, 1e-5)
            assert sure.float().mean() > 0.9 or step > 1
        close(found, expected, 2e-2)


def test_parts_of_a_layer_are_parts_of_the_whole(both):
    _, fast = both
    layer = layers(fast)["blocks.2.attn.qkv"]
    x = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))
    for first, last in ((0, 32), (32, 96), (95, 96), (None, None)):
        close(layer.part(x, first, last), layer(x)[..., first:last], 1e-6)


def test_codes_and_the_next_codes_are_one_unit_apart_at_most(model):
    simulated, fast = (quantize(model, Recipe(4, 6), IMAGES, backend=b) for b in ("simulate", "int8"))
    seen = inputs(simulated)
    for i, block in enumerate(fast.blocks):
        mlp, plain = block.mlp, simulated.blocks[i].mlp
        assert type(mlp) is Int8MLP
        x = seen[f"blocks.{i}.mlp.fc1"]
        codes = mlp.fc1.kernel.encode(x)
        ours = plain.fc1.input.grid.encode(x)
        assert codes.dtype == torch.uint8 and (codes.int() - ours).abs().max() <= 1
        assert (codes.int() != ours).float().mean() < 1e-3
        hidden = kernels.linear(codes, mlp.fc1.kernel.pack(), gelu=True, out=mlp.fc2.kernel.grid)
        expected = plain.fc2.input.grid.encode(F.gelu(plain.fc1(x)))
        assert (hidden.int() - expected).abs().max() <= 1 and (hidden.int() != expected).float().mean() < 1e-2


def test_a_fused_mlp_is_the_unfused_one(model):
    fast = quantize(model, Recipe(), IMAGES, backend="int8")
    for i, block in enumerate(fast.blocks):
        x = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(i))
        apart = MLP.forward(block.mlp, x)
        together = block.mlp(x)
        assert (together - apart).abs().max() < 2e-2 * apart.abs().max()
        assert (together - apart).abs().mean() < 1e-4 * apart.abs().max()


def test_the_whole_model_is_nearly_the_simulated_one(both):
    """A tie that goes the other way is a step in the next layer, and cascades; most codes are the same."""
    simulated, fast = both
    one, other = simulated(IMAGES), fast(IMAGES)
    assert (one - other).abs().mean() < 0.05 * one.std()
    with watched(simulated) as ours, watched(fast) as theirs:
        simulated.observe(IMAGES), fast.observe(IMAGES)
    assert set(ours) == set(theirs)
    for name in ours:
        a, b = ours[name][0], theirs[name][0]
        grid = points(simulated)[name].grid
        assert a.shape == b.shape and len(ours[name]) == len(theirs[name]) == 1
        if grid is not None:
            assert (grid.encode(a) != grid.encode(b)).float().mean() < 0.05, name


def test_watching_a_point_inside_a_fused_mlp(model):
    simulated, fast = (quantize(model, Recipe(), IMAGES, backend=b) for b in ("simulate", "int8"))
    for name in ("blocks.0.mlp.fc1.input", "blocks.0.mlp.fc2.input", "patch_embed.proj.input"):
        seen = []
        for m in (simulated, fast):
            points(m)[name].seen = []
            m(IMAGES)
            seen.append(points(m)[name].seen)
            points(m)[name].seen = None
        assert len(seen[0]) == len(seen[1]) == 1
        close(seen[1][0], seen[0][0], 1e-2)
    before = fast(IMAGES)
    with watched(fast):
        close(fast(IMAGES), before, 2e-2)
    checks.equal(fast(IMAGES), before)


def test_the_class_row_alone_is_the_row_of_all(both):
    _, fast = both
    one = fast(IMAGES)
    fast.last = "full"
    close(fast(IMAGES), one, 1e-2)
    fast.last = "class"


def test_maps_and_reducers(both):
    _, fast = both
    trace = labkit.trace(fast, IMAGES)
    checks.rows_sum_to_one(trace.attention[0], 0.2)
    slim = tokens.attach(fast, tokens.Merge(4), [0, 1])
    seen = slim.observe(IMAGES)
    assert [step.x.shape[1] for step in seen.steps] == [21, 17, 17] and seen.logits.isfinite().all()
    assert slim(IMAGES).isfinite().all() and fast(IMAGES).shape == (6, 5)


@pytest.mark.parametrize("name", ["W8/A8", "tokens", "rotated"])
def test_copies_and_other_precisions_keep_their_kernels(name, model):
    fast = quantize(model, RECIPES[name], IMAGES, backend="int8")
    before = fast(IMAGES)
    packed = copy.deepcopy(fast)
    checks.equal(packed(IMAGES), before)
    assert all(isinstance(layer.kernel, Int8Kernel) for layer in layers(packed).values())
    stream = io.BytesIO()
    torch.save(fast, stream)
    stream.seek(0)
    checks.equal(torch.load(stream, weights_only=False)(IMAGES), before)
    for precision in (torch.float64, torch.float16):
        moved = copy.deepcopy(fast).to(precision)
        out = moved(IMAGES.to(precision))
        assert out.dtype == precision and all(layer.kernel is not None for layer in layers(moved).values())
        assert (out.float() - before).abs().max() < before.abs().max()
    double = copy.deepcopy(fast).double()
    close(double(IMAGES.double()).float(), before, 2e-2)


def test_the_original_and_the_simulation_are_left_alone(model):
    state = copy.deepcopy(model.state_dict())
    simulated = quantize(model, Recipe(), IMAGES)
    before = simulated(IMAGES)
    fast = quantize(model, Recipe(), IMAGES, backend="int8")
    fast(IMAGES)
    checks.equal(simulated(IMAGES), before)
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert not any(layer.kernel for layer in layers(simulated).values())
    assert not fast.training and all(type(block.mlp) is MLP for block in simulated.blocks)


@pytest.mark.parametrize("shape", [(1, 32, 48), (0, 32, 48), (5, 64, 32)])
def test_batches_and_sizes(shape, both):
    simulated, fast = both
    x = torch.rand(shape[0], 3, *shape[1:], generator=torch.Generator().manual_seed(3))
    out = fast(x)
    assert out.shape == (shape[0], 5) and out.isfinite().all()
    if shape[0]:
        assert (out - simulated(x)).abs().mean() < 0.1 * simulated(x).std(unbiased=False)


# --- what kernels cannot do ---------------------------------------------------------------------------------
def test_without_a_kernel_the_numbers_are_the_same(both, monkeypatch, request):
    _, fast = both
    before, slow = fast(IMAGES), copy.deepcopy(fast)
    monkeypatch.setattr(kernels, "available", lambda device="cpu": SENTENCE)
    counting = [layer for layer in layers(slow).values() if layer.kernel is not None]
    if "tokens" in request.node.name:  # torch's own product of integers is everywhere
        slow.to("cpu")
    else:
        with pytest.warns(UserWarning, match="a test took it away"):
            slow.to("cpu")  # wherever a model goes, its kernels are made anew
        assert all(layer.kernel.pack().weight is None for layer in counting)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # parts of a layer are packed when they are asked for
        after = slow(IMAGES)
    assert (after - before).abs().mean() < 0.05 * before.std()


def test_a_missing_kernel_is_told_when_the_model_is_made(model, monkeypatch):
    monkeypatch.setattr(kernels, "available", lambda device="cpu": SENTENCE)
    with pytest.warns(UserWarning, match="a test took it away"):
        fast = quantize(model, Recipe(), IMAGES, backend="int8")
    simulated = quantize(model, Recipe(), IMAGES)
    assert (fast(IMAGES) - simulated(IMAGES)).abs().mean() < 0.05 * simulated(IMAGES).std()


@pytest.mark.parametrize(
    "recipe, sentence",
    [
        (Recipe(16, 8), r"blocks\.0\.attn\.qkv cannot run on int8 kernels: its weights are on no symmetric grid"),
        (Recipe(8, 8, symmetric=False), "its weights are on no symmetric grid"),
        (Recipe("e4m3", 8), "its weights are on no symmetric grid"),
        (Recipe(8, 8, per=8), r'a scale for each group of inputs.*per="channel"'),
        (Recipe(8, None), "its inputs are on no uniform grid of at most 8 bits"),
        (Recipe(8, 16), "its inputs are on no uniform grid"),
        (Recipe(8, "e5m2"), "its inputs are on no uniform grid"),
        (Recipe(8, 8, gelu="twin"), r"mlp\.fc2 cannot run.*inputs are on no uniform"),
        (Recipe(8, 4, per_token=True), "grids of 8 bits there, not of 4"),
        (Recipe(8, 8, layers={"head": (4, None)}), "head cannot run"),
    ],
)
def test_what_kernels_cannot_run_is_refused(recipe, sentence, model):
    with pytest.raises(LabkitError, match=sentence):
        quantize(model, recipe, IMAGES, backend="int8")


def test_layers_that_are_not_rounded_stay_in_float(model):
    for recipe in (
        Recipe(None, None),
        Recipe(8, 8, ends=None),
        Recipe(8, 8, layers={"blocks.1.mlp.fc1": (None, None)}),
    ):
        simulated, fast = (quantize(model, recipe, IMAGES, backend=b) for b in ("simulate", "int8"))
        assert (fast(IMAGES) - simulated(IMAGES)).abs().mean() < 0.05 * simulated(IMAGES).std()
        for layer in layers(fast).values():
            assert (layer.kernel is None) == (layer.codes is None)
    assert type(fast.blocks[1].mlp) is MLP and type(fast.blocks[0].mlp) is Int8MLP


def test_only_plain_mlps_are_fused():
    class Tanh(MLP):
        pass

    mlps = [MLP(32, 64), MLP(32, 64, nn.ReLU), MLP(32, 64, lambda: nn.GELU("tanh")), GatedMLP(32, 24), Tanh(32, 64)]
    normed = MLP(32, 64)
    normed.norm = nn.LayerNorm(64)
    model = ViT((32, 48), 8, 5, dim=32, depth=6, heads=2).eval()
    for block, mlp in zip(model.blocks, [*mlps, normed], strict=True):
        block.mlp = mlp
    simulated, fast = (quantize(model, Recipe(), IMAGES, backend=b) for b in ("simulate", "int8"))
    assert [type(block.mlp) is Int8MLP for block in fast.blocks] == [True, False, False, False, False, False]
    assert (fast(IMAGES) - simulated(IMAGES)).abs().mean() < 0.05 * simulated(IMAGES).std()


def test_a_head_that_pools_stays_in_float():
    model = ViT.from_timm(build("vit without class token"))
    simulated, fast = (quantize(model, Recipe(), IMAGES, backend=b) for b in ("simulate", "int8"))
    assert untouched(fast) == untouched(simulated) and "attn_pool.mlp.fc1" in untouched(fast)
    assert type(fast.attn_pool.mlp) is MLP
    assert (fast(IMAGES) - simulated(IMAGES)).abs().mean() < 0.05 * simulated(IMAGES).std()


def test_pixels_that_are_nan_are_refused(both):
    """The kernels' own codes of NaN are any codes; whoever cuts the patches looks."""
    spoiled = IMAGES.clone()
    spoiled[-1, 2, 31, 47] = torch.nan
    for small in both:
        with pytest.raises(LabkitError, match="NaN"):
            small(spoiled)
        with watched(small), pytest.raises(LabkitError, match="NaN"):
            small(spoiled)
