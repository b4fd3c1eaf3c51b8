"""The price tables of bits as text: accuracies with intervals, what each method adds, and whether that is clear."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from labkit.intervals import paired_difference
from labkit.tables import Table, ranged

Rows = dict[str, Any]  # method → what is kept of it
MODELS = SHAPES, DIGITS = ("shapes-vit", "digits-vit")
PLANTED = "shapes-vit, outliers planted"
ORDER = ("W8/A8", "W6/A6", "W4/A8", "W4/A4", "W3/A3")
LADDER = (
    "per tensor, min-max",
    "per channel, min-max",
    "+ percentile clip",
    "+ mse clip",
    "+ folded channels",
    "+ log sqrt2 attention",
    "+ fitted attention",
    "+ GPTQ",
    "+ rebuilt blocks",
    "+ training",
)
FORMER = {  # what a row of the ladder is compared with; by default the row above
    "+ mse clip": "per channel, min-max",
    "+ fitted attention": "+ folded channels",
    "+ rebuilt blocks": "+ fitted attention",
    "+ training": "+ fitted attention",
}


def right(seed: dict[str, Any], n: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(base64.b85decode(seed["right"]), np.uint8))[:n].astype(bool)


def difference(a: Rows, b: Rows, n: int) -> tuple[float, float, float]:
    """Accuracy of a minus that of b: the mean over the seeds, and the widest ends of the seeds' intervals.

    A row that one seed says all about stands beside each seed of the other.
    """
    seeds = sorted(set(a["seeds"]) & set(b["seeds"])) if min(len(a["seeds"]), len(b["seeds"])) > 1 else None
    pairs = [(s, s) for s in seeds] if seeds else [(s, t) for s in a["seeds"] for t in b["seeds"]]
    found = [paired_difference(right(a["seeds"][s], n), right(b["seeds"][t], n)) for s, t in pairs]
    middle, low, high = zip(*found, strict=True)
    return sum(middle) / len(middle), min(low), max(high)


def clear(values: tuple[float, float, float]) -> bool:
    """Every seed says the same, each beyond its own noise."""
    return values[1] > 0 or values[2] < 0


def points(values: tuple[float, float, float]) -> str:
    return ranged(values, "+.1f", 100) + ("" if clear(values) else " ~")


def spread(row: Rows) -> str:
    every = [100 * seed["accuracy"] for seed in row["seeds"].values()]
    return f"{min(every):.1f} to {max(every):.1f}" if len(every) > 1 else "one"


def grid(title: str, rows: dict[str, Rows], columns: list[str], names: list[str], cell: Callable[..., str]) -> str:
    """Methods down, bits across; an empty cell was not measured."""
    lines = [[name, *(cell(bits, name) if name in rows[bits] else "" for bits in columns)] for name in names]
    return str(Table([title, *columns], lines, [False] + [True] * len(columns)))


def before(name: str) -> str:
    return FORMER.get(name, LADDER[LADDER.index(name) - 1])


def ladder(rows: dict[str, Rows], n: int) -> list[str]:
    columns = [bits for bits in ORDER if bits in rows]
    names = [name for name in LADDER if any(name in rows[bits] for bits in columns)]

    def over(bits: str, name: str) -> str:
        former = before(name)
        return points(difference(rows[bits][name], rows[bits][former], n)) if former in rows[bits] else ""

    odd = "; ".join(f"{name} over {FORMER[name]}" for name in names if name in FORMER)
    return [
        grid("accuracy, %", rows, columns, names, lambda bits, name: ranged(rows[bits][name]["accuracy"], ".1f", 100)),
        grid("seeds, lowest to highest", rows, columns, names, lambda bits, name: spread(rows[bits][name])),
        grid("points over the row above", rows, columns, names[1:], over) + (f"\n({odd})" if odd else ""),
    ]


def beside(title: str, rows: Rows, base: str, n: int) -> str:
    """Rows that are all compared with one of them, the best first."""
    order = sorted(rows, key=lambda name: -rows[name]["accuracy"][0])
    lines = []
    for name in order:
        gain = "" if name == base else points(difference(rows[name], rows[base], n))
        error = np.mean([seed["error"] for seed in rows[name]["seeds"].values()])
        lines.append([name, ranged(rows[name]["accuracy"], ".1f", 100), spread(rows[name]), gain, f"{error:.2g}"])
    headers = [title, "accuracy, %", "seeds", f'points over "{base}"', "error of the logits"]
    return str(Table(headers, lines, [False] + [True] * 4))


def by_layer(rows: dict[str, Rows], n: int, plain: Rows) -> str:
    """Each layer alone at 3 bits: what its weights cost, and what its inputs cost."""
    names = sorted(rows["W3"], key=lambda name: -rows["W3"][name]["seeds"]["0"]["error"])
    lines = []
    for name in names:
        both = [rows[bits].get(name) for bits in ("W3", "A3")]
        cells = []
        for row in both:
            cells += [points(difference(row, plain, n)), f"{row['seeds']['0']['error']:.2g}"] if row else ["", ""]
        lines.append([name, *cells])
    headers = ["one layer at 3 bits", "its weights: points", "error of the logits", "its inputs: points", "error"]
    errors = [
        [rows[bits][name]["seeds"]["0"]["error"] for name in names if name in rows.get("A3", {})] for bits in rows
    ]
    alike = f"{spearmanr(*errors)[0]:.2f}" if len(errors) == 2 and len(errors[0]) > 2 else "not known yet"
    return f"{Table(headers, lines, [False] + [True] * 4)}\n\nRank correlation of the two errors: {alike}."


def summary(values: dict[str, Any]) -> str:
    """All tables there are, model by model. "~" marks a difference that is within the noise."""
    rows, images, parts = values["rows"], values["images"], []
    for model in (*MODELS, PLANTED):
        n = images.get(model, 0)
        if not any(model in table for table in rows.values()):
            continue
        plain = values["float"][model]
        parts.append(f"{model}: {ranged(plain['accuracy'], '.1f', 100)} % of {n} images in float.")
        if model in rows.get("ladder", {}):
            parts += ladder(rows["ladder"][model], n)
        for name, base in BASES.items():
            for bits, found in rows.get(name, {}).get(model, {}).items():
                if base in found:
                    parts.append(beside(f"{name}, {bits}", found, base, n))
        if "W3" in rows.get("one layer", {}).get(model, {}):
            parts.append(by_layer(rows["one layer"][model], n, plain))
    return "\n\n".join([*parts, NOTE, claims(values)])


def claims(values: dict[str, Any]) -> str:
    """The differences that texts may repeat, as they are measured now."""
    lines = []
    for table, model, bits, name, base in CLAIMS:
        found = values["rows"].get(table, {}).get(model, {}).get(bits, {})
        other = values["float"].get(model) if base == "float" else found.get(base)
        if name in found and other:
            seeds = len(found[name]["seeds"])
            both = [f"{100 * row['accuracy'][0]:.1f}" for row in (other, found[name])]
            gain = points(difference(found[name], other, values["images"][model]))
            lines.append([model, bits, f"{name}, after {base}", " to ".join(both), gain, str(seeds)])
    return str(Table(["claims", "bits", "what", "accuracy, %", "points", "seeds"], lines, [False] * 3 + [True] * 3))


BASES = {
    "alone": "nothing",
    "weights": "per channel",
    "floats": "int8",
    "outliers": "+ mse clip",
    "mixed": "the same for all",
}
CLAIMS = (  # table, model, bits, a row, and the one that it is compared with
    ("ladder", SHAPES, "W8/A8", "per channel, min-max", "float"),
    ("ladder", SHAPES, "W6/A6", "per channel, min-max", "float"),
    ("ladder", SHAPES, "W4/A8", "per channel, min-max", "float"),
    ("ladder", SHAPES, "W4/A8", "+ percentile clip", "per channel, min-max"),
    ("ladder", SHAPES, "W4/A4", "per channel, min-max", "float"),
    ("ladder", SHAPES, "W4/A4", "per channel, min-max", "per tensor, min-max"),
    ("ladder", SHAPES, "W4/A4", "+ mse clip", "per channel, min-max"),
    ("ladder", SHAPES, "W4/A4", "+ folded channels", "+ mse clip"),
    ("outliers", PLANTED, "W4/A4", "+ mse clip, folded channels", "+ mse clip"),
    ("outliers", PLANTED, "W8/A8", "+ mse clip, folded channels", "+ mse clip"),
    ("ladder", SHAPES, "W4/A4", "+ fitted attention", "+ folded channels"),
    ("ladder", SHAPES, "W3/A3", "+ log sqrt2 attention", "+ folded channels"),
    ("ladder", SHAPES, "W3/A3", "+ fitted attention", "+ folded channels"),
    ("ladder", SHAPES, "W3/A3", "+ GPTQ", "+ fitted attention"),
    ("ladder", SHAPES, "W3/A3", "+ rebuilt blocks", "+ fitted attention"),
    ("ladder", SHAPES, "W3/A3", "+ training", "+ rebuilt blocks"),
    ("ladder", SHAPES, "W4/A4", "+ rebuilt blocks", "float"),
    ("ladder", SHAPES, "W4/A4", "+ training", "float"),
    ("ladder", SHAPES, "float", "+ training", "float"),
    ("ladder", DIGITS, "W4/A4", "per channel, min-max", "float"),
    ("ladder", DIGITS, "W3/A3", "+ training", "float"),
    ("mixed", SHAPES, "W3", "greedy", "the same for all"),
    ("mixed", SHAPES, "W3", "greedy", "control: errors shuffled"),
    ("mixed", SHAPES, "W4", "greedy", "the same for all"),
    ("weights", SHAPES, "W4", "per channel", "float"),
    ("weights", SHAPES, "W3", "groups of 16", "per channel"),
)
NOTE = '"~": in at least one seed the interval of the difference holds 0, so it may be chance.'
