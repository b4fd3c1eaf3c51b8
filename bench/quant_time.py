"""How fast 8-bit integers are beside what else computes the same ViT: other toolkits, half precision, fewer tokens.

All models have the same random weights, which changes no time; the error of their logits is small or large with any
weights. A model that cannot be had here is left out with the reason, and so is a bar that needs it.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import rivals
from bench.rivals import Model, exported, images, missing, onnxruntime_dynamic, torch_dynamic
from labkit import clock, tokens
from labkit.quant import Recipe, kernels, quantize
from labkit.quant.int8_attention import int8_attention
from labkit.tables import Table, ranged
from labkit.vit import ViT

NAME, MERGED = "deit_small_patch16_224", 13
BATCHES, TOKENS, CALIBRATION = (1, 8, 16), (197, 577, 1025), 16
PLAIN, OURS, MERGING = "float32", "labkit int8", f"labkit int8, merge r = {MERGED}"
DYNAMIC, RUNTIME = "torch dynamic int8", "onnxruntime dynamic int8"
RIVALS = (DYNAMIC, RUNTIME)
ERROR = 0.05  # of the logits of OURS, at most
FASTER = {(OURS, 16): 2.8, (OURS, 1): 2.4, (MERGING, 16): 4.0}  # than PLAIN by processor time, at least, by batch


def candidates(folder: Path) -> tuple[dict[str, Model], dict[str, str]]:
    """Name → model, the float one first, and name → why it is missing."""
    torch.manual_seed(0)
    theirs = timm.create_model(NAME, img_size=rivals.SIZE).eval()
    plain = ViT.from_timm(theirs).eval().set_impl("fast")
    depth, half = range(len(plain.blocks)), copy.deepcopy(plain).bfloat16()
    ours = quantize(plain, Recipe(weights=8, activations=8), images(CALIBRATION, seed=1), backend="int8")
    models: dict[str, Model] = {
        PLAIN: plain,
        OURS: ours,
        f"float32, merge r = {MERGED}": tokens.attach(plain, tokens.Merge(MERGED), depth).eval(),
        MERGING: tokens.attach(ours, tokens.Merge(MERGED), depth).eval(),
        "bfloat16": lambda x: half(x.bfloat16()).float(),
        "timm float32": theirs,
    }
    absent = {}
    makers: dict[str, Callable[[nn.Module], Model]] = {
        DYNAMIC: torch_dynamic,
        RUNTIME: lambda model: onnxruntime_dynamic(exported(model, folder)),
    }
    for name, make in makers.items():
        try:
            models[name] = make(copy.deepcopy(theirs))
        except (ImportError, AttributeError) as error:
            absent[name] = missing(error)
    return models, absent


def relative_errors(models: Mapping[str, Model]) -> dict[str, float]:
    """‖y - y_float‖ / ‖y_float‖ of the logits of 16 images that nothing was calibrated on."""
    x = images(16, seed=2)
    with torch.inference_mode():
        exact = models[PLAIN](x)
        return {name: float((model(x) - exact).norm() / exact.norm()) for name, model in models.items()}


def timed(models: dict[str, Model], batch: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Clock → name → milliseconds, and times as fast as each of those that are compared with, with the interval."""
    timing = clock.compare(models, images(batch, seed=3), rounds=rounds, seconds=seconds, clocks=("cpu", "wall"))
    others = [name for name in (PLAIN, *RIVALS) if name in models]
    found: dict[str, Any] = {"threads": timing.threads}
    for kind in timing.threads:
        found[kind] = {
            name: {
                "ms": 1e3 * timing.median(name, kind),
                "faster": {other: list(timing.ratio(other, to=name, clock=kind)) for other in others},
            }
            for name in models
        }
    return found


def attention(rounds: int, seconds: float) -> dict[str, list[float]]:
    """Tokens → time of the int8 scores' attention over that of the fused float kernel; 6 heads of 64, 1 thread."""
    found = {}
    for n in TOKENS:
        q, k, v = torch.randn(3, 1, 6, n, 64, generator=torch.Generator().manual_seed(0))
        ways: dict[str, Callable[..., Tensor]] = {"float": F.scaled_dot_product_attention, "int8": int8_attention}
        timing = clock.compare(ways, (q, k, v), rounds=rounds, seconds=seconds, clocks=("cpu",))
        found[str(n)] = list(timing.ratio("int8"))
    return found


def measure(scale: float = 1.0) -> dict[str, Any]:
    """`scale` shortens the run, which takes about ten minutes."""
    with tempfile.TemporaryDirectory() as folder:
        models, absent = candidates(Path(folder))
        return {
            "kernel": kernels.available("cpu") or "here",
            "missing": absent,
            "errors": relative_errors(models),
            "batches": {str(batch): timed(models, batch, 25, 80 * scale) for batch in BATCHES},
            "attention": attention(40, 10 * scale),
        }


def bars(found: Mapping[str, Any]) -> dict[str, bool]:
    """A sentence with the bar and the measured number → does it hold?"""
    cpu = {int(batch): row["cpu"] for batch, row in found["batches"].items()}
    error, held = found["errors"][OURS], {}
    for (name, batch), least in FASTER.items():
        if batch in cpu:
            ratio = cpu[batch][name]["faster"][PLAIN]
            held[f"{name}, batch {batch}: ≥ {least} times as fast as {PLAIN}: {ranged(ratio)}"] = ratio[0] >= least
    held[f"{OURS}: relative error of the logits ≤ {ERROR}: {error:.3f}"] = error <= ERROR
    for batch, rows in cpu.items():
        for rival, ratio in rows[OURS]["faster"].items():
            if rival != PLAIN:
                held[f"{OURS}, batch {batch}: ahead of {rival}: {ranged(ratio)}"] = ratio[0] > 1
    return held


def summary(found: Mapping[str, Any]) -> str:
    parts = []
    for kind in ("cpu", "wall"):
        rows = {batch: row[kind] for batch, row in _by_size(found["batches"])}
        threads = next(iter(found["batches"].values()))["threads"][kind]
        lines = [
            [
                name,
                *(f"{row[name]['ms']:.1f}" for row in rows.values()),
                *(ranged(row[name]["faster"][PLAIN]) for row in rows.values()),
                f"{error:.3f}",
            ]
            for name, error in found["errors"].items()
        ]
        columns = [f"ms, batch {batch}" for batch in rows] + [f"times as fast, batch {batch}" for batch in rows]
        title = f"{NAME}, {kind}, {threads} thread{'s' * (threads != 1)}"
        columns.append("relative error")
        parts.append(str(Table([title, *columns], lines, [False] + [True] * len(columns))))
    slower = "; ".join(f"{n} tokens: {ranged(ratio)}" for n, ratio in _by_size(found["attention"]))
    parts.append(f"Attention with int8 scores takes, in times of the fused float kernel's: {slower}.")
    verdicts = [f"{'holds ' if met else 'misses'}  {bar}" for bar, met in bars(found).items()]
    verdicts += [f"absent  {name}: {reason}" for name, reason in found["missing"].items()]
    if found["kernel"] != "here":
        verdicts.append(f"absent  {found['kernel']}")
    return "\n\n".join([*parts, "\n".join(verdicts)])


def _by_size(told: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """In a file numbers are words, and 16 comes before 8."""
    return sorted(told.items(), key=lambda pair: int(pair[0]))
