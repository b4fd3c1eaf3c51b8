"""What a grid does to the numbers that it rounds: where they lie, which levels they use, what is cut off and lost.

seen = inspect(weight, Uniform.of(weight.amin(), weight.amax(), bits=4))
print(seen)                              # 15 of 16 levels used, 0.00% cut off, 19.8 dB, largest error 0.041
for name, seen in inspect_model(quantized, images, model).items(): ...
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.errors import LabkitError
from labkit.quant.grids import Grid, prepared
from labkit.quant.model import layers
from labkit.quant.point import points, watched
from labkit.quant.rotation import rotate
from labkit.vit import ViT

BINS = 128
BATCH = 64  # images that are run at once


@dataclass(frozen=True, eq=False, repr=False)
class Inspection:
    """How numbers and the levels of their grid meet. Neighbours that share a scale count as one."""

    counts: Tensor  # (bins,) how many numbers lie in each bin
    edges: Tensor  # (bins + 1,) where the bins end; the outer two are the extremes of the numbers
    levels: Tensor  # (levels, scales) the values there are, rising, in a column for each scale
    used: int  # distinct levels that occur, of all scales together
    there: int  # distinct levels that there are
    clipped: float  # the share of numbers further beyond an end than half the step there
    error: Tensor  # rounded less true, in the shape of the numbers
    sqnr_db: float  # 10 log₁₀ of signal over noise, both squared and summed; infinite where nothing is lost

    @property
    def low(self) -> Tensor:
        """The lowest level of each scale: what lies below is cut off."""
        return self.levels[0]

    @property
    def high(self) -> Tensor:
        return self.levels[-1]

    @property
    def max_error(self) -> float:
        return float(self.error.abs().max())

    def __repr__(self) -> str:
        many = "" if self.levels.shape[1] == 1 else f" of {self.levels.shape[1]} scales"
        return (
            f"{self.used} of {self.there} levels{many} used, {self.clipped:.2%} cut off, "
            f"{self.sqnr_db:.1f} dB, largest error {self.max_error:.3g}"
        )


@torch.no_grad()
def inspect(x: Tensor, grid: Grid, rounded: Tensor | None = None) -> Inspection:
    """x beside what stands for it: the nearest value of the grid, or, where something else chose, `rounded`."""
    if not x.numel():
        raise LabkitError("The tensor is empty, so there is nothing to inspect.")
    x = prepared(x.detach())
    if not x.isfinite().all():
        raise LabkitError("The tensor holds infinity, and every grid ends before; find where it arises.")
    codes = grid.encode(x if rounded is None else rounded.detach())
    if codes.shape != x.shape:
        raise LabkitError(f"The grid makes {tuple(codes.shape)} of numbers {tuple(x.shape)}; is it another tensor's?")
    levels, values = grid.levels(), grid.decode(codes)
    error = values.to(x.dtype) - x
    columns, which = _scales(levels)
    there = columns.shape[1] + int((columns.diff(dim=0) > 0).sum())
    used = _used(which.expand_as(codes), codes, values)
    return Inspection(*_histogram(x), columns, used, there, _clipped(x, levels), error, sqnr_db(x, error))


def sqnr_db(x: Tensor, error: Tensor) -> float:
    """Signal over noise in decibels: 10 log₁₀ Σ x² / Σ error²; one bit more is about 6 dB more."""
    signal, noise = (float(part.double().square().sum()) for part in (x, error))
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


@torch.no_grad()
def inspect_model(quantized: ViT, images: Tensor, model: ViT | None = None) -> dict[str, Inspection]:
    """What each grid of a quantized model does while it sees these images, by the name of its point.

    With `model`, from which it was made, the weights as well, as "blocks.3.mlp.fc1.weight"; but not where a norm was
    folded into them, because then the weight that was rounded is another one.
    """
    if not len(images):
        raise LabkitError("There are no images to look at; pass at least one.")
    with watched(quantized) as notes:
        for some in images.split(BATCH):
            quantized(some)
    found = {}
    for name, point in points(quantized).items():
        if not notes[name]:
            continue
        x = torch.cat(notes[name])
        grid = point.grid_for(x)
        if grid is not None:
            found[name] = inspect(x, grid)
    return found if model is None else found | _weights(quantized, model)


def _weights(quantized: ViT, model: ViT) -> dict[str, Inspection]:
    found, plain, folded = {}, dict(model.named_parameters()), _folded(quantized, model)
    for name, layer in layers(quantized).items():
        if layer.grid is None or name.startswith(folded):
            continue
        weight = plain.get(f"{name}.weight")
        if weight is None or weight.flatten(1).shape != layer.weight.shape:
            raise LabkitError(f"The model has no layer {name} of this size; pass the one that was quantized.")
        before = rotate(weight.flatten(1)) if layer.rotated else weight.flatten(1)
        found[f"{name}.weight"] = inspect(before, layer.grid, layer.weight)
    return found


def _folded(quantized: ViT, model: ViT) -> tuple[str, ...]:
    """How the names of those layers begin that a norm was folded into."""
    ours, plain = ({k: v for k, v in m.state_dict().items() if ".norm" in k} for m in (quantized, model))
    changed = {k for k in ours.keys() | plain if k not in ours or k not in plain or not ours[k].equal(plain[k])}
    norms = {key.rpartition(".")[0] for key in changed}
    return tuple(norm.replace("norm1", "attn.qkv").replace("norm2", "mlp.fc1") for norm in norms)


def _histogram(x: Tensor) -> tuple[Tensor, Tensor]:
    low, high = (float(end) for end in x.aminmax())
    room = 0.5 if low == high else 0.0  # a single value needs a bin to lie in
    edges = torch.linspace(low - room, high + room, BINS + 1, dtype=torch.float64)
    return torch.histc(x.double().cpu(), BINS, low - room, high + room).long(), edges


def _scales(levels: Tensor) -> tuple[Tensor, Tensor]:
    """The levels of each scale as columns, neighbours that are alike taken together, and which column a scale has."""
    columns = levels.flatten(1) if levels.ndim > 1 else levels[:, None]
    new = torch.ones(columns.shape[1], dtype=torch.bool, device=levels.device)
    new[1:] = (columns.diff(dim=1) != 0).any(dim=0)
    return columns[:, new], (new.cumsum(0) - 1).reshape(levels.shape[1:])


def _used(which: Tensor, codes: Tensor, values: Tensor) -> int:
    """How many distinct values occur, counted for each scale: two codes may stand for one value."""
    codes = codes.long() - int(codes.min())
    scales, count = int(which.max()) + 1, int(codes.max()) + 1
    seen = torch.full((scales * count,), torch.inf, dtype=values.dtype, device=values.device)
    seen.scatter_(0, (which * count + codes).flatten(), values.flatten())
    rows = seen.reshape(scales, count).sort(dim=1).values
    return int(rows[:, 0].isfinite().sum() + ((rows.diff(dim=1) > 0) & rows[:, 1:].isfinite()).sum())


def _clipped(x: Tensor, levels: Tensor) -> float:
    """The share that is further beyond an end than half the step there; a little more, for the sake of rounding."""
    first, last = levels[0], levels[-1]
    second = torch.where(levels > first, levels, torch.inf).amin(dim=0)
    next_to_last = torch.where(levels < last, levels, -torch.inf).amax(dim=0)
    half = 0.5 + 1e-4
    beyond = (first - x > half * (second - first)) | (x - last > half * (last - next_to_last))
    return float(beyond.double().mean())
