"""A paper's check: the tests that assert it, as source and as a run with a time limit.

`run(row.check)` asks pytest in a process of its own, so that a check that hangs or breaks takes nothing with it. Code
given as `first` runs in that process before any test is read: break a mechanism there, and see who notices.

    run(row.check).words                                                      "9 passed in 3 s."
    run(row.check, first="import labkit.tokens.fuse as f; f.fuse = None")     "9 failed, the first is ..."
    noticed(rows, first=...)                                                  which papers' checks fail then
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from labkit import paths
from labkit.errors import LabkitError
from labkit.papers import Row

PARSING = threading.Lock()  # Python 3.11 counts the depth of its parser once for all threads
SECONDS = 170  # that a run may take; most take five, of which three are imports


@dataclass(frozen=True)
class Outcome:
    """What pytest found."""

    passed: int
    failed: int
    seconds: float
    words: str

    @property
    def holds(self) -> bool:
        return self.passed > 0 and self.failed == 0


def tests(check: str) -> list[str]:
    """The tests of a row: "tests/test_vit.py::test_it;…" → a list."""
    return [name for name in check.split(";") if name]


def source(test: str) -> str | None:
    """The code of a test with its markers; None where there is no checkout that holds it."""
    file, *names = test.split("::")
    path = paths.ROOT / file
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    with PARSING:
        node: ast.Module | ast.FunctionDef | ast.ClassDef = ast.parse(text)
    for name in names:
        inside = [n for n in node.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name]
        if not inside:
            return None
        node = inside[-1]
    if isinstance(node, ast.Module):
        return text
    first = min([node.lineno, *(mark.lineno for mark in node.decorator_list)])
    return "\n".join(text.splitlines()[first - 1 : node.end_lineno])


def run(check: str, seconds: float = SECONDS, first: str = "") -> Outcome:
    """Run the tests of a row now; `first` is Python that runs before them in the same process."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        said = _pytest(tests(check), Path(folder), seconds, first)
    spent = time.monotonic() - start
    if said is None:
        return Outcome(0, 0, spent, f"No answer after {seconds:.0f} s, so the run was stopped.")
    return outcome(said, spent)


def noticed(rows: Sequence[Row], first: str = "", seconds: float = SECONDS) -> dict[str, bool]:
    """Of each paper whether its check fails when `first` has run before; all of them in one run of pytest."""
    names = list(dict.fromkeys(name for row in rows for name in tests(row.check)))
    with tempfile.TemporaryDirectory() as folder:
        said, table = _pytest(names, Path(folder), seconds, first), Path(folder, "papers.json")
        if said is None or not table.is_file():
            raise LabkitError(f"pytest gave no table of papers within {seconds:.0f} s: {(said or '')[-300:]}")
        found = json.loads(table.read_text(encoding="utf-8"))
    return {row.id: found[row.id]["status"] == "failed" for row in rows}


def _pytest(names: list[str], folder: Path, seconds: float, first: str) -> str | None:
    """What pytest says of these tests, with its table of papers in the folder; None when the time is over."""
    _ready(names)
    (folder / "labkit_first.py").write_text(first, encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    # Plugins that other packages bring along cost seconds, and no check needs one.
    quick = {"PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"}
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    options = ["-p", "labkit_first", "-p", "no:cacheprovider", "--tb=line", "--color=no"]
    command = [sys.executable, "-m", "pytest", *options, "--paper-json", str(folder / "papers.json"), *names]
    try:
        done = subprocess.run(
            command, cwd=paths.ROOT, env=plain | quick, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return None
    return done.stdout + done.stderr


def outcome(said: str, seconds: float) -> Outcome:
    """What pytest wrote, in words."""
    passed, failed = (
        sum(map(int, re.findall(rf"(\d+) {word}", _last(said)))) for word in ("passed", "(?:failed|error)")
    )
    if not passed and not failed:
        return Outcome(0, 0, seconds, f"pytest ran no test: {said.strip()[-300:] or 'it said nothing'}")
    words = [f"{count} {word}" for count, word in ((passed, "passed"), (failed, "failed")) if count]
    first = re.search(r"^(?:FAILED|ERROR) \S*?::(\S+)(?: - (.*))?", said, re.MULTILINE)
    named = f"; the first is {first[1]}" + (f" ({first[2].strip()})" if first[2] else "") if first else ""
    return Outcome(passed, failed, seconds, f"{' and '.join(words)} in {seconds:.0f} s{named}.")


def _last(said: str) -> str:
    """pytest's last line of counts."""
    lines = re.findall(r"^=*\s?((?:\d+ [a-z]+,? ?)+) in [\d.]+s.*$", said, re.MULTILINE)
    return lines[-1] if lines else ""


def _ready(names: list[str]) -> None:
    if not names:
        raise LabkitError("No test names this paper, so there is no check to run.")
    if importlib.util.find_spec("pytest") is None:
        raise LabkitError(
            "A check is run by pytest, and it is not installed here: pip install pytest, or make setup-test."
        )
    if missing := next((name for name in names if source(name) is None), None):
        raise LabkitError(f"The test {missing} is not here; run inside a clone of labkit, where the tests are.")
