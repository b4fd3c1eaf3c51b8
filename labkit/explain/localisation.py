"""Does a map lie on the object? Four answers against a mask: where its peak is, how much of its mass is inside, how
well its strongest area fits, and how well it orders object before background.

Pointing game: "Top-down Neural Attention by Excitation Backprop", 2016. All four see the map as it is drawn, every
pixel with the value of its cell, so a cell that is half object counts half; and equal values are never broken by their
position: each score is what an honest coin among the tied cells gives on average. A constant map therefore scores
exactly chance: the area share of the object for pointing and mass, 0.5 for the AUC.

Maps are (b, gh, gw), of any sign. Masks are (b, H, W), bool, or already the share of object in each cell. Where the
grid does not divide H and W, a cell is all the pixels that it touches, and a pixel on a border counts on both sides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.errors import LabkitError
from labkit.token_labels import coverage


def pointing(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of object in the strongest cell, (b,): the chance that a pixel drawn from the peak is a hit."""
    scores, inside = _cells(maps, masks)
    peak = (scores == scores.amax(1, keepdim=True)).double()
    return (peak * inside).sum(1) / peak.sum(1)


def mass(maps: Tensor, masks: Tensor) -> Tensor:
    """Share of the positive part of the map that lies on the object, (b,).

    A map without any positive value says nothing about where; it gets what a constant one gets.
    """
    scores, inside = _cells(maps, masks)
    positive = scores.clamp(min=0)
    positive = torch.where(positive.any(1, keepdim=True), positive, 1.0)
    return (positive * inside).sum(1) / positive.sum(1)


def iou(maps: Tensor, masks: Tensor) -> Tensor:
    """Intersection over union of the object and the map's strongest cells, as many as cover the object's area, (b,).

    No threshold to choose: the area is given. Cells that tie for the last places share them in equal parts.
    """
    scores, inside = _cells(maps, masks)
    below, up_to = places(scores)
    area = inside.sum(1, keepdim=True)
    above, tied = scores.shape[1] - up_to, up_to - below
    chosen = ((area - above) / tied).clamp(0, 1)
    shared = (chosen * inside).sum(1)
    return shared / (2 * area[:, 0] - shared)


def auc(maps: Tensor, masks: Tensor) -> Tensor:
    """The chance that a pixel of the object has a higher value than one of the background, (b,); a tie is one half.

    This is the area under the ROC curve, by Mann and Whitney's count of pairs.
    """
    scores, inside = _cells(maps, masks)
    below, up_to = places(scores)
    outside = 1 - inside
    lower = torch.cat([torch.zeros_like(outside[:, :1]), outside.gather(1, scores.argsort(1)).cumsum(1)], dim=1)
    won = (lower.gather(1, below) + lower.gather(1, up_to)) / 2
    return (inside * won).sum(1) / (inside.sum(1) * outside.sum(1))


METRICS = {"pointing": pointing, "mass": mass, "IoU": iou, "AUC": auc}


def places(values: Tensor) -> tuple[Tensor, Tensor]:
    """For each value of a row: how many in its row are smaller, and how many are not greater. Both (b, n)."""
    values = values.contiguous()  # an expanded map is not
    ordered = values.sort(1).values
    return torch.searchsorted(ordered, values), torch.searchsorted(ordered, values, right=True)


def check_maps(maps: Tensor, n: int) -> None:
    """`n` maps (n, gh, gw) of finite numbers, or a sentence."""
    if maps.ndim != 3 or len(maps) != n:
        raise LabkitError(f"The maps have shape {tuple(maps.shape)}; expected ({n}, rows, columns), one map an image.")
    if not maps.isfinite().all():
        bad = (~maps.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        raise LabkitError(
            f"{len(bad)} of {n} maps hold NaN or infinite values, the first is number {bad[0]}; a map that is "
            "undefined cannot be judged."
        )


def on_grid(masks: Tensor, maps: Tensor) -> Tensor:
    """Share of object in each cell of the maps, (b, gh, gw): the mask itself as a map."""
    if masks.ndim != 3:
        raise LabkitError(f"The masks have shape {tuple(masks.shape)}; expected (images, height, width).")
    check_maps(maps, len(masks))
    grid = (maps.shape[1], maps.shape[2])
    return coverage(masks, grid).unflatten(1, grid).to(maps.device)


def _cells(maps: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Value and share of object of every cell, both (b, cells) in double precision."""
    inside = on_grid(masks, maps).flatten(1).double()
    hopeless = (inside == 0).all(1) | (inside == 1).all(1)
    if hopeless.any():
        first = int(hopeless.nonzero()[0])
        raise LabkitError(
            f"{int(hopeless.sum())} of {len(masks)} masks are empty or cover the whole image, the first is number "
            f"{first}: nothing can be found there. Leave these images out."
        )
    return maps.detach().flatten(1).double(), inside
