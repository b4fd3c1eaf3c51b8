"""What things cost on this machine: timed in turns, so that whatever slows the machine slows them all alike.

A round runs every candidate once, in a new order, and gives one ratio to the first candidate; the median of
the ratios and its bootstrap interval are the result. On a shared machine the steady clock is "cpu": processor
time with a single thread. "wall" is the time that passes, with all threads (on a GPU: between two events).
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from labkit import machine
from labkit.errors import LabkitError, closest
from labkit.intervals import bootstrap
from labkit.operations import inference
from labkit.tables import Table

CLOCKS = ("wall", "cpu")
FEWEST = 5  # rounds even when the time is up: the interval of fewer means nothing


@dataclass(frozen=True, repr=False)
class Timing:
    """`.ratio("slim")` to the first candidate, `.median("slim")` in seconds, `.table()` to look at."""

    seconds: dict[str, dict[str, list[float]]]  # clock -> candidate -> one time for each round
    threads: dict[str, int]  # clock -> threads it ran with
    device: str

    @property
    def names(self) -> list[str]:
        return list(next(iter(self.seconds.values())))

    def median(self, name: str, clock: str | None = None) -> float:
        """Seconds of one call, on the first clock or the one given."""
        return statistics.median(self._times(name, clock))

    def interval(self, name: str, clock: str | None = None) -> tuple[float, float]:
        """The ends of the 95 % interval of the median, in seconds."""
        return bootstrap(self._times(name, clock), np.median)

    def ratio(self, name: str, to: str | None = None, clock: str | None = None) -> tuple[float, float, float]:
        """Time of `name` over time of `to` (the first): (median, low, high) at 95 %; below 1 is faster."""
        ratios = np.divide(self._times(name, clock), self._times(to or self.names[0], clock))
        low, high = bootstrap(ratios, np.median)
        return float(np.median(ratios)), low, high

    def values(self) -> dict[str, Any]:
        """The plain numbers, as `labkit.results.save` takes them."""
        numbers: dict[str, Any] = {"device": self.device, "threads": self.threads}
        for clock, times in self.seconds.items():
            numbers[clock] = {}
            for name in self.names:
                ratio, low, high = self.ratio(name, clock=clock)
                row = {"seconds": self.median(name, clock), "rounds": len(times[name])}
                numbers[clock][name] = row | {"ratio": ratio, "low": low, "high": high}
        return numbers

    def table(self) -> Table:
        """For each clock the median time, and its ratio to the first candidate with the interval."""
        first, *others = self.names
        headers, rows = [""], [[name] for name in self.names]
        for clock, threads in self.threads.items():
            size, unit = _unit(max(self.median(name, clock) for name in self.names))
            headers += [f"{clock}, {threads} thread{'s' * (threads != 1)} ({unit})", f"× {first}", "95 %"]
            rows[0] += [f"{self.median(first, clock) / size:.2f}", "1.000", "-"]
            for row, name in zip(rows[1:], others, strict=True):
                ratio, low, high = self.ratio(name, clock=clock)
                row += [f"{self.median(name, clock) / size:.2f}", f"{ratio:.3f}", f"{low:.3f} to {high:.3f}"]
        return Table(headers, rows, [False] + [True] * (len(headers) - 1))

    def caption(self) -> str:
        rounds = {clock: len(times[self.names[0]]) for clock, times in self.seconds.items()}
        turns = _list(f"{n} rounds ({clock})" for clock, n in rounds.items())
        return f"Medians of {turns} in turns, on {self.device}."

    def __repr__(self) -> str:
        return f"{self.table()}\n{self.caption()}"

    def _repr_html_(self) -> str:
        return f"{self.table()._repr_html_()}<small>{self.caption()}</small>"

    def _times(self, name: str, clock: str | None) -> list[float]:
        clock = clock or next(iter(self.seconds))
        if clock not in self.seconds:
            raise LabkitError(f'The clock "{clock}" did not run; there is {_list(self.seconds)}.')
        if name not in self.names:
            raise LabkitError(f'"{name}" was not timed; there is {_list(self.names)}.{closest(name, self.names)}')
        return self.seconds[clock][name]


def compare(
    candidates: Mapping[str, Callable],
    inputs: Any = (),
    *,
    rounds: int = 30,
    warmup: int = 2,
    seconds: float = 10.0,
    clocks: Sequence[str] = ("wall",),
) -> Timing:
    """Time models, or any functions, at inference on the same `inputs`: one tensor, or a tuple of arguments.

    Up to `rounds` rounds for each clock, fewer when they take longer than `seconds`. `Timing.ratio` reads the
    first clock: `("cpu", "wall")` judges by processor time and shows wall-clock beside it.
    """
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    device = next((a.device for a in arguments if isinstance(a, torch.Tensor)), torch.device("cpu"))
    _check(candidates, rounds, clocks, device)
    taken, threads = {}, {}
    with inference(*candidates.values()):
        for clock in clocks:
            threads[clock] = 1 if clock == "cpu" else torch.get_num_threads()
            with limit_threads(threads[clock]):
                calls = {name: partial(sample, fn, arguments, clock, device) for name, fn in candidates.items()}
                taken[clock] = _take_turns(calls, rounds, warmup, seconds)
    return Timing(taken, threads, machine.cpu() if device.type == "cpu" else torch.cuda.get_device_name(device))


def sample(fn: Callable, arguments: tuple, clock: str, device: torch.device) -> float:
    """Seconds that one call takes."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        fn(*arguments)
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1e3
    now = time.process_time if clock == "cpu" else time.perf_counter
    begin = now()
    fn(*arguments)
    return now() - begin


@contextmanager
def limit_threads(n: int) -> Iterator[None]:
    """Torch computes with `n` threads; afterwards, and after an error, with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _take_turns(
    calls: Mapping[str, Callable[[], float]], rounds: int, warmup: int, seconds: float
) -> dict[str, list[float]]:
    for call in [*calls.values()] * warmup:
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffle, start = list(calls), random.Random(0).shuffle, time.monotonic()
    for i in range(rounds):
        if i >= FEWEST and time.monotonic() - start > seconds:
            break
        shuffle(order)  # in a fixed order each candidate would always inherit the caches of the same other
        for name in order:
            taken[name].append(calls[name]())
    return taken


def _check(candidates: Mapping[str, Callable], rounds: int, clocks: Sequence[str], device: torch.device) -> None:
    for name, fn in candidates.items():
        if not callable(fn):
            raise LabkitError(f'"{name}" is a {type(fn).__name__}; expected a model or a function to call.')
    if not candidates:
        raise LabkitError("There is nothing to time; pass a dict of names and models.")
    if rounds < FEWEST:
        raise LabkitError(f"{rounds} rounds give no interval worth the name; take {FEWEST} or more.")
    if not clocks or set(clocks) - set(CLOCKS):
        raise LabkitError(f"clocks={clocks!r} is not understood; choose from {_list(CLOCKS)}.")
    if device.type not in ("cpu", "cuda"):
        raise LabkitError(f'The device "{device.type}" cannot be timed; move model and inputs to cpu or cuda.')
    if device.type == "cuda" and "cpu" in clocks:
        raise LabkitError('Processor time says nothing about a GPU; take clocks=("wall",) there.')


def _unit(seconds: float) -> tuple[float, str]:
    """A size and a name in which `seconds` is easy to read."""
    return next(((size, name) for size, name in ((1.0, "s"), (1e-3, "ms")) if seconds >= size), (1e-6, "µs"))


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
