"""Train a model with the rounding inside, its grids too; or rebuild it on a few images, block after block.

With labels this is the ordinary loop of `labkit.train`: float weights that are rounded on their way, and the grids of
"Learned Step Size Quantization", 2019. Without, "BRECQ: Pushing the Limit of Post-Training Quantization by Block
Reconstruction", 2021: each block is trained to give what the float model's block gives, from the inputs that the
rounded blocks before it give.

    student = trainable(model, Recipe(weights=4, activations=4, attention=4, clip="mse"), calibration=images)
    reconstruct(student, model, images)                         # no labels
    train(student, batches, labkit.train.Recipe(steps=300))     # labels; one of the two, or both in this order
    small = frozen(student)                                     # codes and plain grids, as `quantize` gives them
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Grid as PatchGrid
from labkit.quant.grids import Uniform
from labkit.quant.layers import RoundedLinear
from labkit.quant.learned import LearnedGrid, StraightPoint
from labkit.quant.model import layers, quantize
from labkit.quant.point import Point, points
from labkit.quant.recipe import Bits, Recipe
from labkit.vit import ViT

INSIDE = 0.499  # how far from its level, in steps, a weight may begin, so that this is the level it is rounded to
BATCH = 64  # calibration images that are run at once


def trainable(model: ViT, recipe: Recipe, calibration: Tensor) -> ViT:
    """A copy that computes what `quantize(model, recipe, calibration)` does, with parameters that can be trained."""
    student = quantize(model, recipe, calibration)
    untouched: dict[str, tuple[Bits, Bits]] = dict.fromkeys(layers(student), (None, None))
    bare = replace(recipe, layers=untouched, attention=None, softmax="uniform", centred=False)
    folded = quantize(model, bare, calibration)
    for name, layer in layers(student).items():
        if layer.codes is not None:
            _thaw(layer, name, layers(folded)[name].weight)
    for name, point in points(student).items():
        if isinstance(point.grid, Uniform):
            point.grid = LearnedGrid(point.grid)
        elif point.grid is not None or point.token_bits is not None:
            student.set_submodule(name, _exchanged(point, StraightPoint()))
    return student


def _thaw(layer: RoundedLinear, name: str, weight: Tensor) -> None:
    """The float weight comes back in place of its codes, moved to where it is rounded to them."""
    grid = layer.grid
    if not isinstance(grid, Uniform) or (grid.scale.ndim and grid.scale.shape[1] != 1):
        raise LabkitError(
            f"The weights of {name} are on no uniform grid with one step for the tensor or for each output channel, "
            'and others cannot be trained; choose weights=bits and per="channel".'
        )
    reach = INSIDE * grid.scale
    value = layer.weight
    layer.float_weight = nn.Parameter(weight.detach().clamp(value - reach, value + reach))
    layer.codes, layer.grid = None, LearnedGrid(grid)  # type: ignore[assignment]


def _exchanged(old: Point, new: Point) -> Point:
    new.grid, new.token_bits = old.grid, old.token_bits
    return new


def frozen(trained: ViT) -> ViT:
    """A copy in eval mode with codes in place of weights and plain grids, as `quantize` gives one.

    It computes what the trained model does, but for numbers midway between two codes: there the order in which floats
    are summed decides, and on many images a few logits move by more than rounding.
    """
    copied = copy.deepcopy(trained).eval()
    for layer in layers(copied).values():
        learned: Any = layer.grid
        if isinstance(learned, LearnedGrid):
            del layer.grid  # a module's name takes no other value
            layer.freeze(learned.settled())
    for name, point in points(copied).items():
        learned = point.grid
        if isinstance(learned, LearnedGrid):
            del point.grid
            point.grid = learned.settled()
        elif isinstance(point, StraightPoint):
            copied.set_submodule(name, _exchanged(point, Point()))
    return copied


def reconstruct(
    trained: ViT, model: ViT, calibration: Tensor, steps: int = 100, lr: float = 1e-3, batch: int = 16
) -> list[tuple[float, float]]:
    """Trains each block, in place, to give what the same block of the float `model` gives: (error before, after) each.

    A block reads what the trained blocks before it give. One that did not get better stays as it was. Of the last
    block only those tokens count that the head reads.
    """
    if any(block.reducer is not None for block in trained.blocks) or trained.entry is not None:
        raise LabkitError("Blocks are compared token by token, and this model reduces its tokens; rebuild it before.")
    with torch.no_grad():
        (x, grid), (target, _) = trained.embed(calibration), model.embed(calibration)
    errors = []
    for i, (block, plain) in enumerate(zip(trained.blocks, model.blocks, strict=True), start=1):
        rows = model.rows_read() if i == len(model.blocks) else None
        run = partial(_run, grid=grid, prefix=model.prefix, rows=rows)
        with torch.no_grad():
            target = run(plain, target)
        errors.append(_fit(block, run, x, target, steps, lr, batch))
        with torch.no_grad():
            x = run(block, x)
    return errors


def _run(block: nn.Module, x: Tensor, grid: PatchGrid, prefix: int, rows: int | None) -> Tensor:
    return torch.cat([block(some, grid, None, prefix, rows).x for some in x.split(BATCH)])


def _fit(
    block: nn.Module, run: Callable[..., Tensor], x: Tensor, target: Tensor, steps: int, lr: float, batch: int
) -> tuple[float, float]:
    """Mean squared errors of the block's output on all of x, before and after training, which is kept if it helped."""
    before = {name: value.clone() for name, value in block.state_dict().items()}
    optimizer = torch.optim.Adam(block.parameters(), lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        error = F.mse_loss(run(block, x), target).item()
    for _ in range(steps):
        rows = torch.randint(len(x), (batch,), generator=draw).to(x.device)
        with torch.enable_grad():
            F.mse_loss(run(block, x[rows]), target[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
        decay.step()
    with torch.no_grad():
        learned = F.mse_loss(run(block, x), target).item()
    if not learned < error:
        block.load_state_dict(before)
    return error, min(error, learned)
