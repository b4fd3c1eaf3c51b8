"""How many bits: eight on integer kernels, fewer as a simulation, and which layers mind most.

Only integer kernels are timed: a simulation is exact in its answers and slow. The mind of a layer is what four bits in
this layer alone do to the answers' logits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from matplotlib.figure import Figure
from torch import nn

from labkit import quant
from labkit.audit import stacks
from labkit.audit.measure import change, faster, percent, points
from labkit.audit.subject import Subject, logits, subset
from labkit.stack import Stack
from labkit.tables import Table
from labkit.vit import ViT
from labkit.viz import figures

TITLE = "Bits"
NOTHING = quant.Recipe(weights=None, activations=None)
EIGHT = Stack(weights=8, activations=8, backend="int8")
FEW = {
    "W6/A6": Stack(weights=6, activations=6),
    "W4/A8": Stack(weights=4, activations=8),
    "W4/A4": Stack(weights=4, activations=4),
}

FASTEST = ("W6/A6 min-max", "W4/A4 careful")


def careful(stack: Stack, model: ViT) -> Stack:
    """Ranges that end where the error is least, and channels of unequal width made equal where norms have a bias."""
    norms = [module for name, module in model.named_modules() if name.endswith(("norm1", "norm2"))]
    shifts = all(isinstance(norm, nn.LayerNorm) for norm in norms)
    return replace(stack, clip="mse", fold="channels" if shifts else "none")


def measure(found: Subject, fast: bool = False) -> dict[str, Any]:
    before, simulated = found.right(), {}
    tried = {f"{name} min-max": stack for name, stack in FEW.items()}
    tried |= {f"{name} careful": careful(stack, found.vit) for name, stack in FEW.items()}
    for name in FASTEST if fast else tried:
        simulated[name] = change(found.right(tried[name].build(found.vit, found.calibration)), before)
    timed = {"int8 min-max": EIGHT, "int8 careful": careful(EIGHT, found.vit)}
    return stacks.measured(found, timed, 2.0 if fast else 12.0) | {
        "simulated": simulated,
        "sensitivity": sensitivity(subset(found, 8 if fast else 12)),
        "in_float": quant.untouched(quant.quantize(found.vit, NOTHING)),
    }


def sensitivity(found: Subject) -> dict[str, float]:
    """For each layer: the root mean square change of the logits, as a share of their spread, at four bits."""
    plain, errors = logits(found.vit, found.inputs), {}
    for name in quant.layers(quant.quantize(found.vit, NOTHING)):
        recipe = replace(NOTHING, layers={name: (4, 4)})
        rounded = logits(quant.quantize(found.vit, recipe, found.calibration[:8]), found.inputs)
        errors[name] = ((rounded - plain).square().mean().sqrt() / plain.std()).item()
    return errors


def table(values: dict[str, Any]) -> Table:
    rows = [[row["name"], percent(row), points(row), faster(row)] for row in values["candidates"]]
    rows += [[name, percent(row), points(row), "simulated"] for name, row in values["simulated"].items()]
    return Table(
        ["bits", values["word"], "points, against untouched", "times as fast"], rows, [False, True, True, True]
    )


def sentence(values: dict[str, Any]) -> str:
    best = min(values["candidates"], key=lambda row: row["ratio"])
    worst = sorted(values["sensitivity"], key=lambda name: -values["sensitivity"][name])[:3]
    four = values["simulated"]["W4/A4 careful"]
    floats = f" {', '.join(values['in_float'])} stay in floats." if values["in_float"] else ""
    return (
        f"Eight bits on integer kernels ({best['name']}) run {faster(best)} times as fast and change "
        f"{values['word']} by {points(best)} points; four bits, with care, by {points(four)}. The layers that mind "
        f"four bits most are {', '.join(worst)}.{floats}"
    )


@figures.styled
def figure(values: dict[str, Any]) -> Figure:
    """How much each layer minds: by block, the kinds of layer beside each other."""
    kinds: dict[str, dict[int, float]] = {}
    for name, error in values["sensitivity"].items():
        block, _, kind = name.removeprefix("blocks.").partition(".")
        place = int(block) if block.isdecimal() else -1
        kinds.setdefault(kind if block.isdecimal() else name, {})[place] = 100 * error
    fig = Figure(figsize=(6.5, 3.4), layout="constrained")
    ax = fig.subplots()
    for (kind, errors), mark in zip(kinds.items(), "os^DvXP*" * 4, strict=False):
        ax.plot(list(errors), list(errors.values()), marker=mark, label=kind, linestyle="-" if len(errors) > 1 else "")
    ax.set(xlabel="block (-1: outside the blocks)", ylabel="change of the logits (% of their spread)")
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return fig
