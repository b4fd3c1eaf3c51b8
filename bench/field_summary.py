"""The field in words and tables: who is ahead of whom and where, which bars hold, and a cell for everybody."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from statistics import geometric_mean
from typing import Any

from bench.field_ways import (
    COMPILED,
    DYNAMIC,
    DYNAMIC_MERGE,
    ENCODER,
    FAST,
    HALF,
    INT8,
    INT8_MERGE,
    PLAIN,
    RUNTIME,
    RUNTIME8,
    THEIR_HALF,
    TIMM,
    WAYS,
    ours,
    rivals_of,
)
from labkit.tables import Table, ranged

EXACT, ROUNDED = 1e-5, 0.05  # relative errors of the logits, at most, in float32 and with 8 bits
AHEAD = (  # over all sizes, places and batches
    (FAST, TIMM),
    (FAST, ENCODER),
    (FAST, RUNTIME),
    (HALF, THEIR_HALF),
    (INT8, DYNAMIC),
    (INT8, RUNTIME8),
    (INT8, COMPILED),
    (INT8_MERGE, DYNAMIC_MERGE),
)
Found = Mapping[str, Any]
Spread = list[float]  # times as fast, and the ends of the interval


def cells(found: Found) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where, in words, and what was measured there, in the order of the plan."""
    plan = found["setting"]
    for size in plan["sizes"]:
        for place in plan["places"]:
            for batch in plan["batches"]:
                yield f"{size}, {place}, batch {batch}", found["groups"][size][place][str(batch)]


def duel(found: Found, name: str, other: str) -> dict[str, Spread]:
    """Where both took part → how many times as fast `name` was."""
    met = {where: group["rows"].get(name, {}).get("faster", {}).get(other) for where, group in cells(found)}
    return {where: spread for where, spread in met.items() if spread is not None}


def bars(found: Found) -> dict[str, bool]:
    """A sentence with the bar, the measured number and the worst case → does it hold? None for who is absent.

    Of two that are equally fast, each is behind somewhere by chance: the mean over all settings is judged.
    """
    held = {}
    for name, other in AHEAD:
        if spreads := duel(found, name, other):
            mean, worst = geometric_mean(ratio[0] for ratio in spreads.values()), ends(spreads)[0]
            held[f"{name} is as fast as {other}: {mean:.2f} times on average, at worst {worst}"] = mean >= 1
    for name, most in ((FAST, EXACT), (INT8, ROUNDED)):
        known = {size: told["cpu"]["errors"] for size, told in found["models"].items() if name in told["cpu"]["errors"]}
        if known:
            size = max(known, key=lambda size: known[size][name])
            error = known[size][name]
            held[f"{name}: relative error of the logits ≤ {most:g}: at worst {error:.2g} ({size})"] = error <= most
    return held


def pairs() -> list[tuple[str, str]]:
    """Each of ours that is meant to be fast, and each who does the same."""
    return [(name, other) for name in WAYS if ours(name) and name != PLAIN for other in rivals_of(name)]


def tally(spreads: Mapping[str, Spread]) -> tuple[int, int, int]:
    """Ahead, level and behind; level is an interval that holds 1."""
    ahead, behind = sum(s[1] > 1 for s in spreads.values()), sum(s[2] < 1 for s in spreads.values())
    return ahead, len(spreads) - ahead - behind, behind


def ends(spreads: Mapping[str, Spread]) -> tuple[str, str]:
    """The slowest and the fastest, and where."""
    ordered = sorted(spreads.items(), key=lambda pair: pair[1][0])
    slowest, fastest = (f"{ranged(ratio)} ({where})" for where, ratio in (ordered[0], ordered[-1]))
    return slowest, fastest


DUELS = ["asked", "of labkit", "against", "ahead", "level", "behind", "at worst, times as fast", "at best"]


def duels(found: Found) -> list[list[str]]:
    """A line for each pair: ahead, level, behind, and the two ends."""
    met = [(name, other, duel(found, name, other)) for name, other in pairs()]
    return [
        [WAYS[name].asks, name, other, *map(str, tally(spreads)), *ends(spreads)]
        for name, other, spreads in met
        if spreads
    ]


