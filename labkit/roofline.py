"""Why fewer operations are not always faster: a layer waits for its arithmetic or for its bytes.

    latency · peak · efficiency = operations                 an identity, which defines efficiency
    latency >= max(operations / peak, bytes / bandwidth)     the roofline, which bounds it

A layer that does little with each byte (low intensity) cannot be efficient, however good its code. Pointwise
convolutions do more with each the wider they are; depthwise ones stay near k² / 2 MACs for each value moved.
"On the Efficiency of Convolutional Neural Networks", 2024 (S383). Operations are floating-point, two a MAC.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from labkit import machine as hardware
from labkit.clock import sample
from labkit.cost import Cost
from labkit.errors import LabkitError, closest
from labkit.tables import Table


class Machine(NamedTuple):
    """The best this machine can do, as `peak` measured it."""

    flops: float  # floating-point operations per second
    bandwidth: float  # bytes per second, read or written
    threads: int
    device: str

    @property
    def balance(self) -> float:
        """Operations per byte above which a layer waits for arithmetic, and below which for memory."""
        return self.flops / self.bandwidth


class Prediction(NamedTuple):
    """The least time that some work takes, what it waits for ("compute" or "memory"), operations per byte."""

    seconds: float
    bound: str
    intensity: float


class Efficiency(NamedTuple):
    """Three latencies of one model: at peak, by the roofline of each layer, and as measured."""

    ops: float
    ideal: float
    predicted: float
    measured: float

    @property
    def efficiency(self) -> float:
        """The share of the peak that was reached; `predicted` says how much of the rest the bytes explain."""
        return self.ideal / self.measured


def peak(seconds: float = 3.0, device: torch.device | str = "cpu") -> Machine:
    """The best rate of a large float32 matrix product and of a large copy, found within `seconds`."""
    device = torch.device(device)
    on_cpu = device.type == "cpu"
    n = 1024 if on_cpu else 8192
    a, b, out = (torch.ones(n, n, device=device) for _ in range(3))
    source = torch.ones(2**24 if on_cpu else 2**26, device=device)  # more than any cache holds
    target = torch.empty_like(source)
    product = _fastest(lambda: torch.mm(a, b, out=out), 0.4 * seconds, device)
    copy = _fastest(lambda: target.copy_(source), 0.4 * seconds, device)
    moved = 2 * source.numel() * source.element_size()  # read and written
    name = hardware.cpu() if on_cpu else torch.cuda.get_device_name(device)
    return Machine(2 * n**3 / product, moved / copy, torch.get_num_threads(), name)


def roofline(ops: float, bytes: float, machine: Machine) -> Prediction:
    """How long `ops` operations that move `bytes` bytes take at least."""
    arithmetic, traffic = ops / machine.flops, bytes / machine.bandwidth
    bound = "compute" if arithmetic >= traffic else "memory"
    return Prediction(max(arithmetic, traffic), bound, ops / bytes if bytes else 0.0)


def predict(cost: Cost, machine: Machine) -> float:
    """Seconds by the roofline when the operations run one after the other and share nothing."""
    return sum(roofline(2 * step.macs, step.bytes, machine).seconds for step in cost.operations)


def efficiency_gap(costs: Mapping[str, Cost], seconds: Mapping[str, float], machine: Machine) -> dict[str, Efficiency]:
    """For each model the latency it would have at peak and the one it has: few operations, or good use?"""
    for name in costs:
        if name not in seconds:
            raise LabkitError(f'"{name}" has a cost and no measured seconds.{closest(name, seconds)}')
    return {
        name: Efficiency(2 * c.macs, 2 * c.macs / machine.flops, predict(c, machine), seconds[name])
        for name, c in costs.items()
    }


def layers(cost: Cost, machine: Machine) -> Table:
    """One line for each kind of layer, as in `blocks.*.mlp.fc1`: its waterline is the best it could reach."""
    kinds: dict[str, list[tuple[int, int, Prediction]]] = {}
    for step in cost.operations:
        prediction = roofline(2 * step.macs, step.bytes, machine)
        kinds.setdefault(re.sub(r"\d+(?=\.)", "*", step.name), []).append((step.macs, step.bytes, prediction))
    rows = []
    for name, steps in kinds.items():
        macs, moved = sum(step[0] for step in steps), sum(step[1] for step in steps)
        seconds = sum(step[2].seconds for step in steps)
        waiting = sum(step[2].seconds for step in steps if step[2].bound == "memory")
        rows.append(
            [
                name,
                f"{len(steps)}",
                f"{macs / 1e6:.3f}",
                f"{moved / 1e6:.3f}",
                f"{2 * macs / moved:.1f}",
                "memory" if waiting > seconds / 2 else "compute",
                f"{seconds * 1e3:.3f}",
                f"{200 * macs / machine.flops / seconds:.0f} %",
            ]
        )
    headers = [
        "layer",
        "times",
        "MACs (M)",
        "moved (MB)",
        "FLOPs/byte",
        "waits for",
        "at least (ms)",
        "waterline",
    ]
    return Table(headers, rows, [False, True, True, True, True, False, True, True])


def _fastest(work: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Seconds of the best call: a peak is what nothing disturbed. At least two, as the first one warms up."""
    # With one thread, processor time leaves out what other programs took meanwhile.
    clock = "cpu" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"
    times: list[float] = []
    start = time.monotonic()
    while len(times) < 2 or time.monotonic() - start < seconds:
        times.append(sample(work, (), clock, device))
    return min(times)
