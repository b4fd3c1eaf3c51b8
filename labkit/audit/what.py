"""What the model is: parameters, multiply-accumulates and bytes, part by part."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from labkit import cost
from labkit.audit.measure import share
from labkit.audit.subject import Subject
from labkit.tables import Table
from labkit.viz import figures

TITLE = "What it is"


def measure(found: Subject, fast: bool = False) -> dict[str, Any]:
    counted = cost.count(found.model, found.size, channels=3)
    parts = {name: part for name, part in counted.parts.items() if any(part.values())}
    return {
        "name": found.name,
        "plain": found.plain or None,
        "image": list(found.size),
        "parameters": counted.params,
        "macs": counted.macs,
        "bytes": counted.bytes,
        "parts": parts,
        "images": len(found.inputs),
        "classes_seen": len(found.truth.unique()),
        "notes": list(found.notes),
        "word": found.word,
        "untouched": share(found.right()),
    }


def table(values: dict[str, Any]) -> Table:
    """A line for each part, and the sum."""
    rows = []
    total = {column: sum(part[column] for part in values["parts"].values()) for column in cost.COLUMNS}
    for name, part in [*values["parts"].items(), ("total", total)]:
        mac = part["macs"] / max(values["macs"], 1)
        sizes = [f"{part[column] / 1e6:,.3f}" for column in ("params", "macs", "weight_bytes", "activation_bytes")]
        rows.append([name, *sizes, f"{mac:.1%}"])
    headers = ["part", "parameters (M)", "MACs (M)", "weights (MB)", "activations (MB)", "share of MACs"]
    return Table(headers, rows, [False, *[True] * 5])


def sentence(values: dict[str, Any]) -> str:
    height, width = values["image"]
    untouched = values["untouched"]
    judged = (
        f"{untouched['share']:.1%} [{untouched['low']:.1%}, {untouched['high']:.1%}] right"
        if values["word"] == "accuracy"
        else "no labels, so every change is measured as agreement with this model"
    )
    return (
        f"{values['name']}: {values['parameters'] / 1e6:.2f} M parameters, {values['macs'] / 1e6:,.0f} M multiply-"
        f"accumulates for an image of {height}×{width}; on {values['images']} images: {judged}."
    )


def figure(values: dict[str, Any]) -> Figure:
    largest = sorted(values["parts"].items(), key=lambda item: -item[1]["macs"])
    shares = [100 * part["macs"] / max(values["macs"], 1) for _, part in largest]
    return figures.bars([name for name, _ in largest], shares, label="share of multiply-accumulates (%)", digits=1)
