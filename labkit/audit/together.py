"""Tokens and bits at once: the best ways of losing tokens, on integer kernels too, beside all that was measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from labkit.audit import stacks
from labkit.audit.bits import careful
from labkit.audit.measure import Row, faster, points
from labkit.audit.subject import Subject
from labkit.stack import Stack

TITLE = "All choices"
SHOWN = 12  # lines of the table


def measure(found: Subject, fast: bool = False, before: list[Row] | None = None) -> dict[str, Any]:
    """`before` are the candidates of the other sections; the two best ways with tokens are tried with bits."""
    rows = [row for row in before or [] if row["stack"]["reducer"] not in ("none", "random")]
    picked = sorted(stacks.front(rows), key=lambda row: -row["share"])[: 2 if fast else 4]
    tried = {}
    for row in picked:
        rounded = replace(Stack(**row["stack"]), weights=8, activations=8, backend="int8")
        tried[f"{row['name']} + int8"] = careful(rounded, found.vit)
    more = {"others": before or [], "untried": len(rows) - len(picked)}
    return stacks.measured(found, tried, 2.0 if fast else 12.0) | more


def joined(values: dict[str, Any]) -> dict[str, Any]:
    return values | {"candidates": values["candidates"] + values["others"]}


def table(values: dict[str, Any]) -> Any:
    """The fastest."""
    ordered = sorted(joined(values)["candidates"], key=lambda row: row["ratio"])
    return stacks.table(values | {"candidates": ordered[:SHOWN]})


def figure(values: dict[str, Any]) -> Any:
    return stacks.figure(joined(values))


def sentence(values: dict[str, Any]) -> str:
    tried = joined(values)["candidates"]
    told = [f"{row['name']} ({faster(row)} times as fast, {points(row)} points)" for row in stacks.front(tried)]
    word = values["word"]
    return f"Of {len(tried)} choices, nothing beats these in both time and {word}: {'; '.join(told)}."
