"""A share of right answers with its interval, what a change costs, and how long a model takes: the audit's numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from labkit import clock
from labkit.audit.subject import Subject
from labkit.intervals import paired_difference, wilson
from labkit.tables import ranged

Row = dict[str, Any]


def share(right: Tensor) -> Row:
    """{"share", "low", "high", "images"}, 95 %."""
    low, high = wilson(int(right.sum()), len(right))
    return {"share": right.double().mean().item(), "low": low, "high": high, "images": len(right)}


def change(right: Tensor, before: Tensor) -> Row:
    """`share`, the paired difference to what was right before ({"difference", "difference_low", ...}), its counts."""
    difference, low, high = paired_difference(right, before)
    counts = {"lost": int((before & ~right).sum()), "gained": int((right & ~before).sum())}
    return share(right) | {"difference": difference, "difference_low": low, "difference_high": high} | counts


def times(
    found: Subject, models: Mapping[str, nn.Module | Callable[..., Any]], batch: int, seconds: float
) -> dict[str, Row]:
    """Milliseconds of one batch, and the ratio to the first model, from runs in turns; one thread on a CPU."""
    inputs = found.inputs[:batch]
    if len(inputs) < batch:  # few images: the arithmetic is the same for repeated ones
        inputs = inputs.repeat(-(-batch // len(inputs)), 1, 1, 1)[:batch]
    on_gpu = inputs.device.type == "cuda"
    timing = clock.compare(
        models, inputs, rounds=15, warmup=1, seconds=seconds, clocks=("wall",) if on_gpu else ("cpu",)
    )
    rows = {}
    for name in timing.names:
        fastest, slowest = timing.interval(name)
        ratio, low, high = timing.ratio(name)
        rows[name] = {"ms": 1e3 * timing.median(name), "ms_low": 1e3 * fastest, "ms_high": 1e3 * slowest}
        rows[name] |= {"ratio": ratio, "ratio_low": low, "ratio_high": high}
    return rows


def percent(row: Row) -> str:
    """A share with its interval, in words."""
    return ranged((row["share"], row["low"], row["high"]), ".1%")


def points(row: Row) -> str:
    """A paired difference with its interval, in points."""
    return ranged((row["difference"], row["difference_low"], row["difference_high"]), "+.1f", times=100)


def faster(row: Row) -> str:
    """How many times as fast as the untouched model, in words."""
    return ranged(1 / row[name] for name in ("ratio", "ratio_high", "ratio_low"))
