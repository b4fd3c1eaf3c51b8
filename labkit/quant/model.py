"""A whole ViT with few bits: points and integer weights go in, calibration images say where the grids lie.

    recipe = Recipe(weights=4, activations=8, clip="percentile", rounding="gptq")
    small = quantize(model, recipe, calibration=images)                     # floats that carry integers
    fast = quantize(model, Recipe(), calibration=images, backend="int8")    # the same numbers from integer kernels

What the calibration sees is the float model, so no layer repairs the errors of those before it. Modules that are
none of the plain ViT's (another mixer, another patching, a pooling head) stay in float: `untouched` names them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from labkit.errors import LabkitError, closest
from labkit.layers import MLP, Attention, Block, PatchEmbed
from labkit.mlp import GatedMLP, SplitGatedMLP
from labkit.quant.choose import activation_grid, settle, softmax_grid
from labkit.quant.fold import channel_grid, smooth, to_layer_wise
from labkit.quant.int8 import execute
from labkit.quant.layers import RoundedAttention, RoundedLinear, RoundedPatches
from labkit.quant.point import watched
from labkit.quant.recipe import Backend, Recipe
from labkit.vit import ViT

BATCH = 16  # calibration images that are run at once, and that a moving average takes as one step
READERS = {MLP: ["fc1"], GatedMLP: ["fc1"], SplitGatedMLP: ["fc1_g", "fc1_x"]}  # of what the norm before puts out


@torch.no_grad()
def quantize(
    model: ViT, recipe: Recipe | None = None, calibration: Tensor | None = None, backend: Backend = "simulate"
) -> ViT:
    """A copy in eval mode that computes with the recipe's bits. Token reducers of the model stay where they are.

    Without `calibration` weights can be rounded to nearest, and tokens can find their own grids as they come.
    """
    recipe = Recipe() if recipe is None else recipe
    images = _checked(model, recipe, calibration, backend)
    copied = copy.deepcopy(model).eval()
    if images is not None and recipe.fold in ("channels", "smooth"):
        _fold_norms(copied, recipe, images)
    quantized = prepare(copied, recipe)
    notes = {} if images is None else _run(quantized, images)
    idle = [name for name, seen in notes.items() if not seen]
    if idle:
        raise LabkitError(f"The calibration images ran and nothing passed {idle[0]}; a grid needs numbers to lie over.")
    for name, layer in layers(quantized).items():
        settle(layer, name, recipe, notes.get(f"{name}.input", []))
    for name, module in quantized.named_modules():
        if isinstance(module, RoundedAttention) and recipe.attention is not None:
            for part in ("q", "k", "v"):
                getattr(module, part).grid = activation_grid(notes[f"{name}.{part}"], recipe.attention, recipe)
            module.softmax.grid = softmax_grid(notes[f"{name}.softmax"], recipe.attention, recipe)
    quantized.recipe = recipe  # type: ignore[assignment]
    if backend == "int8":
        execute(quantized)
    return quantized


def _checked(model: ViT, recipe: Recipe, images: Tensor | None, backend: Backend) -> Tensor | None:
    """The images, if they are needed, or the sentence that says what `quantize` cannot work with."""
    if not isinstance(model, ViT):
        raise LabkitError(f"{type(model).__name__} is no labkit ViT; for a model of timm take ViT.from_timm(model).")
    if layers(model):
        raise LabkitError("This model is quantized already; quantize the float model that it was made from.")
    if backend not in get_args(Backend):
        raise LabkitError(f'backend={backend!r} is unknown; choose "simulate" or "int8".')
    if not recipe.needs_images:
        return None
    if not isinstance(images, Tensor) or not len(images):
        found = "there are none" if images is None or isinstance(images, Tensor) else f"a {type(images).__name__} came"
        raise LabkitError(f"Where grids lie is read from images, and {found}; pass calibration=images: 64 will do.")
    return images


def layers(model: nn.Module) -> dict[str, RoundedLinear]:
    """The layers that have points and codes, by name, in the order of the model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, RoundedLinear)}