def findings(found: Found) -> str:
    """Where labkit is never behind, where it is, and who is the fastest of all."""
    never: list[str] = []
    somewhere: list[str] = []
    for name, other in pairs():
        if not (spreads := duel(found, name, other)):
            continue
        ahead, _, behind = tally(spreads)
        told = f"{name} against {other} (ahead in {ahead}"
        (somewhere if behind else never).append(told + (f", behind in {behind})" if behind else ")"))
    rows = [group["rows"] for _, group in cells(found)]
    first = Counter(min(row, key=lambda name: row[name]["ms"]) for row in rows)
    fastest = "; ".join(f"{name} in {n}" for name, n in first.most_common())
    return (
        f"In {len(rows)} settings of size, threads and batch:\n\n"
        f"- **Never behind:** {'; '.join(never) or 'nobody'}.\n"
        f"- **Behind somewhere:** {'; '.join(somewhere) or 'nobody'}.\n"
        f"- **Fastest of all, whatever the error:** {fastest}."
    )


def absent(found: Found) -> list[str]:
    """`absent: NAME: reason`, and where if not everywhere."""
    told: dict[tuple[str, str], list[str]] = {}
    for size, models in found["models"].items():
        for device, model in models.items():
            for name, reason in model["absent"].items():
                told.setdefault((name, reason), []).append(f"{size}, {device}")
    everywhere = [f"{size}, {device}" for size, models in found["models"].items() for device in models]
    for where, group in cells(found):
        for name, reason in group["absent"].items():
            told.setdefault((name, reason), []).append(where)
    if found["setting"]["quick"]:
        told |= {(name, "not in a quick run"): everywhere for name, way in WAYS.items() if not way.quick}
    if not any(place["device"] == "cuda" for place in found["setting"]["places"].values()):
        told["GPU", "torch sees none"] = everywhere
    return [
        f"absent: {name}: {reason}" + ("" if where == everywhere else f" ({_few(where)})")
        for (name, reason), where in told.items()
    ]


def _few(where: list[str]) -> str:
    return "; ".join(where) if len(where) <= 3 else f"{len(where)} settings, {where[0]} to {where[-1]}"


def tables(found: Found) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Title, headers and lines for each size and place; a cell is milliseconds, and times as fast as timm."""
    plan = found["setting"]
    for size in plan["sizes"]:
        for place, how in plan["places"].items():
            told, batches = found["models"][size][how["device"]], [str(b) for b in plan["batches"]]
            groups = [found["groups"][size][place][batch] for batch in batches]
            clock = {"cpu": "processor time", "wall": "wall clock"}[how["clock"]]
            title = f"{told['model']}, {place}, {clock}"
            lines = [
                [
                    way.asks,
                    name,
                    _error(told, name),
                    _giga(told, name),
                    *(cell(group["rows"].get(name)) for group in groups),
                ]
                for name, way in WAYS.items()
                if name in told["errors"] or name in told["absent"]
            ]
            yield title, ["asked", "", "error", "GMACs", *(f"batch {b}: ms, × timm" for b in batches)], lines


def _error(told: Found, name: str) -> str:
    return f"{told['errors'][name]:.1g}" if name in told["errors"] else ""


def _giga(told: Found, name: str) -> str:
    return f"{told['macs'][name] / 1e9:.2f}" if name in told["macs"] else ""


def cell(row: Found | None) -> str:
    if row is None:
        return "absent"
    return f"{row['ms']:.1f}, {ranged(row['faster'][TIMM])}"


def text(found: Found) -> str:
    """For a terminal."""
    parts = [
        f"{title}\n\n{Table(headers, lines, [False, False] + [True] * (len(headers) - 2))}"
        for title, headers, lines in tables(found)
    ]
    summary = Table(DUELS, duels(found), [False] * 3 + [True] * 3 + [False] * 2)
    return "\n\n".join([*parts, str(summary), findings(found).replace("**", ""), "\n".join(absent(found))])
