"""Does a map depend on what the model learned? Destroy the weights from the head down; a map that stays is no
explanation of this model, however well it lies on the object.

"Sanity Checks for Saliency Maps", 2018: cascading randomization. Passing is necessary, not sufficient: noise passes.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.explain.localisation import check_maps, places
from labkit.explain.methods import Method
from labkit.explain.patches import Target, chosen_class
from labkit.tracing.record import evaluating


@dataclass(frozen=True)
class Randomization:
    """How much of the order of each map is left: 1 all of it, 0 nothing."""

    stages: tuple[str, ...]  # the last part that was destroyed, together with all that stand before it here
    correlation: Tensor  # (stages, b)


def randomization(
    model: nn.Module,
    images: Tensor,
    method: Method,
    target: Target = None,
    *,
    depths: int | None = None,
    seed: int = 0,
) -> Randomization:
    """Rank correlation of the maps before and after more and more of the model is random, from the head down.

    Works on a copy. The explained class stays the one that the intact model predicts. `depths` asks for so many
    depths, evenly spaced, of which the last is always the whole model; None is every depth.
    """
    with torch.no_grad(), evaluating(model):
        target = chosen_class(model(images), target)
    before = method(model, images, target)
    ruin = copy.deepcopy(model)
    parts = stages(ruin)
    chosen = _evenly(len(parts), depths)
    dice = torch.Generator().manual_seed(seed)
    rows = []
    for i, parameters in enumerate(parts.values()):
        for parameter in parameters:
            _redraw(parameter, dice)
        if i in chosen:
            rows.append(rank_correlation(before, method(ruin, images, target)))
    return Randomization(tuple(name for i, name in enumerate(parts) if i in chosen), torch.stack(rows))


def stages(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parts of a model with their parameters, the last first: "head", "norm", "blocks.5", ..., "patch_embed"."""
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in reversed(list(model.named_parameters())):
        first_number = re.match(r".*?\.\d+(?=\.)", name)
        parts.setdefault(first_number[0] if first_number else name.split(".")[0], []).append(parameter)
    if not parts:
        raise LabkitError("This model has no weights that could be made random.")
    return parts


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's correlation of two sets of maps, (b,); equal values share their mean rank.

    A map that is constant has no order: it correlates 1 with another constant map and 0 with any other.
    """
    if a.shape != b.shape:
        raise LabkitError(f"Maps of shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be compared cell by cell.")
    for maps in (a, b):
        check_maps(maps, len(a))
    ranks = [torch.stack(places(m.detach().flatten(1))).sum(0).double() for m in (a, b)]
    x, y = (r - r.mean(1, keepdim=True) for r in ranks)
    spread = x.norm(dim=1) * y.norm(dim=1)
    constant = (x == 0).all(1) & (y == 0).all(1)
    return torch.where(spread > 0, (x * y).sum(1) / spread.clamp(min=1e-30), constant.double())


def _evenly(n: int, depths: int | None) -> set[int]:
    wanted = n if depths is None else min(depths, n)
    if wanted < 1:
        raise LabkitError(f"depths={depths}: expected at least 1, or None for every depth.")
    return {round((i + 1) * n / wanted) - 1 for i in range(wanted)}


@torch.no_grad()
def _redraw(parameter: nn.Parameter, dice: torch.Generator) -> None:
    """New normal weights with the mean and the spread of the old: the activations keep their scale, the knowledge goes.

    A parameter without spread (one number, or all alike) holds nothing to forget and stays.
    """
    spread, mean = torch.std_mean(parameter.float(), correction=0)
    noise = torch.randn(parameter.shape, generator=dice).to(parameter.device)
    parameter.copy_(mean + spread * noise)
