"""Where a grid of 2^bits levels should begin and end: a range read from data, by five rules.

A wide range clips nothing and has a coarse step; a narrow one is fine inside and cuts the tails off. `min_max` never
cuts, `percentile` cuts a fixed share, `mse` finds the least squared error, `kl` the least change of the histogram, and
`moving_average` follows batches one after another. The rules are compared in "Integer Quantization for Deep Learning
Inference: Principles and Empirical Evaluation", 2020; the smoothed extremes are from "Quantization and Training of
Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2017.

    low, high = mse(activations, bits=4)       activations: a tensor, or batches of it

Every range holds zero, as every grid must: constant data c give (0, c) or (c, 0), whose ends are exact, and zeros
give (0, 0). Ranges are at least float32. All but `min_max` and `moving_average` hold the data in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from labkit.errors import LabkitError
from labkit.quant.grids import Uniform, check_bits

Data = Tensor | Iterable[Tensor]
Range = tuple[Tensor, Tensor]

BINS = 2048  # of the histogram that `kl` compares
STEPS = 64  # how many clips are tried along one direction


def min_max(x: Data, bits: int) -> Range:
    """The extremes; as with every rule, `bits` is asked for so that one rule can stand in for another."""
    ranges = [_extremes(batch) for batch in _batches(x, bits)]
    return torch.stack([low for low, _ in ranges]).min(), torch.stack([high for _, high in ranges]).max()


def percentile(x: Data, bits: int, keep: float = 0.999) -> Range:
    """The range that the middle `keep` of the numbers lie in, half of the rest on each side; 1 keeps the extremes."""
    if not 0 < keep <= 1:
        raise LabkitError(f"keep={keep} is no share of the numbers; choose one above 0 and up to 1, as 0.999.")
    x = _all(x, bits)
    cut = int((1 - keep) / 2 * (len(x) - 1) + 1e-9)  # rounding errors must not cut a number more
    return _with_zero(x.kthvalue(cut + 1).values, x.kthvalue(len(x) - cut).values)


def moving_average(x: Data, bits: int, momentum: float = 0.9) -> Range:
    """Extremes that keep `momentum` of what they were at each batch, so that one odd batch passes by.

    A single tensor is one batch and gives its extremes; momentum 0 those of the last batch, which may clip the others.
    """
    if not 0 <= momentum < 1:
        raise LabkitError(f"momentum={momentum} is no memory; choose a number from 0 (none) to below 1, as 0.9.")
    batches = _batches(x, bits)
    low, high = _extremes(next(batches))
    for batch in batches:
        new_low, new_high = _extremes(batch)
        low, high = torch.lerp(new_low, low, momentum), torch.lerp(new_high, high, momentum)
    return low, high


def mse(x: Data, bits: int) -> Range:
    """The range of the least squared error among some two hundred.

    Never worse than `min_max`: its range is the first to be tried, and the last word is the error itself.
    """
    x = _all(x, bits).sort().values
    widest = _extremes(x)
    best = _best_clip(_squared_error(x, bits), widest)
    return best if _direct_error(x, bits, *best) < _direct_error(x, bits, *widest) else widest


def kl(x: Data, bits: int) -> Range:
    """The clip after which the histogram tells the least apart: KL(clipped data ‖ the same in 2^bits levels).

    The numbers that are cut off count at the ends before rounding and nowhere after it: that is what cutting costs.
    Levels finer than the histogram's bins cannot be judged by it, and give the extremes. The value of a number counts
    nothing: where most are tiny and the few large ones matter, as in attention, this rule cuts off what matters.
    """
    x = _all(x, bits)
    low, high = _extremes(x)
    if low == high:
        return low, high
    counts = torch.histc(x, BINS, low.item(), high.item()).double()
    centres = (low + (high - low) * (torch.arange(BINS, device=x.device) + 0.5) / BINS).double()
    return _best_clip(lambda a, b: _divergence(counts, centres, a.double(), b.double(), bits), (low, high))


def _batches(x: Data, bits: int) -> Iterator[Tensor]:
    check_bits(bits)
    some = False
    for batch in [x] if isinstance(x, Tensor) else x:
        if not batch.isfinite().all():
            raise LabkitError("The calibration data hold NaN or infinity; find the image or layer that makes them.")
        if batch.numel():
            some = True
            yield batch.detach().flatten().to(torch.promote_types(batch.dtype, torch.float32))
    if not some:
        raise LabkitError("There are no numbers to calibrate on; pass at least one image's worth.")


def _all(x: Data, bits: int) -> Tensor:
    return torch.cat(list(_batches(x, bits)))


def _extremes(x: Tensor) -> Range:
    return _with_zero(x.min(), x.max())


def _with_zero(low: Tensor, high: Tensor) -> Range:
    return low.clamp(max=0), high.clamp(min=0)


def _best_clip(error: Callable[[Tensor, Tensor], Tensor], widest: Range) -> Range:
    """The range of the least error, of equals the widest: both ends are shrunk together, then each end alone."""
    best, least = widest, error(*widest)
    for ends in ((1, 1), (1, 0), (0, 1)):
        low, high = best
        for step in range(1, STEPS):
            tried = low * (1 - ends[0] * step / STEPS), high * (1 - ends[1] * step / STEPS)
            now = error(*tried)
            if now < least:
                best, least = tried, now
    return best


def _squared_error(x: Tensor, bits: int) -> Callable[[Tensor, Tensor], Tensor]:
    """The squared error of any grid over sorted numbers, from their running sums: one sort serves every candidate."""
    x = x.double()
    sums, squares = torch.cat([x.new_zeros(1), x.cumsum(0)]), x.square().sum()

    def error(low: Tensor, high: Tensor) -> Tensor:
        if 2**bits > len(x):  # more levels than numbers: rounding each is the shorter way
            return _direct_error(x, bits, low, high)
        levels = Uniform.of(low.double(), high.double(), bits).levels()
        inner = torch.searchsorted(x, (levels[1:] + levels[:-1]) / 2)
        edges = torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), len(x))])
        return squares - 2 * (levels * sums[edges].diff()).sum() + (levels.square() * edges.diff()).sum()

    return error


def _direct_error(x: Tensor, bits: int, low: Tensor, high: Tensor) -> Tensor:
    return (Uniform.of(low, high, bits).round(x) - x).double().square().sum()


def _divergence(counts: Tensor, centres: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """KL(P ‖ Q): P the histogram with its tails moved to the ends, Q the bins inside, smeared out over each level."""
    inside = (centres >= low) & (centres <= high)
    kept, bins = counts[inside], centres[inside]
    if len(kept) < 2**bits:  # a level for each bin changes nothing, whatever was cut off
        return torch.tensor(torch.inf)
    level = Uniform.of(low, high, bits).encode(bins)
    level = level - level[0]
    p = kept.clone()
    p[0] += counts[centres < low].sum()
    p[-1] += counts[centres > high].sum()
    mass = torch.zeros_like(kept).index_add(0, level, kept)
    filled = torch.zeros_like(kept).index_add(0, level, (p > 0).to(kept))
    q = torch.where(p > 0, (mass / filled.clamp(min=1))[level], 0.0)
    p, q = p / p.sum(), q / q.sum()
    # A level that held nothing inside but got a tail says the clip is blind there: its KL is infinite, so it loses.
    return torch.where(p > 0, p * (p / q).log(), 0.0).sum().nan_to_num(torch.inf)
