"""What the model looks at: how spread out and how far its heads look, which look alike, which change nothing.

Tokens with a large norm and no patch of interest are counted too ("Vision Transformers Need Registers", 2023).
"""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from labkit import cost
from labkit.audit.subject import SMALL, Subject
from labkit.errors import LabkitError
from labkit.explain.ablation import without
from labkit.explain.heads import head_measures, head_similarity
from labkit.explain.outliers import outliers
from labkit.tables import Table
from labkit.tracing.record import trace
from labkit.tracing.trace import Trace
from labkit.viz import figures

TITLE = "What it looks at"
ALIKE = 0.9  # linear CKA above which two heads are told as alike
IDLE = 0.005  # of the probability of the right class
FEWEST = 2  # images with which a head is silenced
WORK = 6e12  # multiply-accumulates for all heads, where that allows more images: two minutes of two cores
FAST = 1e12


def measure(found: Subject, fast: bool = False) -> dict[str, Any]:
    seen = trace(found.model, found.inputs[: 4 if fast else 8])
    if not seen.layers:
        return {"layers": [], "why": "no attention between tokens was seen in this model"}
    if odd := headless(seen):
        return {"layers": [], "why": f"images and heads cannot be told apart in the attention of {odd[0]}"}
    entropy, distance = (nested(part) for part in head_measures(seen)[1:3])
    tested = affordable(found, seen, FAST if fast else WORK)
    effects = ablation(found, seen, tested)
    layers = [
        {
            "name": layer.name,
            "kind": layer.kind,
            "entropy": entropy[i][: layer.heads],
            "distance": distance[i][: layer.heads],
            "effect": effects[i]["effect"],
            "changed": effects[i]["changed"],
        }
        for i, layer in enumerate(seen.layers)
    ]
    return {"layers": layers, "tested": tested, "traced": len(seen.images)} | likeness(seen) | registers(seen)


def headless(seen: Trace) -> list[str]:
    """Layers whose maps are no (images, heads, queries, keys): seen from outside, some models fold two of these."""
    unknown = [i for i, layer in enumerate(seen.layers) if layer.kind == "unknown"]
    maps = {seen.layers[i].name: seen.attention[i] for i in unknown}
    return [name for name, found in maps.items() if found.ndim < 4 or len(found) != len(seen.images)]


def affordable(found: Subject, seen: Trace, work: float) -> int:
    """With how many images each head can be silenced for so much work, on every machine as many; at least FEWEST."""
    heads = sum(layer.heads for layer in seen.layers)
    once = heads * cost.count(found.model, found.size, channels=3).macs
    most = 32 if max(found.size) <= SMALL else 16
    return min(len(found.inputs), most, max(FEWEST, int(work / once)))


def nested(values: Tensor) -> list[list[float | None]]:
    """Rows of numbers; what is not defined is None."""
    return [[None if v != v else v for v in row] for row in values.tolist()]


def ablation(found: Subject, seen: Trace, tested: int) -> list[dict[str, Any]]:
    """For each head alone: the change of the probability of the right class, and how many answers change."""
    inputs, truth = found.inputs[:tested], found.truth[:tested, None]
    whole = found.scores(without(found.model, inputs, []))
    layers = []
    for number, layer in enumerate(seen.layers):
        effect, changed = [], []
        for head in range(layer.heads):
            silent = found.scores(without(found.model, inputs, [(number, head)]))
            gained = silent.softmax(dim=1).gather(1, truth) - whole.softmax(dim=1).gather(1, truth)
            effect.append(gained.mean().item())
            changed.append(int((silent.argmax(dim=1) != whole.argmax(dim=1)).sum()))
        layers.append({"effect": effect, "changed": changed})
    return layers


def likeness(seen: Trace) -> dict[str, Any]:
    """Pairs of heads that tell the same patches apart."""
    try:
        similar = head_similarity(seen)
    except LabkitError as reason:
        return {"pairs_alike": None, "pairs": None, "why_no_pairs": str(reason)}
    pairs = torch.triu_indices(len(similar), len(similar), offset=1)
    return {"pairs_alike": int((similar[pairs[0], pairs[1]] > ALIKE).sum()), "pairs": pairs.shape[1]}


def registers(seen: Trace) -> dict[str, Any]:
    """The share of patches that stick out, where it is largest."""
    try:
        shares = outliers(seen).shares()
    except LabkitError as reason:
        return {"outliers": None, "why_no_outliers": str(reason)}
    return {
        "outliers": {"share": shares.max().item(), "behind_block": int(shares.argmax()), "by_depth": shares.tolist()}
    }


def idle(values: dict[str, Any]) -> list[tuple[int, int]]:
    """Heads that can be silenced without any answer changing and with next to no change of probability."""
    return [
        (i, head)
        for i, layer in enumerate(values["layers"])
        for head, (effect, changed) in enumerate(zip(layer["effect"], layer["changed"], strict=True))
        if changed == 0 and abs(effect) < IDLE
    ]


def table(values: dict[str, Any]) -> Table:
    rows = []
    for i, layer in enumerate(values["layers"]):
        rows.append(
            [
                str(i),
                layer["kind"],
                str(len(layer["effect"])),
                around(layer["entropy"]),
                around(layer["distance"]),
                f"{100 * min(layer['effect']):+.1f}",
                str(max(layer["changed"])),
            ]
        )
    headers = [
        "layer",
        "kind",
        "heads",
        "entropy, of uniform",
        "distance (patches)",
        "worst head (points)",
        "answers it changes",
    ]
    return Table(headers, rows, [True, False, True, True, True, True, True])


def around(values: list[float | None]) -> str:
    """The mean, and the least and the most of the heads."""
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.2f} ({min(known):.2f} to {max(known):.2f})" if known else "-"


def sentence(values: dict[str, Any]) -> str:
    if not values["layers"]:
        return f"There are no maps to show: {values['why']}."
    heads = sum(len(layer["effect"]) for layer in values["layers"])
    idlers = idle(values)
    alike = (
        "" if values["pairs"] is None else f" {values['pairs_alike']} of {values['pairs']} pairs of heads look alike."
    )
    sticking = values["outliers"]
    large = "" if sticking is None else f" At most {sticking['share']:.1%} of the patches stick out by their norm."
    return (
        f"{len(idlers)} of {heads} heads can be silenced, one at a time, without a change of any of {values['tested']} "
        f"answers and of less than {100 * IDLE:g} points in the probability of the right class.{alike}{large}"
    )


@figures.styled
def figure(values: dict[str, Any]) -> Figure:
    """Each head as a point: how far it looks, and what is lost without it."""
    fig = Figure(figsize=(6.5, 3.2), layout="constrained")
    ax = fig.subplots()
    known = [
        (distance, 100 * effect, i)
        for i, layer in enumerate(values["layers"])
        for distance, effect in zip(layer["distance"], layer["effect"], strict=True)
        if distance is not None
    ]
    if known:
        x, y, depth = zip(*known, strict=True)
        drawn = ax.scatter(x, y, c=depth, s=28, edgecolors="black", linewidths=0.4)
        fig.colorbar(drawn, ax=ax, label="layer")
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set(xlabel="mean distance it looks (patches)", ylabel="effect of silence (points)")
    return fig
