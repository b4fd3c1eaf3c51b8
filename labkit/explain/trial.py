"""Every method before the same judges: where its maps lie, what they mean to the model, what they cost.

The class that is explained is the one that the model predicts, right or wrong, and no image is left out: a user
wants to know why the model said so, most of all when it is wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from labkit.evidence import Grid
from labkit.explain.controls import CONTROLS
from labkit.explain.localisation import on_grid
from labkit.explain.methods import Method
from labkit.explain.removal import deletion_insertion, road
from labkit.explain.sanity import randomization
from labkit.explain.scores import MASK, Scores, locate

RUINED = 32  # under random weights only so many images are explained again


def trial(
    model: nn.Module, images: Tensor, masks: Tensor, methods: Mapping[str, Method], progress: bool = False
) -> Scores:
    """Every metric for every method, every control and the mask itself."""
    with torch.no_grad():
        target = torch.cat([model(part).argmax(1) for part in images.split(64)])
    values: dict[str, dict[str, Tensor]] = {}
    seconds: dict[str, float] = {}
    rows = _rows(model, images, masks, target, methods, seconds)
    for name, maps, method in tqdm(rows, total=len(methods) + len(CONTROLS) + 1, disable=not progress, unit="map"):
        curves = deletion_insertion(model, images, maps, target)
        values[name] = locate(maps, masks) | {
            "deletion": curves.deletion,
            "insertion": curves.insertion,
            "ROAD": road(model, images, maps, target).difference,
        }
        if method is not None:
            after = randomization(model, images[:RUINED], method, target[:RUINED], depths=1)
            values[name]["random weights"] = after.correlation[-1]
    return Scores(values, tuple(CONTROLS), seconds)


def _rows(
    model: nn.Module,
    images: Tensor,
    masks: Tensor,
    target: Tensor,
    methods: Mapping[str, Method],
    seconds: dict[str, float],
) -> Iterator[tuple[str, Tensor, Method | None]]:
    """Name, maps and the method that made them, if one did; `seconds` gets the CPU time of each method an image."""
    for name, method in methods.items():
        start = time.process_time()
        maps = method(model, images, target)
        seconds[name] = (time.process_time() - start) / len(images)
        yield name, maps, method
    for name, control in CONTROLS.items():
        method = _blind(control, (maps.shape[1], maps.shape[2]))
        yield name, method(model, images, target), method
    yield MASK, on_grid(masks, maps), None


def _blind(control: Callable[[Tensor, Grid], Tensor], grid: Grid) -> Method:
    """A control as a method: it looks neither at the model nor at the class."""
    return lambda model, images, target: control(images, grid)
