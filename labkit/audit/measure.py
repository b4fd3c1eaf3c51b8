"""A share of right answers with its interval, what a change costs, and how long a model takes: the audit's numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from labkit import clock
from labkit.audit.subject import Subject
from labkit.intervals import paired_difference, wilson

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
    """Milliseconds of one batch, and the ratio to the first model, from runs in turns: one thread on a CPU."""
    inputs = found.inputs[:batch]
    if len(inputs) < batch:  # few images: the arithmetic is the same for repeated ones
        inputs = inputs.repeat(-(-batch // len(inputs)), 1, 1, 1)[:batch]
    on_gpu = inputs.device.type == "cuda"
    timing = clock.compare(
        models, inputs, rounds=15, warmup=1, seconds=seconds, clocks=("wall",) if on_gpu else ("cpu",)
    )
    rows = {}
    for name in timing.names:
        ratio, low, high = timing.ratio(name)
        rows[name] = {"ms": 1e3 * timing.median(name), "ratio": ratio, "ratio_low": low, "ratio_high": high}
    return rows


def percent(row: Row) -> str:
    """A share with its interval, in words."""
    return f"{row['share']:.1%} [{row['low']:.1%}, {row['high']:.1%}]"


def points(row: Row) -> str:
    """A paired difference with its interval, in points."""
    middle, low, high = (f"{100 * row[name]:+.1f}" for name in ("difference", "difference_low", "difference_high"))
    return f"{middle} [{low}, {high}]"


def faster(row: Row) -> str:
    """How many times as fast as the untouched model, in words."""
    return f"{1 / row['ratio']:.2f} [{1 / row['ratio_high']:.2f}, {1 / row['ratio_low']:.2f}]"