def untouched(model: nn.Module) -> list[str]:
    """Layers with weights of their own that stay in float because they belong to no part of the plain ViT."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def prepare(model: ViT, recipe: Recipe) -> ViT:
    """Puts points and layers that can be rounded into the model, in place; nothing is rounded yet."""
    for block in _blocks(model).values():
        if type(block.attn) is Attention:
            _insert(block.attn, recipe.fold == "rotate")
            if recipe.attention is not None:
                block.attn = RoundedAttention(block.attn, recipe.centred)
        _insert(block.mlp, recipe.fold == "rotate")
    if type(model.patch_embed) is PatchEmbed:
        model.patch_embed.proj = RoundedPatches(model.patch_embed.proj)  # type: ignore[assignment]
    _insert(model, rotated=False)
    unknown = [name for name in recipe.layers if name not in layers(model)]
    if unknown:
        hint = closest(unknown[0], layers(model))
        raise LabkitError(f'The recipe names a layer "{unknown[0]}", and the model has none of that name.{hint}')
    return model


def _blocks(model: ViT) -> dict[str, Block]:
    """Every block by name, those that stand side by side too; one that runs several times has its first name."""
    return {name: m for name, m in model.blocks.named_modules(prefix="blocks") if isinstance(m, Block)}


def _insert(module: nn.Module, rotated: bool) -> None:
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear:
            setattr(module, name, RoundedLinear(child, rotated))


def _run(model: ViT, images: Tensor) -> dict[str, list[Tensor]]:
    """{point: what reached it}."""
    with watched(model) as notes:
        for some in images.split(BATCH):
            model(some)
    return dict(notes)


def _fold_norms(model: ViT, recipe: Recipe, images: Tensor) -> None:
    """Each block's norms give their channels' ranges, or a share of them, to the layers behind, in place."""
    notes = _run(prepare(copy.deepcopy(model), Recipe()), images)
    for name, block in _blocks(model).items():
        if type(block.attn) is Attention:
            seen = notes[f"{name}.attn.qkv.input"]
            block.norm1 = _fold_into(block.norm1, block.attn, ["qkv"], seen, recipe)
        if type(block.mlp) in READERS:
            readers = READERS[type(block.mlp)]
            seen = notes[f"{name}.mlp.{readers[0]}.input"]
            block.norm2 = _fold_into(block.norm2, block.mlp, readers, seen, recipe)


def _fold_into(norm: Any, owner: nn.Module, names: Sequence[str], seen: list[Tensor], recipe: Recipe) -> nn.Module:
    """The folded norm; the readers of it that `owner` holds are folded as the one layer that they could be."""
    readers: list[nn.Linear] = [getattr(owner, name) for name in names]
    low, high = torch.cat([s.flatten(0, -2) for s in seen]).aminmax(dim=0)
    joined = nn.Linear(len(low), sum(r.out_features for r in readers), device="meta")  # draws no random numbers
    weights: list[Tensor] = [r.weight for r in readers]
    joined.weight = nn.Parameter(torch.cat(weights))
    biases: list[Tensor] = [r.weight.new_zeros(r.out_features) if r.bias is None else r.bias for r in readers]
    joined.bias = nn.Parameter(torch.cat(biases))
    if recipe.fold == "channels":
        bits = recipe.activations if isinstance(recipe.activations, int) else 8
        norm, joined, _ = to_layer_wise(norm, joined, channel_grid(low, high, bits))
    else:
        norm, joined = smooth(norm, joined, low, high, centre=True)
    sizes = [r.out_features for r in readers]
    for name, weight, bias in zip(names, joined.weight.split(sizes), joined.bias.split(sizes), strict=True):
        layer = copy.deepcopy(getattr(owner, name))
        layer.weight, layer.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
        setattr(owner, name, layer)
    return norm  # type: ignore[no-any-return]
