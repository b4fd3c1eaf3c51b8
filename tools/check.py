"""Runs everything that must pass, one step after another, even after a failure; ends with one summary.

`python tools/check.py notebooks` runs the lessons alone, twice in a row, the second time in another order: none may
live on what an earlier one, or its own last run, left behind. LESSON_ORDER=1234 repeats the order of seed 1234.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
Step = tuple[str, list[str]]
WHOLE = ["--dist=loadfile", "--no-loadscope-reorder"]  # a worker takes whole files, in the order in which they come


def steps(root: Path, seed: int = 0) -> list[Step]:
    python = [sys.executable, "-m"]
    return [
        ("ruff check", [*python, "ruff", "check", "."]),
        ("ruff format", [*python, "ruff", "format", "--check", "."]),
        ("mypy", [*python, "mypy"]),
        # Three for two cores: tests wait for kernels and a browser. Lessons compute all the time, so they are two.
        ("pytest", [*python, "pytest", "-rs", "-n3", *WHOLE, "tests"]),
        ("notebooks", nbval(shuffled(lessons(root), seed))),
    ]


def twice(root: Path, seed: int) -> list[Step]:
    return [
        ("notebooks", nbval(lessons(root))),
        ("notebooks again", nbval(shuffled(lessons(root), seed))),
    ]


def lessons(root: Path) -> list[str]:
    found = sorted(str(p.relative_to(root)) for p in root.glob("notebooks/*.ipynb"))
    return found or ["notebooks/00_start_here.ipynb"]  # given a name that does not exist, pytest fails


def shuffled(names: list[str], seed: int) -> list[str]:
    return random.Random(seed).sample(names, len(names))


def nbval(names: list[str]) -> list[str]:
    """Each lesson run anew and compared with what is saved: two at a time, in this order, each within its budget."""
    compare = ["--nbval", "--nbval-cell-timeout=180", "--nbval-current-env", "--nbval-sanitize-with=tests/sanitize.cfg"]
    return [sys.executable, "-m", "pytest", "-n2", *WHOLE, "-p", "tests.lesson_budget", *compare, *names]


def run(todo: list[Step], root: Path) -> int:
    results: list[tuple[str, int, float]] = []
    for name, command in todo:
        print(f"\n== {name}: {' '.join(command)}", flush=True)
        start = time.monotonic()
        code = subprocess.run(command, cwd=root, check=False).returncode
        results.append((name, code, time.monotonic() - start))
        print(f"== {name}: {'passed' if code == 0 else 'FAILED'} in {results[-1][2]:.1f} s", flush=True)
    failed = sum(code != 0 for _, code, _ in results)
    print("\n== summary")
    for name, code, seconds in results:
        why = "" if code == 0 else f"  exit code {code}, see == {name} above"
        print(f"  {'passed' if code == 0 else 'FAILED'}  {name:<15} {seconds:7.1f} s{why}")
    print(f"  total {sum(seconds for *_, seconds in results):.0f} s")
    print(f"steps: {len(results) - failed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


def browser(root: Path) -> None:
    """Find or install a browser; where there is one, the tests that need it may no longer be skipped."""
    if subprocess.run(["sh", "tools/browser.sh"], cwd=root, check=False).returncode == 0:
        os.environ["LABKIT_REQUIRE_BROWSER"] = "1"


def keep_bytecode() -> None:
    """Dozens of processes import torch: where Python is told to keep no bytecode, each would compile it anew."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def main(words: list[str]) -> int:
    keep_bytecode()
    seed = int(os.environ.get("LESSON_ORDER") or random.randrange(10_000))
    print(f"The lessons come in the order of seed {seed}; LESSON_ORDER={seed} repeats it.", flush=True)
    if words == ["notebooks"]:
        return run(twice(ROOT, seed), ROOT)
    browser(ROOT)
    return run(steps(ROOT, seed), ROOT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
