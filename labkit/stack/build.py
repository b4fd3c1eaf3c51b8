"""The order of the dials: patches, then mixing, then tokens, then bits, whose grids are read from the reduced model.

A dial knows nothing of the others; only here they meet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from labkit import quant
from labkit.errors import LabkitError
from labkit.layers import twin
from labkit.patching.flexi import flexible
from labkit.stack.reduce import ASKS, reduce
from labkit.stack.swap import swap_mixers
from labkit.vit import ViT, resample_positions

if TYPE_CHECKING:
    from labkit.stack.recipe import Stack


def build(stack: Stack, model: ViT, calibration: Tensor | None = None) -> ViT:
    """A copy of the model with all dials turned; `calibration` images say where the grids of rounded inputs lie."""
    if quant.layers(model):
        raise LabkitError("This model is quantized already; build the stack on the float model that it was made from.")
    _check_fit(stack, model)
    model = patched(model, stack.patch)
    if not stack.rounds:
        return _reduce(stack, _mix(stack, model))
    # `quantize` would leave another mixing in float, layers and all: they are rounded first and swapped behind it.
    if stack.calibrate == "whole":
        return _reduce(stack, _mix(stack, quant.quantize(model, stack.recipe(), calibration, stack.backend)))
    return _mix(stack, quant.quantize(_reduce(stack, model), stack.recipe(), calibration, stack.backend))


def _reduce(stack: Stack, model: ViT) -> ViT:
    left_behind = dict(zip(stack.reducers, counts(stack, model)[1:], strict=True))
    return reduce(model, stack.reducer, left_behind, stack.seed)


def _mix(stack: Stack, model: ViT) -> ViT:
    return swap_mixers(model, stack.mixer, stack.mixers)


def _check_fit(stack: Stack, model: ViT) -> None:
    """Is there such a block, and would a reducer in it do anything?"""
    depth = len(model.blocks)
    if max(stack.mixers, default=0) >= depth:
        raise LabkitError(f'mixed="{stack.mixed}", and the blocks of the model are 0 to {depth - 1}.')
    if max(stack.reducers, default=-1) >= depth - 1:
        raise LabkitError(
            f'where="{stack.where}"; nobody reads patches behind the last block: choose from 0 to {depth - 2}.'
        )
    if stack.reducer in ASKS and model.cls_token is None:
        raise LabkitError(
            f'"{stack.reducer}" asks the class token, and this model has none; "keep-apart" and "merge" ask nobody.'
        )


def counts(stack: Stack, model: ViT) -> list[int]:
    """How many patches are left behind each block in `where`, before the first one all."""
    n, steps = model.grid[0] * model.grid[1], len(stack.reducers)
    return [n, *(max(1, round(n * stack.keep ** (i / steps))) for i in range(1, steps + 1))]


def patched(model: ViT, patch: int) -> ViT:
    """The model at another patch size, with positions of its own, so that it says itself how large its images are."""
    own: Any = getattr(model.patch_embed, "proj", None)
    if patch == 0 or getattr(own, "stride", None) == (patch, patch):
        return model
    view = twin(flexible(model, patch))
    size = [side * step for side, step in zip(model.grid, own.stride, strict=True)]
    if any(side % patch for side in size):
        raise LabkitError(f"patch={patch} does not divide images of {size[0]}x{size[1]} pixels; choose one that does.")
    view.grid = (size[0] // patch, size[1] // patch)
    if model.pos_embed is not None:
        prefix = model.prefix if model.embeds_prefix else 0
        view.pos_embed = nn.Parameter(resample_positions(model.pos_embed.detach(), model.grid, view.grid, prefix))
    return view
