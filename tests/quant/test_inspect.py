"""Inspections: what is counted is there, what is cut off is told, and what is called lost is the error."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from labkit.errors import LabkitError
from labkit.mlp import SplitGatedMLP
from labkit.quant import Recipe, points, quantize
from labkit.quant.fold import channel_grid
from labkit.quant.grids import Binary, Float8, Uniform
from labkit.quant.inspect import BINS, inspect, inspect_model, sqnr_db
from labkit.quant.log_grids import AdaLog, ShiftedLog, log2_grid
from labkit.quant.rotation import rotate
from labkit.quant.warped_grids import Tangent, Twin
from labkit.quant.weights import weight_grid
from labkit.vit import ViT
from tests import checks
from tests.weights import normal, randomized

X = normal(5, 40, 8)
ROWS = X.flatten(0, 1)
GRIDS = {
    "uniform": Uniform.of(X.amin(), X.amax(), 4),
    "narrow": Uniform.of(-0.5, 0.8, 3),
    "symmetric": Uniform.of(-2.0, 5.0, 4, symmetric=True),
    "per channel": Uniform.of(X.amin((0, 1)), X.amax((0, 1)), 3),
    "off zero": channel_grid(X.amin((0, 1)) + 9, X.amax((0, 1)) + 9, 4),
    "per token": Uniform.of(X.amin(2, keepdim=True), X.amax(2, keepdim=True), 2),
    "binary": Binary.of(X),
    "binary channels": Binary.of(X, dim=(0, 1)),
    "log2": log2_grid(4),
    "log2, many": log2_grid(8),
    "adalog": AdaLog(5, 13, scale=X.amax()),
    "shifted": ShiftedLog.of(0.0, 1.0, 5, 2.0**-9),
    "shifted channels": ShiftedLog.of(torch.zeros(8), 4.0 ** torch.arange(-3, 5), 3, 1e-3),
    "tangent": Tangent(4, 1.2),
    "twin": Twin.of(-0.17, 5.0, 4, 4),
    "twin channels": Twin.of(-0.2 * X.abs().amax((0, 1)), X.abs().amax((0, 1)), 8, 4),
    "float8": Float8("e4m3"),
    "float8 channels": Float8("e5m2", X.abs().amax((0, 1)) / 57344),
}
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)


@every_grid
def test_every_grid_is_counted_as_by_hand(grid):
    """One number after the other, and one scale after the other."""
    found, rounded = inspect(X, grid), grid.round(X)
    checks.equal(found.error, rounded - X, 1e-6)
    assert found.max_error == pytest.approx(float((rounded - X).abs().max()), abs=1e-6)
    assert found.sqnr_db == pytest.approx(
        float(10 * (X.square().sum() / (rounded - X).square().sum()).log10()), rel=1e-5
    )
    levels = grid.levels()
    each = levels.reshape(len(levels), *[1] * (4 - levels.ndim), *levels.shape[1:]).expand(-1, *X.shape)
    columns = {tuple(column.tolist()) for column in each.flatten(1).T.unbind()}
    assert {tuple(column.tolist()) for column in found.levels.T.unbind()} == columns
    assert found.there == sum(len(set(column)) for column in columns)
    values = grid.decode(grid.encode(X)).flatten().tolist()
    pairs = {(tuple(c.tolist()), v) for c, v in zip(each.flatten(1).T.unbind(), values, strict=True)}
    assert found.used == len(pairs) <= found.there
    checks.equal([found.low, found.high], [found.levels[0], found.levels[-1]])


@every_grid
def test_what_is_cut_off_errs_by_more_than_half_the_last_step(grid):
    found, levels = inspect(X, grid), grid.levels().flatten(1) if grid.levels().ndim > 1 else grid.levels()[:, None]
    ends = [(sorted(set(c.tolist()))[:2], sorted(set(c.tolist()))[-2:]) for c in levels.T.unbind()]
    shape = grid.levels().shape[1:]
    first, second = (torch.tensor([e[0][i] for e in ends], dtype=X.dtype).reshape(shape) for i in (0, 1))
    before, last = (torch.tensor([e[1][i] for e in ends], dtype=X.dtype).reshape(shape) for i in (0, 1))
    beyond = ((first - X) > 0.50005 * (second - first)) | ((X - last) > 0.50005 * (last - before))
    assert found.clipped == beyond.double().mean()


def test_extremes_are_cut_off_nowhere_and_a_narrow_range_cuts_its_share():
    assert inspect(X, GRIDS["uniform"]).clipped == 0 == inspect(X, GRIDS["per channel"]).clipped
    x = torch.linspace(-1, 1, 2001)
    narrow = inspect(x, Uniform.of(-0.5, 0.5, 8, symmetric=True))
    assert narrow.clipped == pytest.approx(0.5, abs=0.01) and narrow.max_error == pytest.approx(0.5)
    assert (narrow.low, narrow.high) == (-0.5, 0.5)


@pytest.mark.parametrize("bits", range(4, 11))
def test_a_bit_more_is_six_decibels_more(bits):
    """A uniform distribution of range 1 has the variance 1/12, its rounding error step²/12."""
    x = torch.linspace(-1, 1, 200_001, dtype=torch.float64)
    few, many = (inspect(x, Uniform.of(-1.0, 1.0, b)) for b in (bits, bits + 1))
    assert many.sqnr_db - few.sqnr_db == pytest.approx(20 * math.log10(2), abs=0.6)
    assert many.sqnr_db == pytest.approx(20 * math.log10(2 ** (bits + 1)), abs=0.3)
    assert many.there - 1 <= many.used <= many.there == 2 ** (bits + 1)


def test_the_histogram_holds_every_number():
    found = inspect(X, GRIDS["narrow"])
    assert found.counts.sum() == X.numel() and found.counts.shape == (BINS,) and found.edges.shape == (BINS + 1,)
    assert (found.edges[0], found.edges[-1]) == (X.min(), X.max())
    middle = X.clamp(found.edges[40], found.edges[70]) == X
    assert abs(int(found.counts[40:70].sum()) - int(middle.sum())) <= 1


def test_neighbours_that_share_a_scale_are_one():
    weight = normal(6, 32)
    found = inspect(weight, weight_grid(weight, 3, per=8))
    assert found.levels.shape == (8, 24) and found.there == 8 * 24
    assert inspect(weight, weight_grid(weight, 3)).levels.shape == (8, 6)


def test_what_rounded_may_be_another_than_the_grid():
    grid = Uniform.of(-3.0, 3.0, 3)
    other = grid.round(X + 0.7)
    found = inspect(X, grid, other)
    checks.equal(found.error, other - X, 1e-6)
    assert found.used == other.unique().numel() and found.sqnr_db < inspect(X, grid).sqnr_db


@pytest.mark.parametrize("value, there", [(1.0, True), (0.3, True), (0.0, True), (-7.0, True)])
def test_constant_numbers_lose_nothing_on_a_grid_of_their_own(value, there):
    x = torch.full((3, 4), value)
    found = inspect(x, Uniform.of(x.amin(), x.amax(), 4))
    assert found.sqnr_db == math.inf and found.max_error == 0 and found.clipped == 0 and found.used == 1
    assert found.counts.sum() == 12 and found.counts.max() == 12 and found.edges.diff().min() > 0
    assert "inf dB" in repr(found)


def test_zeros_on_a_grid_without_zero_are_all_noise():
    assert inspect(torch.zeros(4), Binary(torch.tensor(1.0))).sqnr_db == -math.inf
    assert sqnr_db(torch.ones(2), torch.zeros(2)) == math.inf and sqnr_db(torch.ones(2), torch.ones(2)) == 0


def test_half_precision_is_inspected_in_single():
    found = inspect(X.bfloat16(), Uniform.of(-4.0, 4.0, 12))
    assert found.error.dtype == torch.float32 and found.sqnr_db > 60


def test_it_says_what_it_found():
    assert repr(inspect(torch.linspace(0, 1, 101), Uniform.of(0.0, 0.75, 2))) == (
        "4 of 4 levels used, 12.87% cut off, 15.6 dB, largest error 0.25"
    )
    assert "of 8 scales used" in repr(inspect(X, GRIDS["per channel"]))


@pytest.fixture(scope="module")
def model():
    return randomized(ViT(16, 4, 5, dim=32, depth=2, heads=2)).float()


IMAGES = normal(70, 3, 16, 16).float()


def test_a_model_is_inspected_at_all_its_points_and_weights(model):
    small = quantize(model, Recipe(4, 4, attention=4, softmax="log2"), IMAGES)
    found = inspect_model(small, IMAGES, model)
    assert list(inspect_model(small, IMAGES)) == list(points(small))
    weights = [name for name in found if name not in points(small)]
    assert weights == [f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert found["blocks.1.attn.softmax"].error.shape == (70, 2, 17, 17)
    assert found["blocks.1.mlp.fc2.input"].error.shape == (70, 17, 128)
    layer = small.blocks[1].mlp.fc1
    checks.equal(found["blocks.1.mlp.fc1.weight"].error, layer.weight - model.blocks[1].mlp.fc1.weight)
    assert found["blocks.1.mlp.fc1.weight"].levels.shape == (15, 128)
    assert all(point.seen is None for point in points(small).values()) and small.last == "class"
    with torch.no_grad():
        x = model.embed(IMAGES)[0]
    assert found["blocks.0.attn.qkv.input"].sqnr_db < found["patch_embed.proj.input"].sqnr_db
    assert x.shape[1] == 17


def test_points_without_a_grid_are_left_out_and_tokens_have_their_own(model):
    found = inspect_model(quantize(model, Recipe(8, 4, per_token=True), IMAGES[:3]), IMAGES[:3])
    assert not any("softmax" in name for name in found)
    assert found["blocks.1.attn.qkv.input"].levels.shape == (15, 51)
    assert inspect_model(quantize(model, Recipe(4, None, ends=None), IMAGES), IMAGES) == {}


def test_weights_are_compared_with_those_that_were_rounded(model):
    rotated = inspect_model(quantize(model, Recipe(8, 8, fold="rotate"), IMAGES), IMAGES, model)
    assert rotated["blocks.0.mlp.fc1.weight"].sqnr_db > 35
    folded = inspect_model(quantize(model, Recipe(8, 8, fold="channels"), IMAGES), IMAGES, model)
    assert {"blocks.0.attn.qkv.weight", "blocks.1.mlp.fc1.weight"}.isdisjoint(folded)
    assert folded["blocks.0.mlp.fc2.weight"].sqnr_db > 35 and folded["head.weight"].sqnr_db > 35
    repaired = inspect_model(quantize(model, Recipe(3, 8, rounding="gptq"), IMAGES), IMAGES, model)
    nearest = inspect_model(quantize(model, Recipe(3, 8), IMAGES), IMAGES, model)
    assert all(repaired[name].sqnr_db <= nearest[name].sqnr_db + 1e-6 for name in repaired if name.endswith("weight"))
    assert repaired["blocks.0.mlp.fc1.weight"].sqnr_db < nearest["blocks.0.mlp.fc1.weight"].sqnr_db


def test_a_gate_of_its_own_is_folded_too():
    gated = ViT(16, 4, 5, dim=32, depth=1, heads=2)
    gated.blocks[0].mlp = SplitGatedMLP(32, 24)
    gated = randomized(gated).float()
    found = inspect_model(quantize(gated, Recipe(8, 8, fold="smooth"), IMAGES), IMAGES, gated)
    assert [n for n in found if n.endswith("weight")] == [
        f"{n}.weight" for n in ("patch_embed.proj", "blocks.0.attn.proj", "blocks.0.mlp.fc2", "head")
    ]


def test_what_cannot_be_inspected_is_a_sentence(model):
    grid, small = GRIDS["uniform"], quantize(model, Recipe(), IMAGES)
    wider = randomized(ViT(16, 4, 5, dim=64, depth=2, heads=2)).float()
    for call, sentence in (
        (lambda: inspect(torch.zeros(0), grid), "The tensor is empty"),
        (lambda: inspect(torch.tensor([1.0, torch.nan]), grid), "The tensor holds NaN"),
        (lambda: inspect(torch.tensor([1.0, torch.inf]), grid), "The tensor holds infinity"),
        (lambda: inspect(torch.ones(8), GRIDS["per token"]), r"The grid makes \(5, 40, 8\) of numbers \(8,\)"),
        (lambda: inspect_model(small, IMAGES[:0]), "There are no images"),
        (lambda: inspect_model(small, IMAGES, wider), "The model has no layer .* of this size"),
    ):
        with pytest.raises(LabkitError, match=sentence):
            call()


def test_rotated_weights_are_those_of_the_rotated_matrix(model):
    small = quantize(model, Recipe(8, 8, fold="rotate"), IMAGES)
    found = inspect_model(small, IMAGES, model)["blocks.1.attn.proj.weight"]
    checks.equal(found.error, small.blocks[1].attn.proj.weight - rotate(model.blocks[1].attn.proj.weight), 1e-7)
