"""What `import labkit` costs a newcomer: seconds on top of torch's, and the heavy packages it must not pull in."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from bench.outcome import Outcome
from labkit.intervals import bootstrap
from labkit.tables import Table

BAR = 0.3  # seconds
LAZY = ("timm", "matplotlib", "sklearn")
PROGRAM = f"""
from time import process_time
import torch
start = process_time()
import labkit
labkit.ViT
print(start, process_time() - start)
import sys
print(*(name for name in {LAZY} if name in sys.modules))
"""


def bench(quick: bool) -> Outcome:
    runs = [fresh_python() for _ in range(3 if quick else 12)]
    torchs, ours = np.array([[float(word) for word in words[:2]] for words in runs]).T
    pulled = sorted({name for words in runs for name in words[2:]})
    extra, (low, high) = float(np.median(ours)), bootstrap(ours, np.median)
    rows = [["torch", f"{np.median(torchs):.3f}"], ["labkit and its ViT, on top", f"{extra:.3f}"]]
    table = Table(["import, in a fresh process", "processor time (s)"], rows, [False, True])
    return Outcome(
        "import time",
        repr(table),
        {"torch": float(np.median(torchs)), "extra": extra, "low": low, "high": high, "pulled": pulled},
        {
            f"labkit adds <= {BAR} s to torch: {extra:.3f} s ({low:.3f} to {high:.3f})": extra <= BAR,
            f"none of {', '.join(LAZY)} is imported: {', '.join(pulled) or 'none'}": not pulled,
        },
    )


def fresh_python() -> list[str]:
    """Seconds of torch, seconds of labkit beyond, and the packages that should have waited."""
    return subprocess.run([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
