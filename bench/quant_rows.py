"""The rows of the price tables of bits: which model, how many bits, and what makes the model with few bits.

Whatever was chosen by trying (the clip, the kind of softmax grid, the training) was tried on other training images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from bench.quant_case import CHOICES, PLANTED, SEEDS, Case, Make, made, only, rebuilt, trained, trained_on
from labkit.quant import Recipe, quantize
from labkit.quant.sensitivity import greedy_bits
from labkit.vit import ViT

BITS = ((4, 4), (3, 3), (4, 8), (6, 6), (8, 8))  # weights / activations, and as many in attention


@dataclass(frozen=True)
class Row:
    table: str
    model: str
    bits: str
    method: str
    make: Make
    seeds: tuple[int, ...] = SEEDS


def seeds_of(recipe: Recipe) -> tuple[int, ...]:
    """Weights that are rounded to the nearest level ask no calibration image, and every seed would say the same."""
    return SEEDS if recipe.activations is not None or recipe.rounding != "nearest" else SEEDS[:1]


def fitted_recipe(weights: int, activations: int) -> Recipe:
    return Recipe(weights, activations, activations, clip="mse", fold="channels", softmax="adalog")


def ladder(weights: int, activations: int) -> dict[str, Make]:
    """Each keeps what those before it do, but of the two clips and of the two grids of attention the second stays."""
    base = Recipe(weights, activations, activations)
    clipped = replace(base, clip="mse")
    fitted = fitted_recipe(weights, activations)
    return {
        "per tensor, min-max": made(replace(base, per="tensor")),
        "per channel, min-max": made(base),
        "+ percentile clip": made(replace(base, clip="percentile")),
        "+ mse clip": made(clipped),
        "+ folded channels": made(replace(clipped, fold="channels")),
        "+ log sqrt2 attention": made(replace(fitted, softmax="log_sqrt2")),
        "+ fitted attention": made(fitted),
        "+ GPTQ": made(replace(fitted, rounding="gptq")),
    }


def learned(bits: int) -> dict[str, Make]:
    """Both begin at the fitted grids."""
    fitted = fitted_recipe(bits, bits)
    return {"+ rebuilt blocks": rebuilt(fitted), "+ training": trained(fitted)}


BASE = Recipe(4, 4, 4, clip="mse")
ALONE = {  # each added to BASE alone
    "nothing": BASE,
    "fold: channels": replace(BASE, fold="channels"),
    "fold: smooth": replace(BASE, fold="smooth"),
    "fold: rotate": replace(BASE, fold="rotate"),
    "per token": replace(BASE, per_token=True),
    "bias corrected": replace(BASE, correct_bias=True),
    "keys centred": replace(BASE, centred=True),
    "GELU: twin": replace(BASE, gelu="twin"),
    "softmax: log2": replace(BASE, softmax="log2"),
    "softmax: log sqrt2": replace(BASE, softmax="log_sqrt2"),
    "softmax: AdaLog": replace(BASE, softmax="adalog"),
    "softmax: twin": replace(BASE, softmax="twin"),
    "softmax: tangent": replace(BASE, softmax="tangent"),
    "weights: GPTQ": replace(BASE, rounding="gptq"),
    "weights: adaptive": replace(BASE, rounding="adaptive"),
    "clip: KL": replace(BASE, clip="kl"),
}
WEIGHTS: dict[str, Recipe] = {  # activations stay in float
    f"W{bits}, {name}": replace(Recipe(bits, None), **fields)  # type: ignore[arg-type]
    for bits in (4, 3)
    for name, fields in {
        "per tensor": {"per": "tensor"},
        "per channel": {},
        "groups of 32": {"per": 32},
        "groups of 16": {"per": 16},
        "groups of 16, with zero": {"per": 16, "symmetric": False},
        "GPTQ": {"rounding": "gptq"},
    }.items()
}
FLOATS = {
    "int8": Recipe(8, 8),
    "e4m3": Recipe("e4m3", "e4m3", ends="same"),
    "e5m2": Recipe("e5m2", "e5m2", ends="same"),
}


def outliers(bits: int) -> dict[str, Recipe]:
    base = Recipe(bits, bits, bits)
    clipped = replace(base, clip="mse")
    folded = replace(clipped, fold="channels")
    return {
        "per channel, min-max": base,
        "+ mse clip": clipped,
        "+ mse clip, smooth": replace(clipped, fold="smooth"),
        "+ mse clip, rotate": replace(clipped, fold="rotate"),
        "+ mse clip, per token": replace(clipped, per_token=True),
        "+ mse clip, folded channels": folded,
        "+ folds, fitted attention": fitted_recipe(bits, bits),
        "+ folds, fitted attention, GPTQ": replace(fitted_recipe(bits, bits), rounding="gptq"),
    }


def mixed(average: int) -> dict[str, Make]:
    """All weights in `average` bits; the same memory where errors are largest; and where another layer's are."""

    def spent(choose: Callable[[Case], Tensor]) -> Make:
        def make(case: Case) -> ViT:
            sizes = list(case.sizes.values())
            bits = greedy_bits(choose(case), CHOICES, sizes, average * sum(sizes))
            return quantize(case.model, only({name: (b, None) for name, b in zip(case.sizes, bits, strict=True)}))

        return make

    def shuffled(case: Case) -> Tensor:
        return case.errors[torch.randperm(len(case.errors), generator=torch.Generator().manual_seed(case.seed))]

    return {
        "the same for all": lambda case: quantize(case.model, only(dict.fromkeys(case.sizes, (average, None)))),
        "greedy": spent(lambda case: case.errors),
        "control: errors shuffled": spent(shuffled),
        "more memory: all, but ends at 8": lambda case: quantize(case.model, Recipe(average, None)),
    }


def by_layer(model: str) -> Iterator[Row]:
    """One layer at 3 bits, all else in float."""
    for name in Case(model, 0).sizes:
        for bits, pair in (("W3", (3, None)), ("A3", (None, 3))):
            yield Row("one layer", model, bits, name, made(only({name: pair})), SEEDS[:1])


def table() -> list[Row]:
    """Every row, in the order in which they are measured for a seed."""
    rows = []
    both = ("shapes-vit", "digits-vit")
    for w, a in BITS:
        for model in both:
            rows += [Row("ladder", model, f"W{w}/A{a}", method, make) for method, make in ladder(w, a).items()]
    for few in (4, 8):
        name = f"W{few}/A{few}"
        rows += [Row("outliers", PLANTED, name, method, made(recipe)) for method, recipe in outliers(few).items()]
    for few, model in product((4, 3), both):
        for method, make in mixed(few).items():
            rows.append(Row("mixed", model, f"W{few}", method, make, SEEDS[:1] if " all" in method else SEEDS))
    for model in both:
        for name, recipe in WEIGHTS.items():
            bits, method = name.split(", ", 1)
            if recipe.per == 32 and model == "digits-vit":
                continue  # its patches have 48 numbers
            rows.append(Row("weights", model, bits, method, made(recipe), seeds_of(recipe)))
        rows += [Row("floats", model, "W8/A8", name, made(recipe)) for name, recipe in FLOATS.items()]
        rows += [Row("alone", model, "W4/A4", name, made(recipe)) for name, recipe in ALONE.items()]
    for few, model in product((4, 3), both):
        name = f"W{few}/A{few}"
        rows += [Row("ladder", model, name, method, make) for method, make in learned(few).items()]
    rows += [Row("ladder", model, "float", "+ training", trained_on) for model in both]
    return [*rows, *by_layer("shapes-vit"), *by_layer("digits-vit")]
