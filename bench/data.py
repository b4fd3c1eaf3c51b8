"""How fast images with ground truth are made: a training loop must not wait for them."""

from __future__ import annotations

from functools import partial

import numpy as np

from bench.outcome import Outcome
from labkit.clock import compare
from labkit.data import shapes
from labkit.intervals import bootstrap
from labkit.tables import Table

BAR = 1000  # images per second and core, of the default task
TASKS = ("classify", "count", "relate")


def bench(quick: bool) -> Outcome:
    n = 256 if quick else 1000
    makers = {task: partial(shapes, "train", n, task=task) for task in TASKS}
    timing = compare(makers, rounds=5 if quick else 20, warmup=1, seconds=30.0, clocks=("cpu",))
    rates = {task: n / np.array(timing.seconds["cpu"][task]) for task in TASKS}
    values, rows = {}, []
    for task, rate in rates.items():
        median, (low, high) = float(np.median(rate)), bootstrap(rate, np.median)
        values[task] = {"images_per_second": median, "low": low, "high": high}
        rows.append([task, f"{median:,.0f}", f"{low:,.0f} to {high:,.0f}"])
    table = Table(["shapes, 64 × 64", "images/s/core", "95 %"], rows, [False, True, True])
    rate = values["classify"]["images_per_second"]
    bar = f"shapes makes >= {BAR:,} images/s/core: {rate:,.0f}"
    return Outcome("images with ground truth", repr(table), values | {"n": n}, {bar: rate >= BAR})
