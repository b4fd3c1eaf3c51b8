"""Runs lessons on the GPU and compares them with what is saved, which the CPU wrote: `python tools/gpu.py [NAME ...]`.

The same strict nbval as in `make test`, with LABKIT_DEVICE=cuda and without the budgets, which are a small CPU
machine's. A run of all lessons is recorded in data/results/gpu.json. Where the checkout came without its .git,
LABKIT_COMMIT says which commit it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as xml
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from labkit import results

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "gpu"
COMMAND = "make test-gpu"
Row = dict[str, Any]


def compare(lesson: Path, report: Path) -> str:
    """Run one lesson by nbval; its outcome is in `report`, and what it said is returned."""
    nbval = ["--nbval", "--nbval-cell-timeout=180", "--nbval-current-env", "--nbval-sanitize-with=tests/sanitize.cfg"]
    command = [sys.executable, "-m", "pytest", *nbval, f"--junitxml={report}", str(lesson)]
    # cuBLAS gives the same sums in every run only with a workspace of a fixed size
    env = os.environ | {"LABKIT_DEVICE": "cuda", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False).stdout


def outcome(report: Path) -> Row:
    """How many cells agreed, and the numbers of those that did not."""
    cells = {case.get("name", ""): case for case in xml.parse(report).iter("testcase")} if report.is_file() else {}
    failed = [
        name for name, case in cells.items() if case.find("failure") is not None or case.find("error") is not None
    ]
    passed = [name for name, case in cells.items() if name not in failed and case.find("skipped") is None]
    return {"passed": len(passed), "failed": len(failed), "failed_cells": failed}


def examine(lessons: list[Path], run: Callable[[Path, Path], str] = compare) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    OUT.mkdir(parents=True, exist_ok=True)
    for lesson in lessons:
        report = OUT / f"{lesson.stem}.xml"
        report.unlink(missing_ok=True)
        said = run(lesson, report)
        rows[lesson.stem] = row = outcome(report)
        print(f"{lesson.stem}: {row['passed']} cells agree, {row['failed']} do not", flush=True)
        if not good(row):
            print(said, flush=True)
    return rows


def good(row: Row) -> bool:
    return bool(row["passed"]) and not row["failed"]


def main(names: list[str], run: Callable[[Path, Path], str] = compare) -> int:
    if not torch.cuda.is_available():
        print("There is no CUDA device here, so nothing was run; `make test` compares the CPU.", file=sys.stderr)
        return 2
    known = {path.stem: path for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))}
    if unknown := [name for name in names if name not in known]:
        print(f"There is no lesson {', '.join(unknown)}; there are: {', '.join(known)}.", file=sys.stderr)
        return 2
    rows = examine([known[name] for name in names or known], run)
    if not names:
        values = {"device": torch.cuda.get_device_name(0), "cuda": torch.version.cuda, "lessons": rows}
        if commit := os.environ.get("LABKIT_COMMIT"):
            values["commit"] = commit
        results.save("gpu", values, command=COMMAND)
    return int(not all(good(row) for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
