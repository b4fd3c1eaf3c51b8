"""Runs everything that must pass, one step after another, even after a failure; ends with one summary."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
Step = tuple[str, list[str]]


def steps(root: Path) -> list[Step]:
    python = [sys.executable, "-m"]
    lessons = sorted(str(p.relative_to(root)) for p in root.glob("notebooks/*.ipynb"))
    nbval = "-p tests.lesson_budget --nbval --nbval-cell-timeout=180 --nbval-current-env"
    sanitize = ["--nbval-sanitize-with", "tests/sanitize.cfg"]
    return [
        ("ruff check", [*python, "ruff", "check", "."]),
        ("ruff format", [*python, "ruff", "format", "--check", "."]),
        ("mypy", [*python, "mypy"]),
        ("pytest", [*python, "pytest", "-rs", "-n2", "--dist=loadfile", "tests"]),
        # without a lesson pytest is given a name that does not exist, and fails
        ("notebooks", [*python, "pytest", *nbval.split(), *sanitize, *(lessons or ["notebooks/00_start_here.ipynb"])]),
    ]


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
        print(f"  {'passed' if code == 0 else 'FAILED'}  {name:<12} {seconds:7.1f} s{why}")
    print(f"  total {sum(seconds for *_, seconds in results):.0f} s")
    print(f"steps: {len(results) - failed} passed, {failed} failed", flush=True)
    return 1 if failed else 0


def browser(root: Path) -> None:
    """Find or install a browser; where there is one, the tests that need it may no longer be skipped."""
    if subprocess.run(["sh", "tools/browser.sh"], cwd=root, check=False).returncode == 0:
        os.environ["LABKIT_REQUIRE_BROWSER"] = "1"


if __name__ == "__main__":
    browser(ROOT)
    sys.exit(run(steps(ROOT), ROOT))
