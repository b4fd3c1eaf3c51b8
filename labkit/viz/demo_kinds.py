"""What a mechanism of tokens can show: which go on, what they are worth, which pixels or tokens each of them sees.

A kind is a function (bench, thing, made) → Demo, or None when it has nothing to show. `thing` is the class or the
function, `made` an instance of it, or what it gave back. The first kind that answers is the one that is shown.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import provenance
from labkit.positions.probe import bias_map, position_map
from labkit.tokens import attach
from labkit.verify import hits
from labkit.viz import demo_draw as draw
from labkit.viz.demo_bench import BLOCK, Bench
from labkit.viz.demo_parts import Demo, influence, of_images, of_tokens, untrained
from labkit.viz.explorer_film import relabel


def reduced(bench: Bench, thing: Any, made: Any) -> Demo | None:
    """A token reducer: which tokens go on, what the model says then; some reduce at the entry or in training only."""
    if not hasattr(made, "reduce"):
        return None
    where: Any
    refused = "it keeps every token here."
    for training, where in ((False, [BLOCK]), (False, "entry"), (True, "entry")):
        slim = attach(bench.model, made, where)
        if training:
            made.train() if isinstance(made, nn.Module) else None
        try:
            with torch.no_grad():
                seen = slim.observe(bench.image)
        except LabkitError as error:
            refused = str(error)
            continue
        prefix, patches = bench.model.prefix, bench.grid[0] * bench.grid[1]
        inside = provenance(seen.maps, patches, prefix, 1)[0, prefix:]
        there = int((inside.sum(dim=1) > 0).sum())
        if there == patches:
            continue
        labels = relabel(inside.numpy(), torch.arange(patches).numpy())
        right = [float(hits(model, bench.data).double().mean()) for model in (bench.model, slim)]
        place = "in front of the first block" if where == "entry" else f"in block {BLOCK}"
        said = (
            f"{place[0].upper()}{place[1:]}{', in training' if training else ''}, {patches} patches become {there} "
            f"tokens. The model is right in {right[1]:.0%} of {len(bench.data)} images; with all tokens {right[0]:.0%}."
        )
        return Demo(draw.tokens_left(bench.image[0], labels, bench.grid, right), said + untrained(thing, made))
    raise LabkitError(refused)


def scored(bench: Bench, thing: Any, made: Any) -> Demo | None:
    """A score: how much each patch is worth."""
    if not inspect.isfunction(made) or list(inspect.signature(made).parameters)[:2] != ["evidence", "prefix"]:
        return None
    with torch.no_grad():
        scores = made(bench.evidence, bench.model.prefix)[0].reshape(bench.grid)
    best = divmod(int(scores.argmax()), bench.grid[1])
    said = (
        f"Of the {scores.numel()} patches, the one in row {best[0]}, column {best[1]} is worth most in block {BLOCK}."
    )
    return Demo(draw.on_image(bench.image[0], [scores], ["score"]), said)


def patched(bench: Bench, thing: Any, made: Any) -> Demo | None:
    """What makes tokens of images: which pixels each of three tokens sees."""
    function = of_images(bench, thing, made)
    if function is None or made is bench.model:
        return None
    with torch.no_grad():
        x = function(bench.image)
    if x.ndim != 3 or len(x) != 1:
        return None
    places: list[int] = []
    fields: list[Tensor] = []
    for place in (0, x.shape[1] // 2, x.shape[1] - 1):
        for near in (place, max(place - 1, 0)):  # a token that marks the end of a row sees nothing
            field = influence(function, bench.image, near)[0].square().sum(dim=0).sqrt()
            if field.any():
                places, fields = [*places, near], [*fields, field]
                break
    if len(fields) < 3:
        return None
    share = float((fields[1] > 1e-4 * fields[1].max()).double().mean())
    h, w = bench.image.shape[-2:]
    said = (
        f"It makes {x.shape[1]} tokens of {x.shape[2]} numbers of an image of {h} x {w}; {share:.1%} of the pixels "
        f"move the token in the middle, and of a plain patch of 8 x 8 would {64 / (h * w):.1%}."
    )
    titles = [f"token {place} sees" for place in places]
    return Demo(draw.on_image(bench.image[0], fields, titles), said + untrained(thing, made))


def placed(bench: Bench, thing: Any, made: Any) -> Demo | None:
    """A position: what it adds to the scores, or how alike it makes places."""
    place, query = getattr(made, "place", None), (bench.grid[0] // 2, bench.grid[1] // 3)
    where = f"the patch in row {query[0]}, column {query[1]}"
    if place == "scores":
        heads = range(min(4, made.heads))
        if not any(bias_map(made, bench.grid, query, head).any() for head in heads):
            _draw(made)  # it begins at zero, where nothing can be seen
        maps = [bias_map(made, bench.grid, query, head) for head in heads]
        finite = [torch.where(m.isfinite(), m, m[m.isfinite()].min() - 1) for m in maps]  # what is masked lies lowest
        said = f"What {where} gets added to its scores, for each patch of the grid, in {len(maps)} heads."
        return Demo(draw.maps(finite, [f"head {head}" for head in heads], query), said + untrained(thing, made))
    if place == "tokens":
        near = position_map(made, bench.grid, query, bench.tokens.shape[-1])
        said = f"How alike what is added at {where} and at each other patch is, as a cosine."
        return Demo(draw.maps([near], ["cosine"], query), said + untrained(thing, made))
    return None


def mixing(bench: Bench, thing: Any, made: Any) -> Demo | None:
    """What lets tokens talk: which tokens move the one in the middle, beside plain attention."""
    function = of_tokens(bench, thing, made)
    if function is None:
        return None
    with torch.no_grad():
        out = function(bench.tokens)
    if out.ndim != 3:
        return None
    middle = out.shape[1] // 2 + (bench.grid[1] // 2 if out.shape[1] == bench.tokens.shape[1] else 0)
    ours = influence(function, bench.tokens, middle)[0].norm(dim=1)
    if int((ours > 1e-6 * ours.max()).sum()) < 2:
        return None  # every token for itself
    plain = influence(bench.block.attn, bench.tokens, bench.grid[0] * bench.grid[1] // 2 + bench.grid[1] // 2)
    fields = [field / field.max() for field in (plain[0].norm(dim=1), ours)]
    heard = [int((field > 0.01).sum()) for field in fields]
    said = (
        f"{heard[1]} of {len(ours)} tokens move token {middle} of {out.shape[1]} by more than a hundredth of what the "
        f"strongest does; in plain attention {heard[0]}."
    )
    maps = [field.reshape(bench.grid) for field in fields]
    return Demo(draw.on_image(bench.image[0], maps, ["plain attention", "this"]), said + untrained(thing, made))


@torch.no_grad()
def _draw(module: nn.Module) -> None:
    """Random numbers for every parameter, the same every time."""
    noise = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=noise))
