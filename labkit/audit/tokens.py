"""Which tokens could go: every way of losing them at two budgets, early, late and everywhere, with dice beside them.

Every way takes patches away behind a quarter, a half and three quarters of the blocks, each time by the same share. One
that drops them and one that joins them do it in other places too: at once behind a quarter of the blocks, in the second
half only, or a little in every block ("Token Merging: Your ViT But Faster", 2022).
"""

from __future__ import annotations

from typing import Any, get_args

from labkit.audit import stacks
from labkit.audit.measure import points
from labkit.audit.subject import Subject
from labkit.errors import LabkitError
from labkit.stack import Stack
from labkit.stack.reduce import Reduction

TITLE = "Tokens"
WAYS: list[Reduction] = [way for way in get_args(Reduction) if way != "none"]
BUDGETS = (0.7, 0.5)
# In a hurry: of each kind what answered best on the images that ship with labkit, the plainest merging, and dice.
FEW: list[Reduction] = ["keep-value", "keep-apart", "merge", "merge-criteria", "random"]
# The best that drops and the best that joins there; neither asks the class token.
PLACED: list[Reduction] = ["keep-apart", "merge-criteria"]
table, figure = stacks.table, stacks.figure


def places(depth: int) -> dict[str, tuple[int, ...]]:
    """The blocks that reduce, by the name of the place; nobody reads patches behind the last block."""
    last = depth - 1
    named = {
        "": {depth // 4, depth // 2, 3 * depth // 4},
        "early": {depth // 4},
        "late": {depth // 2, 3 * depth // 4},
        "everywhere": set(range(last)),
    }
    found: dict[str, tuple[int, ...]] = {}
    for name, blocks in named.items():
        where = tuple(sorted(blocks - {last}))
        if where and where not in found.values():
            found[name] = where
    return found


def grid(depth: int, fast: bool) -> dict[str, Stack]:
    """Name → what is tried, whether or not it suits the model: in other places one budget, in a hurry one place."""
    usual, *other = places(depth).items()
    tried = [(way, keep, usual) for way in (FEW if fast else WAYS) for keep in BUDGETS]
    tried += [(way, BUDGETS[-1], place) for place in (other[-1:] if fast else other) for way in PLACED]
    return {
        f"{way} {keep:.0%} {name}".strip(): Stack(reducer=way, keep=keep, where=", ".join(map(str, where)))
        for way, keep, (name, where) in tried
    }


def measure(found: Subject, fast: bool = False) -> dict[str, Any]:
    depth = len(found.vit.blocks)
    tried, left_out = {}, {}
    for name, stack in (grid(depth, fast) if depth > 1 else {}).items():
        try:
            stack.build(found.vit)
            tried[name] = stack
        except LabkitError as why:
            left_out[name] = str(why)
    return stacks.measured(found, tried, 2.0 if fast else 20.0) | {"left_out": left_out, "blocks": depth}


def sentence(values: dict[str, Any]) -> str:
    """The best of each budget in the usual places, what dice do there, what nothing beats, and what was left out."""
    rows = values["candidates"]
    if not rows:
        return "Nothing to try: this model has one block, and nobody reads patches behind the last one."
    said = [said_of(values, keep) for keep in dict.fromkeys(row["stack"]["keep"] for row in rows)]
    ahead = ", ".join(row["name"] for row in stacks.front([row for row in rows if row["stack"]["reducer"] != "random"]))
    text = "; ".join(said)
    told = (
        f"{text[0].upper()}{text[1:]}. Nothing that was tried beats these in both time and {values['word']}: {ahead}."
    )
    return " ".join([told, *left_out(values["left_out"])])


def said_of(values: dict[str, Any], keep: float) -> str:
    usual = ", ".join(map(str, places(values["blocks"])[""]))
    rows = [row for row in values["candidates"] if (row["stack"]["keep"], row["stack"]["where"]) == (keep, usual)]
    best = max((row for row in rows if row["stack"]["reducer"] != "random"), key=lambda row: row["difference"])
    dice = next(row for row in rows if row["stack"]["reducer"] == "random")
    return (
        f"with {keep:.0%} of the patches left, {best['stack']['reducer']} changes {values['word']} by {points(best)} "
        f"points and dice by {points(dice)}"
    )


def left_out(reasons: dict[str, str]) -> list[str]:
    """A sentence for each reason, with all names that it holds for."""
    by_reason: dict[str, list[str]] = {}
    for name, why in reasons.items():
        by_reason.setdefault(why.replace(f'"{name.split()[0]}"', "it"), []).append(name)
    return [f"Left out: {', '.join(names)}, because {why}" for why, names in by_reason.items()]
