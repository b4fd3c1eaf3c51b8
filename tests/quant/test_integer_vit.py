"""A ViT in whole numbers: no float on the way, the answers of the quantized model, and a sentence for every other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import labkit
from labkit import data
from labkit.errors import LabkitError
from labkit.layers import LayerScale
from labkit.mlp import GatedMLP
from labkit.quant.float_walk import FloatWalk
from labkit.quant.grids import Uniform
from labkit.quant.integer_layers import IntegerLinear, Span
from labkit.quant.integer_vit import IntegerViT
from labkit.quant.layers import RoundedLinear
from labkit.quant.model import quantize
from labkit.quant.recipe import Recipe
from labkit.vit import ViT
from tests import checks
from tests.weights import normal, randomized

BITS = Recipe(attention=8)


def small(change=lambda model: None, **kwargs) -> ViT:
    model = ViT(16, 4, 7, 32, 2, 2, **kwargs)
    change(model)
    return randomized(model)


def images(count: int = 32) -> torch.Tensor:
    """Pixels from -1 to 1, so that the grid has a zero point."""
    return 2 * torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1


def away(a: torch.Tensor, b: torch.Tensor) -> float:
    """The difference beside what tells one image from another: 1 for a model that does not look, √2 for another."""
    return ((a - b).norm() / (b - b.mean(dim=0)).norm()).item()


def qk_norm(model: ViT) -> None:
    for block in model.blocks:
        block.attn.q_norm, block.attn.k_norm = nn.LayerNorm(16), nn.LayerNorm(16)


def pooled_norm(model: ViT) -> None:
    model.norm, model.fc_norm = nn.Identity(), nn.LayerNorm(32)


def gains_of_every_sign(model: ViT) -> None:
    for block in model.blocks:
        block.ls1.gamma.data.copy_(torch.linspace(-1, 1, 32))
        block.ls2.gamma.data[::3] = 0


PLAIN = {
    "class token": {},
    "mean": {"pool": "avg"},
    "registers": {"registers": 3},
    "mean beside registers": {"pool": "avg", "registers": 8},
    "mean of all": {"pool": "avg", "registers": 8, "change": lambda model: setattr(model, "pools_prefix", True)},
    "positions for patches alone": {"prefix_positions": False, "registers": 2},
    "no positions": {"positions": False},
    "LayerScale": {"layer_scale": 0.5, "change": gains_of_every_sign},
    "qk-norm": {"change": qk_norm},
    "a norm behind the mean": {"change": pooled_norm, "pool": "avg"},
}


@pytest.mark.paper("S015")
@pytest.mark.parametrize("kwargs", PLAIN.values(), ids=PLAIN)
def test_it_answers_as_the_quantized_model_and_touches_no_float(kwargs):
    model, x = small(**kwargs), images()
    quantized = quantize(model, BITS, x)
    whole = IntegerViT(quantized, x)
    codes = whole.encode(x)
    with FloatWalk() as walk:
        logits = whole(codes)
    assert not walk.floating and walk.all.total() > 500
    assert logits.dtype == torch.int32 and codes.dtype == torch.uint8
    with torch.no_grad():
        rounded, exact = quantized(x), model(x)
    assert away(logits * whole.scale, rounded) < 0.15
    assert away(logits * whole.scale, exact) < 2 * away(rounded, exact)


@pytest.mark.parametrize(
    "recipe",
    [Recipe(6, 6, attention=6), replace(BITS, per="tensor", fold="smooth"), replace(BITS, fold="channels")],
    ids=Recipe.describe,
)
def test_fewer_bits_and_folded_norms_run_as_well(recipe):
    model, x = small(), images()
    quantized = quantize(model, recipe, x)
    whole = IntegerViT(quantized, x)
    with torch.no_grad():
        assert away(whole(whole.encode(x)) * whole.scale, quantized(x)) < 0.5


def test_a_model_on_int8_kernels_gives_the_same_integers_but_for_how_far_it_was_seen_to_reach():
    model, x = small(), images()
    first, second = (IntegerViT(quantize(model, BITS, x, backend=b), x) for b in ("simulate", "int8"))
    assert second.scale == pytest.approx(first.scale, rel=0.05)
    assert away(second(second.encode(x)) * second.scale, first(first.encode(x)) * first.scale) < 0.1


@pytest.mark.paper("S015")
@pytest.mark.parametrize(("name", "count"), [("shapes-vit", 8), ("digits-vit", 24)])
def test_the_shipped_models_keep_their_answers(name, count):
    shown = data.shapes("test", count) if name == "shapes-vit" else data.digits("val")[:count]
    seen = data.shapes("train", 32) if name == "shapes-vit" else data.digits("train")[:32]
    model = labkit.load(name)
    quantized = quantize(model, BITS, seen.images)
    whole = IntegerViT(quantized, seen.images)
    logits = whole(whole.encode(shown.images))
    with torch.no_grad():
        rounded = quantized(shown.images)
    assert (logits.argmax(dim=1) == rounded.argmax(dim=1)).double().mean() > 0.95
    assert away(logits * whole.scale, rounded) < 0.06


def test_the_same_codes_give_the_same_integers_whoever_is_beside_them():
    x = images()
    whole = IntegerViT(quantize(small(), BITS, x), x)
    logits = whole(whole.encode(x))
    checks.equal(whole(whole.encode(x)), logits)
    checks.equal(torch.cat([whole(part) for part in whole.encode(x).split(5)]), logits)


def test_no_float_is_kept_but_the_scales_of_the_two_ends():
    found: list[str] = []

    def walk(thing: object, name: str) -> None:
        if isinstance(thing, float) or (isinstance(thing, torch.Tensor) and thing.is_floating_point()):
            found.append(name)
        elif isinstance(thing, list | tuple):
            for part in thing:
                walk(part, name)
        elif hasattr(thing, "__dict__"):
            for key, part in vars(thing).items():
                walk(part, f"{name}.{key}")

    x = images()
    walk(IntegerViT(quantize(small(qk_norm), BITS, x), x), "whole")
    assert sorted(found) == ["whole.pixels.scale", "whole.scale"]


@torch.no_grad()
def layer(weight: torch.Tensor, bias: torch.Tensor | None) -> tuple[RoundedLinear, torch.Tensor]:
    """A frozen layer and the steps of its inputs."""
    linear = nn.Linear(*weight.mT.shape, bias=bias is not None).double()
    linear.weight.copy_(weight)
    if bias is not None:
        linear.bias.copy_(bias)
    rounded = RoundedLinear(linear)
    x = normal(40, weight.shape[1]) + 0.5
    rounded.input.grid = Uniform.of(*x.aminmax(), bits=8)
    rounded.freeze(Uniform.of(*weight.aminmax(dim=1, keepdim=True), bits=8, symmetric=True))
    return rounded, rounded.input.grid.steps(x).int()


@pytest.mark.parametrize("biased", [True, False])
def test_a_layer_is_its_float_self_to_half_a_code(biased):
    """With LayerScale of both signs and zero, a dead channel whose bias lives, and one far outside the others."""
    weight, bias = normal(9, 16), normal(9, 1)[:, 0] if biased else None
    weight[3], weight[4], weight[5] = 0, weight[4] * 1e-12, weight[5] * 1e4
    gain = LayerScale(9).double()
    gain.gamma.data.copy_(torch.linspace(-1, 1, 9).where(torch.arange(9) != 5, 1e-4))
    rounded, steps = layer(weight, bias)
    with torch.no_grad():
        exact = gain(rounded(steps * rounded.input.grid.scale))
    assert (gain.gamma == 0).any()
    for rows in (slice(None), slice(2, 6)):
        gains = LayerScale(9).double()
        gains.gamma = nn.Parameter(gain.gamma[rows])
        for to in (Span.wide(float(exact.abs().max())), Span(0.01, -20, 235)):
            expected = (exact[:, rows] / to.scale).clamp(to.low, to.high)
            checks.equal(IntegerLinear(rounded, to, gains, rows)(steps), expected, 0.5 + 1e-4)


class Still(nn.Module):
    """The least of all mixers."""

    def forward(self, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        return x


REFUSED = {
    "blocks.1.attn is Still and not RoundedAttention": (lambda m: setattr(m.blocks[1], "attn", Still()), BITS),
    r"blocks.0.attn is Attention and not RoundedAttention": (None, Recipe()),
    "blocks.0.mlp is GatedMLP and not MLP": (lambda m: setattr(m.blocks[0], "mlp", GatedMLP(32, 64)), BITS),
    "blocks.1.mlp.act is ReLU and not GELU": (lambda m: setattr(m.blocks[1].mlp, "act", nn.ReLU()), BITS),
    "norm_pre is LayerNorm and not Identity": (lambda m: setattr(m, "norm_pre", nn.LayerNorm(32)), BITS),
    "blocks.0.norm2 is RMSNorm and not LayerNorm": (lambda m: setattr(m.blocks[0], "norm2", nn.RMSNorm(32)), BITS),
    "proj has no integer form: its tokens find": (None, replace(BITS, per_token=True)),
    "attn.softmax is on no uniform grid": (None, replace(BITS, softmax="log2")),
    "attn.q is on no uniform grid of at most 8 bits": (None, Recipe(attention=12)),
    "mlp.fc2 has no integer form: its inputs are on no uniform grid": (None, replace(BITS, gelu="twin")),
    "proj has no integer form: its weights are on no symmetric": (None, replace(BITS, ends=None)),
    "weights have a scale for each group": (None, replace(BITS, per=8)),
    "its inputs are rotated": (None, replace(BITS, fold="rotate")),
    "takes the mean of its keys away": (None, replace(BITS, centred=True)),
}


@pytest.mark.parametrize(("change", "recipe"), REFUSED.values(), ids=REFUSED)
def test_what_it_cannot_run_is_refused_with_a_sentence(change, recipe, request):
    x = images(4)
    quantized = quantize(small(change or (lambda model: None)), recipe, x)
    with pytest.raises(LabkitError, match=request.node.callspec.id):
        IntegerViT(quantized, x)


def test_other_models_and_inputs_are_refused_with_a_sentence():
    x = images(4)
    with pytest.raises(LabkitError, match="Linear is no labkit ViT"):
        IntegerViT(nn.Linear(3, 3), x)
    quantized = quantize(small(), BITS, x)
    with pytest.raises(LabkitError, match="there are none"):
        IntegerViT(quantized, x[:0])
    whole = IntegerViT(quantized, x)
    for wrong in (x, whole.encode(x).int(), whole.encode(x)[..., :8], whole.encode(x)[0]):
        with pytest.raises(LabkitError, match=r"expected uint8 of shape \(batch, 3, 16, 16\)"):
            whole(wrong)


def test_making_it_leaves_the_quantized_model_as_it_was():
    x = images(8)
    quantized = quantize(small(), BITS, x)
    before = quantized(x)
    IntegerViT(quantized, x)
    assert not any(module._forward_pre_hooks for module in quantized.modules())
    checks.equal(quantized(x), before)
