"""Take away what a map calls important and watch the model: the prediction should fall soon; take away the rest, and
it should stand. Neither needs a mask, only the model, which is why both say how faithful a map is, not how pretty.

Deletion and insertion: "RISE: Randomized Input Sampling for Explanation of Black-box Models", 2018. Inserting the k
best patches is removing all the others, so one pair of curves tells both. What stands in the hole matters: grey
squares are themselves a strange picture, and their outline alone can tell the answer. "A Consistent and Efficient
Evaluation Strategy for Attribution Methods", 2022 (ROAD), fills the hole smoothly from its neighbours, plus noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.explain.localisation import check_maps
from labkit.explain.patches import Target, chosen_class
from labkit.tracing.record import evaluating

Fill = Literal["mean", "blur"] | float


@dataclass(frozen=True)
class Removal:
    """Probability of the explained class while patches go, `shares[j]` of them gone in column j.

    Read from right to left, `least_first` is the curve of insertion: the best patches come first.
    """

    shares: Tensor  # (s,)
    most_first: Tensor  # (b, s): the patches that the map ranks highest go first
    least_first: Tensor  # (b, s): those that it ranks lowest go first

    @property
    def deletion(self) -> Tensor:
        """Mean height of the curve while the best patches go, (b,): low is good."""
        return self._height(self.most_first)

    @property
    def insertion(self) -> Tensor:
        """Mean height of the curve while the best patches come, which is while the worst go, (b,): high is good."""
        return self._height(self.least_first)

    @property
    def difference(self) -> Tensor:
        """Insertion minus deletion, (b,): 0 on average for a map that knows nothing."""
        return self.insertion - self.deletion

    def _height(self, curve: Tensor) -> Tensor:
        return torch.trapezoid(curve, self.shares) / (self.shares[-1] - self.shares[0])


def deletion_insertion(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    target: Target = None,
    *,
    steps: int = 16,
    fill: Fill = "mean",
    batch: int = 64,
) -> Removal:
    """From nothing removed to everything in `steps` equal steps; `target=None` explains the predicted class.

    `fill`: "mean" is each image's mean colour, "blur" the image out of focus by one patch, a number is a grey.
    """
    return _curves(model, images, maps, target, torch.linspace(0, 1, steps + 1), fill, batch)


def road(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    target: Target = None,
    *,
    shares: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9),
    batch: int = 64,
) -> Removal:
    """Remove and debias: the same curves with holes that are filled from their neighbours; read `.difference`."""
    return _curves(model, images, maps, target, torch.tensor(shares), None, batch)


@torch.no_grad()
def _curves(
    model: nn.Module, images: Tensor, maps: Tensor, target: Target, shares: Tensor, fill: Fill | None, batch: int
) -> Removal:
    check_maps(maps, len(images))
    cells = maps[0].numel()
    counts = (shares * cells).round().int().unique().tolist()
    if len(counts) < 2:
        raise LabkitError("A curve needs two points at least; ask for more steps, or for shares further apart.")
    with evaluating(model):
        labels = chosen_class(torch.cat([model(part) for part in images.split(batch)]), target)
        parts = zip(images.split(batch), _places(maps).split(batch), labels.split(batch), strict=True)
        most, least = torch.cat([_walk(model, *part, counts, fill) for part in parts], dim=1)
    return Removal(torch.tensor(counts).to(most) / cells, most, least)


def _walk(
    model: nn.Module, images: Tensor, places: Tensor, labels: Tensor, counts: list[int], fill: Fill | None
) -> Tensor:
    """(2, b, counts): probability of the labels with the first, and with the last, so many cells gone.

    `fill=None` fills each hole from its own neighbours.
    """
    both, labels = images.repeat(2, 1, 1, 1), labels.repeat(2)
    background = None if fill is None else _background(both, fill, places.shape[1:])
    columns = []
    for k in counts:
        cells = torch.cat([places < k, places >= places[0].numel() - k])
        gone = F.interpolate(cells[:, None].to(images.dtype), images.shape[-2:]).bool().to(images.device)
        seen = impute(both, gone) if background is None else torch.where(gone, background, both)
        columns.append(model(seen).softmax(1).gather(1, labels[:, None]))
    return torch.cat(columns, dim=1).unflatten(0, (2, -1))


def _places(maps: Tensor) -> Tensor:
    """The place of every cell in its map's order, 0 for the highest; equal values fall into a seeded random order."""
    flat = maps.flatten(1)
    dice = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(0)).to(flat.device)
    order = dice[flat[:, dice].argsort(dim=1, descending=True, stable=True)]
    return order.argsort(1).view_as(maps)


def _background(images: Tensor, fill: Fill, grid: torch.Size) -> Tensor:
    """What shows where cells are gone."""
    if isinstance(fill, int | float):
        return torch.full_like(images, fill)
    if fill == "mean":
        return images.mean((2, 3), keepdim=True)
    if fill == "blur":
        from torchvision.transforms.functional import gaussian_blur

        sigma = images.shape[-1] / grid[-1]
        radius = min(round(2 * sigma), min(images.shape[-2:]) - 1)
        return gaussian_blur(images, [2 * radius + 1] * 2, [sigma] * 2)
    raise LabkitError(f'fill={fill!r} is unknown; choose "mean", "blur" or a number.')


def impute(images: Tensor, gone: Tensor, noise: float = 0.01, seed: int = 0) -> Tensor:
    """Images (b, c, h, w) whose missing pixels, `gone` (b, 1, h, w), are each the weighted mean of their eight
    neighbours (1/6 beside, 1/12 across the corner; those outside the frame do not count), plus Gaussian `noise`.

    One sparse linear system for each image, solved for all missing pixels at once by conjugate gradients to well
    within the noise. The noise is the same for every image, whatever stands beside it in the batch.
    """
    if gone.flatten(1).all(1).any():
        raise LabkitError("A picture of which nothing is left cannot be filled from its neighbours; remove less.")
    hole = gone.to(images.dtype)
    weights = _around(torch.ones_like(hole))
    x = torch.zeros_like(images)
    rest = hole * _around(images * (1 - hole))
    step, size = rest, (rest * rest).sum((2, 3), keepdim=True)
    enough = 1e-3 * images.abs().max()
    for _ in range(10 * sum(images.shape[-2:])):
        if rest.abs().max() <= enough:
            break
        towards = hole * (weights * step - _around(step))
        length = size / (step * towards).sum((2, 3), keepdim=True).clamp(min=1e-30)
        x, rest = x + length * step, rest - length * towards
        before, size = size, (rest * rest).sum((2, 3), keepdim=True)
        step = rest + size / before.clamp(min=1e-30) * step
    dice = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(seed)).to(x)
    return torch.where(gone, x + noise * dice, images)


def _around(x: Tensor) -> Tensor:
    """Four times each pixel, twice the four beside it, once the four across its corners; zeros outside the frame.

    The pixel itself drops out of the system; with it, the sum is one pass over rows and one over columns.
    """
    padded = F.pad(x, (1, 1, 1, 1))
    rows = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    return rows[..., :-2, :] + 2 * rows[..., 1:-1, :] + rows[..., 2:, :]
