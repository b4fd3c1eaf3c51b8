"""What tokens and bits share: stacks built, judged on the same images, and timed in turns with the untouched model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from labkit import cost
from labkit.audit.measure import Row, change, faster, percent, points, share, times
from labkit.audit.subject import Subject
from labkit.stack import Stack
from labkit.tables import Table
from labkit.viz import figures


def measured(found: Subject, stacks: Mapping[str, Stack], seconds: float) -> dict[str, Any]:
    """The rows of these stacks, and what they are held against."""
    rows = candidates(found, stacks, seconds) if stacks else []
    return {"word": found.word, "batch": found.batch, "untouched": share(found.right()), "candidates": rows}


def candidates(found: Subject, stacks: Mapping[str, Stack], seconds: float) -> list[Row]:
    """A row for each stack, as `schema.json` has it; `seconds` are spent on the clock."""
    built = {name: stack.build(found.vit, found.calibration) for name, stack in stacks.items()}
    # Judged before they are timed: dice that have been thrown once more fall otherwise.
    right, before = {name: found.right(model) for name, model in built.items()}, found.right()
    taken = times(found, {"untouched": found.vit, **built}, found.batch, seconds)
    return [
        {"name": name, "describe": stacks[name].describe(), "stack": stacks[name].choices()}
        | change(right[name], before)
        | taken[name]
        | {"macs": cost.count(model, found.size).macs}
        for name, model in built.items()
    ]


def table(values: dict[str, Any]) -> Table:
    """Cheapest last."""
    rows = [
        [row["name"], percent(row), points(row), f"{row['macs'] / 1e6:,.0f}", f"{row['ms']:.1f}", faster(row)]
        for row in sorted(values["candidates"], key=lambda row: -row["ratio"])
    ]
    headers = [
        "choice",
        values["word"],
        "points, against untouched",
        "MACs (M)",
        f"ms, {values['batch']} images",
        "times as fast",
    ]
    return Table(headers, rows, [False] + [True] * 5)


@figures.styled
def figure(values: dict[str, Any]) -> Figure:
    """Time against right answers, both with intervals; a line joins what nothing else beats."""
    fig = Figure(figsize=(6.5, 4), layout="constrained")
    ax = fig.subplots()
    for number, (kind, rows) in enumerate(by_kind(values["candidates"]).items()):
        x, y = [row["ratio"] for row in rows], [100 * row["share"] for row in rows]
        wide, tall = arms(rows, "ratio", "ratio_low", "ratio_high"), arms(rows, "share", "low", "high", 100)
        mark = "os^Dv*XP"[number % 8]
        _, _, ends = ax.errorbar(x, y, xerr=wide, yerr=tall, fmt=mark, label=kind, markersize=6, elinewidth=0.8)
        for end in ends:  # with thirty choices the intervals would hide the points
            end.set_alpha(0.45)
    ax.plot(1, 100 * values["untouched"]["share"], "ko", markerfacecolor="none", markersize=9, label="untouched")
    stairs = front(values["candidates"])
    ax.step([row["ratio"] for row in stairs], [100 * row["share"] for row in stairs], where="post", color="0.5", ls=":")
    ax.axvline(1, color="black", linewidth=0.8)
    ax.set(xlabel="time, as a share of the untouched model's", ylabel=f"{values['word']} (%)")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return fig


def arms(rows: list[Row], middle: str, low: str, high: str, unit: float = 1) -> list[list[float]]:
    """How far an interval reaches below and above; at its end, rounding must not make that negative."""
    below = [unit * max(0.0, row[middle] - row[low]) for row in rows]
    return [below, [unit * max(0.0, row[high] - row[middle]) for row in rows]]


def by_kind(rows: list[Row]) -> dict[str, list[Row]]:
    """By the first word of the name."""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kinds.setdefault(row["name"].split()[0].rstrip(":"), []).append(row)
    return kinds


def front(rows: list[Row]) -> list[Row]:
    """What nothing else beats in both time and answers, the fastest first."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (row["ratio"], -row["share"])):
        if not best or row["share"] > best[-1]["share"]:
            best.append(row)
    return best
