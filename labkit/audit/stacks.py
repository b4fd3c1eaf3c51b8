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

WORSE, SLOWER = 25, 1.3  # points below the untouched model's, and times its time: what a figure leaves out


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
    """Fastest first."""
    rows = [
        [row["name"], faster(row), points(row), percent(row), f"{row['ms']:.1f}", f"{row['macs'] / 1e6:,.0f}"]
        for row in sorted(values["candidates"], key=lambda row: row["ratio"])
    ]
    headers = [
        "choice",
        "times as fast",
        "points, against untouched",
        values["word"],
        f"ms, {values['batch']} images",
        "MACs (M)",
    ]
    return Table(headers, rows, [False] + [True] * 5)


@figures.styled
def figure(values: dict[str, Any]) -> Figure:
    """Time against right answers, both with intervals; a line joins what nothing else beats.

    What is far slower or far worse than the untouched model lies outside the frame: nobody will choose it.
    """
    fig = Figure(figsize=(6.5, 4.2), layout="constrained")
    ax = fig.subplots()
    rows, untouched = values["candidates"], 100 * values["untouched"]["share"]
    floor, right = untouched - WORSE, SLOWER
    inside = [row for row in rows if row["ratio"] < right and 100 * row["share"] > floor]
    for (kind, some), mark in zip(by_kind(inside).items(), "os^Dv", strict=False):
        x, y = [row["ratio"] for row in some], [100 * row["share"] for row in some]
        wide, tall = arms(some, "ratio", "ratio_low", "ratio_high"), arms(some, "share", "low", "high", 100)
        _, _, ends = ax.errorbar(x, y, xerr=wide, yerr=tall, fmt=mark, label=kind, markersize=6, elinewidth=0.8)
        for end in ends:  # with thirty choices the intervals would hide the points
            end.set_alpha(0.4)
    ax.plot(1, untouched, "ko", markerfacecolor="none", markersize=9, label="untouched")
    stairs = front(inside)
    ax.step([row["ratio"] for row in stairs], [100 * row["share"] for row in stairs], where="post", color="0.5", ls=":")
    ax.axvline(1, color="black", linewidth=0.8)
    ax.set(xlabel="time, as a share of the untouched model's", ylabel=f"{values['word']} (%)")
    if outside := len(rows) - len(inside):
        ax.set_title(f"{outside} of {len(rows)} choices, far slower or worse, lie outside", loc="left", fontsize=9)
    fig.legend(frameon=False, loc="outside lower center", ncols=3, fontsize=9)
    return fig


def by_kind(rows: list[Row]) -> dict[str, list[Row]]:
    """What is lost: tokens dropped, joined or thrown away by dice, bits, or both."""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kinds.setdefault(kind(row["stack"]), []).append(row)
    return kinds


def kind(stack: dict[str, Any]) -> str:
    if Stack(**stack).rounds:
        return "bits" if stack["reducer"] == "none" else "tokens and bits"
    if stack["reducer"] == "random":
        return "dice"
    return "tokens dropped" if stack["reducer"].startswith("keep") else "tokens joined"


def arms(rows: list[Row], middle: str, low: str, high: str, unit: float = 1) -> list[list[float]]:
    """How far an interval reaches below and above; at its end, rounding must not make that negative."""
    below = [unit * max(0.0, row[middle] - row[low]) for row in rows]
    return [below, [unit * max(0.0, row[high] - row[middle]) for row in rows]]


def front(rows: list[Row]) -> list[Row]:
    """What nothing else beats in both time and answers, the fastest first."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (row["ratio"], -row["share"])):
        if not best or row["share"] > best[-1]["share"]:
            best.append(row)
    return best
