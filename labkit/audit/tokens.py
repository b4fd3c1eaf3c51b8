"""Which tokens could go: every way of losing them at several budgets, with dice beside them.

Tokens are taken away behind a quarter, a half and three quarters of the blocks, each time by the same share.
"""

from __future__ import annotations

from typing import Any, get_args

from labkit.audit import stacks
from labkit.audit.measure import points
from labkit.audit.subject import Subject
from labkit.stack import Stack
from labkit.stack.recipe import Reduction

TITLE = "Tokens"
WAYS = [way for way in get_args(Reduction) if way != "none"]
ASKS = ("keep", "fuse")  # these ask the class token
table, figure = stacks.table, stacks.figure


def measure(found: Subject, fast: bool = False) -> dict[str, Any]:
    net, depth = found.vit, len(found.vit.blocks)
    where = tuple(sorted({depth // 4, depth // 2, 3 * depth // 4} - {depth - 1}))
    ways = [way for way in WAYS if net.cls_token is not None or way not in ASKS]
    tried = {
        f"{way} {keep:.0%}": Stack(reducer=way, keep=keep, where=", ".join(map(str, where)))
        for way in ways
        for keep in ((0.7, 0.5) if fast else (0.8, 0.6, 0.4))
    }
    left_out = [way for way in WAYS if way not in ways]
    why = f"There is no class token to ask: {' and '.join(left_out)} were left out." if left_out else ""
    return stacks.measured(found, tried, 3.0 if fast else 20.0) | {"where": list(where), "left_out": why}


def sentence(values: dict[str, Any]) -> str:
    """The best of each budget, and what dice do there."""
    said = []
    for keep in dict.fromkeys(row["stack"]["keep"] for row in values["candidates"]):
        rows = [row for row in values["candidates"] if row["stack"]["keep"] == keep]
        best = max((row for row in rows if row["stack"]["reducer"] != "random"), key=lambda row: row["difference"])
        dice = next(row for row in rows if row["stack"]["reducer"] == "random")
        said.append(
            f"with {keep:.0%} of the patches left, {best['stack']['reducer']} costs {points(best)} points of "
            f"{values['word']} and dice {points(dice)}"
        )
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}. {values['left_out']}".strip()
