"""`@pytest.mark.paper("S207")` names the paper whose check a test asserts; a run ends with a table of papers.

`pytest --paper-json PATH` writes the same outcomes as JSON, for `python -m labkit.papers build`: with -m paper and
data/results/papers.json it is the last run that data/papers.csv is made from. A test that runs with several
parameters is named once.
"""

from __future__ import annotations

import gc
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores: what they start must not take all of them
    os.environ.setdefault("OMP_NUM_THREADS", "1")

WORST_FIRST = ("failed", "passed", "skipped")
LONG = ("tests/test_notebooks.py", "tests/browser/")  # minutes; those in a browser share it, and JupyterLab, in a row


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--paper-json", metavar="PATH", help="write the outcome of every paper's tests to PATH")


def pytest_configure(config: pytest.Config) -> None:
    path = None if hasattr(config, "workerinput") else config.getoption("--paper-json")  # xdist's first process has all
    config.pluginmanager.register(PaperOutcomes(path), "paper-outcomes")


@pytest.hookimpl(tryfirst=True)  # before -m deselects: a wrong id is wrong in every run
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    problems = [problem for item in items for problem in problems_of(item)]
    if problems:
        raise pytest.UsageError("\n".join(dict.fromkeys(problems)))
    if "PYTEST_XDIST_WORKER" in os.environ:  # begun last, a long file would leave the other worker idle
        items.sort(key=lambda item: [not item.nodeid.startswith(start) for start in LONG])
    for item in items:
        item.user_properties += [("paper", paper) for paper in dict.fromkeys(ids_of(item))]


def ids_of(item: pytest.Item) -> list:
    return [paper for mark in item.iter_markers("paper") for paper in mark.args]


def problems_of(item: pytest.Item) -> Iterator[str]:
    for mark in item.iter_markers("paper"):
        if mark.kwargs or not mark.args:
            yield f'{item.nodeid}: the paper marker names no catalogue id; write @pytest.mark.paper("S207").'
    for paper in ids_of(item):
        if not (isinstance(paper, str) and re.fullmatch(r"S\d{3}", paper)):
            yield (
                f"{item.nodeid}: {paper!r} is not a catalogue id; expected S and three digits, "
                'as in @pytest.mark.paper("S207").'
            )


@pytest.fixture
def silence(capfd: pytest.CaptureFixture) -> Callable[[], None]:
    """Asserts that nothing was written to either stream since the test began."""
    gc.collect()  # tasks and sockets that earlier tests left behind complain when they are collected
    capfd.readouterr()

    def check() -> None:
        assert capfd.readouterr() == ("", "")

    return check


class PaperOutcomes:
    """Collects the outcome of every marked test; a test counts once, by the worst of its phases."""

    def __init__(self, path: str | None) -> None:
        self.path = path
        self.outcomes: dict[str, dict[str, str]] = {}  # paper id -> test -> outcome

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        # An expected failure is a check that does not hold: the paper's row does not work yet.
        outcome = "failed" if hasattr(report, "wasxfail") and report.skipped else report.outcome
        for name, paper in report.user_properties:
            if name == "paper":
                tests = self.outcomes.setdefault(str(paper), {})
                tests[report.nodeid] = min(tests.get(report.nodeid, outcome), outcome, key=WORST_FIRST.index)

    def table(self) -> dict[str, dict]:
        rows = {}
        for paper, tests in sorted(self.outcomes.items()):
            counts = {outcome: list(tests.values()).count(outcome) for outcome in WORST_FIRST}
            status = next(outcome for outcome in WORST_FIRST if counts[outcome])
            rows[paper] = {"status": status, **counts, "tests": sorted({test.split("[")[0] for test in tests})}
        return rows

    def pytest_sessionfinish(self) -> None:
        if self.path:
            Path(self.path).write_text(json.dumps(self.table(), indent=1) + "\n", encoding="utf-8")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        rows = self.table()
        if not rows:
            return
        terminalreporter.section("papers")
        for paper, row in rows.items():
            counts = ", ".join(f"{row[outcome]} {outcome}" for outcome in WORST_FIRST if row[outcome])
            colour = {"failed": "red", "passed": "green", "skipped": "yellow"}[row["status"]]
            terminalreporter.line(f"{paper}  {row['status']:8}({counts})", **{colour: True})
