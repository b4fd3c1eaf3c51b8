"""What few bits save and cost: integers against floats and against other toolkits, by the same clock.

    python bench/quant.py --time         # twelve minutes; the weights are random, which changes no time
    python bench/quant.py --accuracy     # an hour and a half; every row is kept at once, and a second run goes on
    python bench/quant.py --run          # everything
    python bench/quant.py --summary      # what is kept, and whether each bar holds

Without onnxruntime and onnx, which labkit does not need, their row is left out and the summary says so.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import quant_accuracy, quant_time
from labkit import results

PARTS: dict[str, tuple[str, Callable[[], Any], Callable[[Any], str], str]] = {
    "time": ("bench-quant", quant_time.measure, quant_time.summary, "95 % bootstrap of the median"),
    "accuracy": (quant_accuracy.NAME, quant_accuracy.measure, quant_accuracy.summary, quant_accuracy.INTERVAL),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Few bits: milliseconds and what they cost.")
    for part in PARTS:
        parser.add_argument(f"--{part}", action="store_true", help=f"measure {part} and keep it")
    parser.add_argument("--run", action="store_true", help="measure everything and keep it")
    parser.add_argument("--summary", action="store_true", help="print what is kept")
    options = parser.parse_args(arguments)
    for part, (name, measure, _, interval) in PARTS.items():
        if options.run or getattr(options, part):
            command = f"python bench/quant.py --{part}"
            results.save(name, measure(), command=command, seed=0, interval=interval)
    for part, (name, _, summary, _) in PARTS.items():
        if name not in results.names():
            print(f"The part {part} is not measured yet: python bench/quant.py --{part}\n")
            continue
        stored = results.load(name)
        print(f"{summary(stored.values)}\n\n{stored.caption()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
