"""What kind of head is it? How spread out it looks (entropy), how far (mean distance), and whom it resembles (CKA).

Mean attention distance is from "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", 2020
(S207); linear CKA from "Similarity of Neural Network Representations Revisited", 2019.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from labkit.errors import LabkitError
from labkit.evidence import Grid
from labkit.tables import Table
from labkit.tracing.trace import Trace


def entropy(attn: Tensor, normalised: bool = False) -> Tensor:
    """(b, heads): -Σ p log p in nats, the mean over queries; normalised, 1 is uniform over the keys and 0 one key."""
    nats = -torch.xlogy(attn, attn).sum(dim=-1).flatten(2).mean(dim=-1)
    return nats / math.log(max(attn.shape[-1], 2)) if normalised else nats


def distances(grid: Grid, key_grid: Grid, size: tuple[float, float]) -> Tensor:
    """(cells, key cells): from centre to centre when both grids cover an area of this height and width."""
    (y, x), (key_y, key_x) = _centres(grid, size), _centres(key_grid, size)
    return torch.hypot(y[:, None] - key_y, x[:, None] - key_x)


def _centres(grid: Grid, size: tuple[float, float]) -> tuple[Tensor, Tensor]:
    sides = [(torch.arange(n) + 0.5) * length / n for n, length in zip(grid, size, strict=True)]
    y, x = torch.meshgrid(*sides, indexing="ij")
    return y.flatten(), x.flatten()


def mean_distance(attn: Tensor, apart: Tensor) -> Tensor:
    """(..., heads): how far a patch looks on average; attn (..., heads, cells, key cells) without prefix tokens.

    Each row is renormalised, since what goes to a class token goes nowhere; a row of zeros, a dropped patch, is left
    out.
    """
    total = attn.sum(dim=-1)
    far = (attn * apart.to(attn)).sum(dim=-1) / total
    return far.nanmean(dim=-1)


def cka(x: Tensor) -> Tensor:
    """(items, items): linear CKA of items' features (items, samples, features); 1 for equal up to rotation and scale.

    NaN for an item without variation: there is nothing to compare.
    """
    x = x - x.mean(dim=1, keepdim=True)
    cross = torch.stack([(x.transpose(1, 2) @ item).square().sum(dim=(1, 2)) for item in x])
    return cross / torch.outer(cross.diagonal(), cross.diagonal()).sqrt()


def head_similarity(trace: Trace) -> Tensor:
    """(heads of all layers, heads of all layers): do two heads tell the same tokens apart by where these look?

    The samples are the queries of all images, the features are their attention to each key.
    """
    rows = [torch.cat([trace.rows(layer, i) for i in range(len(trace.images))], dim=1) for layer in _places(trace)]
    if len({row.shape[1:] for row in rows}) != 1:
        raise LabkitError("Heads are compared on one grid, and the layers of this trace have several or none.")
    return cka(torch.cat(rows))


class HeadMeasures(NamedTuple):
    """Means over images, (layers, heads) each; NaN where a layer has fewer heads or its attention lies on no grid."""

    entropy: Tensor  # nats
    normalised: Tensor  # the same as a share of the entropy of looking everywhere alike
    patches: Tensor  # mean distance, in patches
    pixels: Tensor


def head_measures(trace: Trace) -> HeadMeasures:
    """Entropy and mean distance of every head."""
    measured = torch.full((4, len(trace.layers), max((layer.heads for layer in trace.layers), default=0)), torch.nan)
    for number, layer in enumerate(trace.layers):
        attn = trace.attention[number]
        measured[0, number, : layer.heads] = entropy(attn).mean(dim=0)
        measured[1, number, : layer.heads] = entropy(attn, normalised=True).mean(dim=0)
    height, width = trace.images.shape[-2:]
    for number in _places(trace):
        layer, patches = trace.layers[number], slice(trace.layers[number].prefix, None)
        for unit, size in enumerate([trace.patches, (height, width)], start=2):
            apart = distances(layer.grid, layer.key_grid, size)
            rows = (trace.rows(number, i, patches)[..., layer.key_prefix :] for i in range(len(trace.images)))
            far = torch.stack([mean_distance(row, apart) for row in rows])
            measured[unit, number, : layer.heads] = far.nanmean(dim=0)
    return HeadMeasures(*measured)


def head_table(trace: Trace) -> Table:
    """A line for each head."""
    measured = torch.stack(head_measures(trace)).permute(1, 2, 0).tolist()
    lines = [
        [str(number), str(head), f"{nats:.2f}", f"{share:.2f}", f"{patches:.2f}", f"{pixels:.1f}"]
        for number, layer in enumerate(trace.layers)
        for head, (nats, share, patches, pixels) in enumerate(measured[number][: layer.heads])
    ]
    headers = ["layer", "head", "entropy (nats)", "of uniform", "distance (patches)", "distance (pixels)"]
    return Table(headers, lines, [True] * len(headers))


def _places(trace: Trace) -> list[int]:
    """The layers in which cells of a grid look at cells of a grid."""
    return [i for i, layer in enumerate(trace.layers) if layer.kind in ("self", "windowed", "reduced")]
