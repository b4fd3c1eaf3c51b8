"""What few bits save and cost: integers against floats and against other toolkits, by the same clock.

    python bench/quant.py --time         # twelve minutes; the weights are random, which changes no time
    python bench/quant.py --accuracy     # an hour and a half; every row is kept at once, and a second run goes on
    python bench/quant.py --run          # everything
    python bench/quant.py --summary      # what is kept, and whether each bar holds

Without onnxruntime and onnx, which labkit does not need, their row is left out and the summary says so.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import parts, quant_accuracy, quant_time
from bench.parts import Part

PARTS: dict[str, Part] = {
    "time": ("bench-quant", quant_time.measure, quant_time.summary, "95 % bootstrap of the median"),
    "accuracy": (quant_accuracy.NAME, quant_accuracy.measure, quant_accuracy.summary, quant_accuracy.INTERVAL),
}


def main(arguments: list[str] | None = None) -> int:
    return parts.main("bench/quant.py", "Few bits: milliseconds and what they cost.", PARTS, arguments)


if __name__ == "__main__":
    sys.exit(main())
