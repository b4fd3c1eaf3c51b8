"""What a mechanism of numbers can show: what rounding costs, what is folded, what goes in and what comes out.

Kinds, as in `labkit.viz.demo_kinds`: functions (bench, thing, made) → Demo, or None.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from labkit.quant.grids import Uniform
from labkit.quant.inspect import inspect as inspected
from labkit.quant.inspect import sqnr_db
from labkit.quant.weights import round_to_nearest
from labkit.verify import hits
from labkit.vit import ViT
from labkit.viz import demo_draw as draw
from labkit.viz.demo_bench import BLOCK, Bench
from labkit.viz.demo_parts import Demo, untrained, values


def gridded(bench: Bench, thing: Any, made: Any) -> Demo | None:
    """A grid of numbers: a trained tensor rounded with it, beside evenly spaced levels, as many."""
    if not all(hasattr(made, name) for name in ("encode", "decode", "levels")):
        return None
    levels = made.levels()
    if levels.ndim > 1:
        x, what = bench.inputs, "inputs of an MLP"
    elif float(levels.min()) > -1e-2 * float(levels.max()):
        x, what = bench.evidence.attention().detach(), "attention"
    else:
        x, what = bench.block.mlp.fc1.weight.detach(), "weights of an MLP"
    seen = inspected(x, made)
    even = inspected(x, Uniform.of(x.amin(), x.amax(), max(1, (len(levels) - 1).bit_length())))
    said = (
        f"The {what} of block {BLOCK} rounded to {len(levels)} levels: signal over noise {seen.sqnr_db:.1f} dB; "
        f"one evenly spaced grid of {len(even.levels)} levels: {even.sqnr_db:.1f} dB."
    )
    return Demo(draw.rounding(seen, even, what), said)


def weighted(bench: Bench, thing: Any, made: Any) -> Demo | None:
    """A way to round a weight: what is left of the product with real tokens, beside rounding to the nearest."""
    if inspect.isclass(thing) or not callable(thing) or "weight" not in inspect.signature(thing).parameters:
        return None
    rounded, weight = values(made), bench.block.mlp.fc1.weight.detach()
    if rounded is None or rounded.shape != weight.shape or rounded.equal(weight):
        return None
    most = max(len(row.unique()) for row in rounded)
    bits = max(1, (most - 1).bit_length())
    nearest = round_to_nearest(weight, bits, symmetric=bits > 1)
    before = bench.inputs @ weight.T
    ours, theirs = (sqnr_db(before, bench.inputs @ w.T - before) for w in (rounded, nearest))
    said = (
        f"A trained weight with at most {most} values in a row: its product with real tokens comes back at "
        f"{ours:.1f} dB; each number rounded to the nearest of {2**bits} levels: {theirs:.1f} dB."
    )
    return Demo(draw.matrices([weight, rounded, nearest], ["trained", "this", "to the nearest"]), said)


def folded(bench: Bench, thing: Any, made: Any) -> Demo | None:
    """A norm and the layer behind it, moved into each other: the numbers between them, before and after."""
    if not isinstance(made, tuple) or len(made) < 2 or not all(isinstance(part, nn.Module) for part in made[:2]):
        return None
    norm, linear = bench.block.norm2, bench.block.mlp.fc1
    x = bench.mixed[0]
    with torch.no_grad():
        before, after = norm(x), made[0](x)
        apart = float((linear(before) - made[1](after)).abs().max())
    reach = [float(y.abs().amax(dim=1).max() / y.abs().amax(dim=1).median()) for y in (before, after)]
    said = (
        f"The widest channel reaches {reach[0]:.1f} times as far as the middle one before, {reach[1]:.1f} times after; "
        f"behind the layer the numbers differ by {apart:.0e} at most."
    )
    return Demo(draw.matrices([before, after], ["before", "after"]), said)


def renewed(bench: Bench, thing: Any, made: Any) -> Demo | None:
    """A model made of a model: what it answers, beside the one it was made of."""
    names = set(inspect.signature(thing).parameters)
    if not isinstance(made, ViT) or made is bench.model or not names & {"model", "vit"}:
        return None
    with torch.no_grad():
        answers = [model.eval()(bench.image)[0].softmax(dim=0) for model in (bench.model, made)]
    right = [float(hits(model, bench.data).double().mean()) for model in (bench.model, made)]
    apart = float((answers[0] - answers[1]).abs().max())
    said = (
        f"A model made of the trained one: right in {right[1]:.0%} of {len(bench.data)} images, and the trained one in "
        f"{right[0]:.0%}; for this image no probability differs by more than {apart:.0e}."
    )
    return Demo(draw.answers(bench.image[0], answers, bench.data.names), said)


def chosen(bench: Bench, thing: Any, made: Any) -> Demo | None:
    """A list of whole numbers, one for each layer."""
    if not isinstance(made, list) or len(made) != len(bench.layers) or not all(isinstance(n, int) for n in made):
        return None
    said = f"What each of the model's {len(made)} largest layers gets: from {min(made)} to {max(made)}."
    return Demo(draw.steps(made), said)


def turned(bench: Bench, thing: Any, made: Any) -> Demo | None:
    """Anything that makes numbers of numbers: what goes in and what comes out."""
    if isinstance(made, nn.Module):
        if list(inspect.signature(made.forward).parameters)[:1] != ["x"]:
            return None
        before: Tensor = bench.tokens
        with torch.no_grad():
            after = values(made(before))
        alone = True
        if "linear" in inspect.signature(type(made).__init__).parameters:
            before = bench.block.mlp.fc1(before).detach()
    elif inspect.isfunction(thing):
        given = [each for each in bench.arguments(thing).values() if isinstance(each, Tensor)]
        found = values(made)
        if not given or found is None:
            return None
        before, after, alone = given[0].detach(), found.detach(), len(given) == 1
    else:
        return None
    if after is None or not after.isfinite().all() or min(after.shape[-2:], default=0) < 2:
        return None
    said = f"{_size(before)} numbers go in and {_size(after)} come out"
    if after.shape == before.shape and alone:
        away = sqnr_db(before, after.to(before) - before)
        said += "; nothing is changed" if math.isinf(away) else f"; the change is {away:.1f} dB below what went in"
    return Demo(draw.matrices([before, after], ["in", "out"]), said + "." + untrained(thing, made))


def _size(x: Tensor) -> str:
    return " x ".join(map(str, x.shape))
