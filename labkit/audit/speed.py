"""Where the time goes: measured function by function, beside the least time that arithmetic and memory allow.

A mode of torch sees every function of tensors and times it; whose weights it reads tells to which part of the model it
belongs. What is left of a run is the way between functions: Python. One thread on a CPU and processor time, so that
neighbours on the machine disturb little.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from labkit import cost, roofline
from labkit.audit.measure import times
from labkit.audit.subject import Subject
from labkit.clock import limit_threads, sample
from labkit.operations import part_of
from labkit.tables import Table, ranged
from labkit.viz import figures

TITLE = "Where the time goes"
BETWEEN = "between functions"
MS = ("ms", "ms_low", "ms_high")
BY_NAME = (
    ("attention", "attention"),
    ("softmax", "attention"),
    ("matmul", "attention"),
    ("bmm", "attention"),
    ("norm", "norms"),
    ("gelu", "mlp"),
    ("silu", "mlp"),
)


def measure(found: Subject, fast: bool = False) -> dict[str, Any]:
    counted = cost.count(found.model, found.size, channels=3)
    sizes = (1, 8) if fast else (1, 8, 32)
    latency = {
        str(size): times(found, {found.name: found.model}, size, 2.0 if fast else 8.0)[found.name] for size in sizes
    }
    with limit_threads(1):
        machine = roofline.peak(0.6 if fast else 2.0, found.inputs.device)
        measured = parts(found, rounds=5 if fast else 15)
    least = dict.fromkeys(measured, 0.0)
    for step in counted.operations:
        bound = roofline.roofline(2 * step.macs, step.bytes, machine).seconds
        least[step.part] = least.get(step.part, 0.0) + 1e3 * bound
    return {
        "device": machine.device,
        "gflops": machine.flops / 1e9,
        "gigabytes_per_second": machine.bandwidth / 1e9,
        "batches": {size: {name: row[name] for name in MS} for size, row in latency.items()},
        "parts": {name: {"ms": measured[name], "least_ms": least[name]} for name in least if name in measured},
    }


def parts(found: Subject, rounds: int) -> dict[str, float]:
    """Milliseconds of one image by part, in the quickest of some rounds: what nothing disturbed."""
    image, runs, wholes = found.inputs[:1], [], []
    with torch.inference_mode():
        for _ in range(rounds + 1):
            wholes.append(1e3 * sample(found.model, (image,), "wall" if image.is_cuda else "cpu", image.device))
            with Stopwatch(found.model) as watch:
                found.model(image)
            runs.append(watch.spent)
    quickest = {name: 1e3 * min(run.get(name, 0.0) for run in runs[1:]) for name in runs[-1]}
    return quickest | {BETWEEN: max(0.0, min(wholes[1:]) - sum(quickest.values()))}


class Stopwatch(TorchFunctionMode):
    """Seconds by part, in `spent`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.spent: dict[str, float] = {}
        named = [*model.named_parameters(), *model.named_buffers()]
        self.owners = {tensor.untyped_storage()._cdata: part_of(name) for name, tensor in named}
        self.on_gpu = any(tensor.is_cuda for _, tensor in named)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        begin = self.now()
        out = func(*args, **(kwargs or {}))
        seconds, part = self.now() - begin, self.part(func, args)
        self.spent[part] = self.spent.get(part, 0.0) + seconds
        return out

    def now(self) -> float:
        if self.on_gpu:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def part(self, func: Callable[..., Any], args: Iterable[Any]) -> str:
        name = getattr(func, "__name__", "")
        owned = (self.owners.get(a.untyped_storage()._cdata) for a in args if isinstance(a, Tensor))
        owner = next((part for part in owned if part), "other")
        return owner if owner != "other" else next((part for word, part in BY_NAME if word in name), "other")


def table(values: dict[str, Any]) -> Table:
    total = sum(part["ms"] for part in values["parts"].values())
    rows = [
        [name, f"{part['ms']:.2f}", f"{part['ms'] / total:.0%}", f"{part['least_ms']:.2f}"]
        for name, part in sorted(values["parts"].items(), key=lambda item: -item[1]["ms"])
    ]
    return Table(["part", "ms an image", "share", "at least (ms)"], rows, [False, True, True, True])


def sentence(values: dict[str, Any]) -> str:
    total = sum(part["ms"] for part in values["parts"].values())
    first = max(values["parts"], key=lambda name: values["parts"][name]["ms"])
    least = sum(part["least_ms"] for part in values["parts"].values())
    batches = ", ".join(
        f"{ranged((row[name] for name in MS), times=1 / int(size))} ms an image in batches of {size}"
        for size, row in values["batches"].items()
    )
    return (
        f"On one thread of {values['device']}: {batches}. The largest part goes to {first} "
        f"({values['parts'][first]['ms'] / total:.0%}); arithmetic and memory alone would take {least:.2f} ms."
    )


def figure(values: dict[str, Any]) -> Figure:
    ordered = sorted(values["parts"].items(), key=lambda item: -item[1]["ms"])
    return figures.bars(
        [name for name, _ in ordered], [part["ms"] for _, part in ordered], label="ms an image, one thread", digits=2
    )
