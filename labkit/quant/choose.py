"""Which grid a recipe lays over what was seen, and which codes it gives a weight."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from labkit.quant import calibrate
from labkit.quant.grids import FLOAT8, Float8, Grid, Uniform
from labkit.quant.layers import RoundedLinear, WeightGrid
from labkit.quant.log_grids import fit_ada_log, log2_grid, log_sqrt2_grid
from labkit.quant.recipe import Bits, Recipe
from labkit.quant.reconstruct import adaptive_rounding
from labkit.quant.warped_grids import Tangent, fit_twin
from labkit.quant.weights import gptq, layer_hessian, weight_grid

TANGENTS = tuple(i / 10 for i in range(16))  # the warps that are tried
LOG_BASES = (9, 19, 37)  # q of the base 2^(q/37) where the search begins
SAMPLE = 2**18  # numbers that a search for a grid looks at, beside the two extremes


def settle(layer: RoundedLinear, name: str, recipe: Recipe, seen: list[Tensor]) -> None:
    """The grid of the input, then the codes of the weight, then what both do to the bias on average."""
    weights, activations = recipe.bits(name, end=not name.startswith("blocks."))
    before = layer.weight.detach()
    x = torch.cat([before.new_zeros(0, layer.in_features), *(s.flatten(0, -2) for s in seen)])
    if activations is not None:
        twin = recipe.gelu == "twin" and name.endswith("mlp.fc2") and isinstance(activations, int)
        if recipe.per_token and isinstance(activations, int):
            layer.input.token_bits = activations
        else:
            layer.input.grid = fit_twin(sample(x), activations) if twin else activation_grid(seen, activations, recipe)  # type: ignore[arg-type]
    rounded = layer.input(x)
    if weights is not None:
        grid = _weight_grid(before, weights, recipe)
        layer.freeze(grid, _rounded(before, rounded, grid, recipe))
    if recipe.correct_bias and (weights is not None or activations is not None):
        lost = before @ x.mean(dim=0) - layer.weight @ rounded.mean(dim=0)
        layer.bias = nn.Parameter(lost if layer.bias is None else layer.bias + lost)


def _weight_grid(weight: Tensor, bits: Bits, recipe: Recipe) -> WeightGrid:
    if isinstance(bits, int):
        return weight_grid(weight, bits, recipe.per, recipe.symmetric)
    return _float8(weight.abs().amax(dim=1, keepdim=True), bits)


def _rounded(weight: Tensor, inputs: Tensor, grid: WeightGrid, recipe: Recipe) -> Tensor:
    """The weight's values on its grid, or near enough to be rounded to them."""
    if recipe.rounding == "nearest" or not isinstance(grid, Uniform):
        return weight
    if recipe.rounding == "gptq":
        return gptq(weight, layer_hessian(inputs), grid)[0]
    return adaptive_rounding(weight, layer_hessian(inputs), grid)


def activation_grid(seen: list[Tensor], bits: Bits, recipe: Recipe) -> Grid:
    """The grid of 2^bits levels that the recipe's rule lays over what was seen."""
    if not isinstance(bits, int):
        return _float8(torch.stack([s.abs().max() for s in seen]).max(), bits)
    rule: Callable[..., calibrate.Range] = getattr(calibrate, recipe.clip)
    searched = recipe.clip in ("percentile", "mse")  # the other rules read every number at little cost
    return Uniform.of(*rule(sample(_joined(seen)) if searched else seen, bits), bits)


def sample(x: Tensor) -> Tensor:
    """At most SAMPLE numbers of x at even strides, then its smallest and its largest; all of x where it is no longer.

    A stride that shares a divisor with the size of an axis would see some of its channels only; this one sees all.
    """
    x = x.flatten()
    stride = math.ceil(len(x) / SAMPLE)
    while math.gcd(stride, len(x)) > 1:
        stride += 1
    return x if stride == 1 else torch.cat([x[::stride], *x.aminmax(dim=0, keepdim=True)])


def _float8(largest: Tensor, kind: Bits) -> Float8:
    assert kind == "e4m3" or kind == "e5m2"
    scale = largest / FLOAT8[kind][2]
    return Float8(kind, torch.where(scale > 0, scale, 1.0))


def softmax_grid(seen: list[Tensor], bits: int, recipe: Recipe) -> Grid:
    """The grid of probabilities: always from 0, and fitted where the kind has something to fit."""
    attn = _joined(seen)
    top, few = attn.max(), sample(attn)
    if recipe.softmax == "log2":
        return log2_grid(bits, top)
    if recipe.softmax == "log_sqrt2":
        return log_sqrt2_grid(bits, top)
    if recipe.softmax == "adalog":
        return fit_ada_log(few, bits, list(LOG_BASES), [float(top)])
    if recipe.softmax == "twin":
        return fit_twin(few, bits)
    if recipe.softmax == "tangent":
        grids = [Tangent(bits, a, top) for a in TANGENTS]
        return min(grids, key=lambda grid: float((grid.round(few) - few).square().mean()))
    return activation_grid(seen, bits, recipe)


def _joined(seen: list[Tensor]) -> Tensor:
    """Batches may differ in how many tokens a reducer left them."""
    return torch.cat([s.flatten() for s in seen])
