"""The paper marker and the table that ends a run; every module has a docstring, and a dial stays below what uses it."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
MODULES = sorted((TESTS.parent / "labkit").rglob("*.py"))


@pytest.fixture
def marked(pytester: pytest.Pytester):
    """Runs pytest on a small file under the real conftest; returns the result."""
    pytester.makepyprojecttoml('[tool.pytest.ini_options]\nmarkers = ["paper(*ids): ids"]\n')
    pytester.makeconftest((TESTS / "conftest.py").read_text(encoding="utf-8"))

    def run(source: str, *arguments: str) -> pytest.RunResult:
        pytester.makepyfile(source)
        return pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", *arguments)

    return run


MIXED = """
    import pytest

    @pytest.mark.paper("S203")
    def test_good(): pass

    @pytest.mark.paper("S207", "S182")
    def test_bad(): assert False

    @pytest.mark.paper("S207")
    @pytest.mark.parametrize("n", [1, 2])
    def test_more(n): pass

    @pytest.mark.paper("S226")
    @pytest.mark.skip
    def test_skipped(): pass

    @pytest.mark.paper("S092")
    @pytest.mark.xfail
    def test_known_to_fail(): assert False

    @pytest.fixture
    def broken(): raise OSError

    @pytest.fixture
    def leaky():
        yield
        raise OSError

    @pytest.mark.paper("S311")
    def test_setup(broken): pass

    @pytest.mark.paper("S383")
    def test_teardown(leaky): pass

    def test_unmarked(): pass
"""


def test_the_run_ends_with_one_sorted_line_per_paper(marked):
    result = marked(MIXED, "-m", "paper")
    lines = [line for line in result.outlines if re.match(r"S\d{3} ", line)]
    assert lines == [
        "S092  failed  (1 failed)",
        "S182  failed  (1 failed)",
        "S203  passed  (1 passed)",
        "S207  failed  (1 failed, 2 passed)",
        "S226  skipped (1 skipped)",
        "S311  failed  (1 failed)",
        "S383  failed  (1 failed)",
    ]


def test_the_outcomes_are_there_as_json(marked, pytester):
    marked(MIXED, "--paper-json", "papers.json")
    rows = json.loads((pytester.path / "papers.json").read_text())
    assert rows["S207"]["status"] == "failed"
    assert (rows["S207"]["passed"], rows["S207"]["failed"], rows["S207"]["skipped"]) == (2, 1, 0)
    assert [test.split("::")[1] for test in rows["S207"]["tests"]] == ["test_bad", "test_more"]


def test_spread_over_processes_the_json_is_the_same(marked, pytester):
    marked(MIXED, "--paper-json", "alone.json", "-n0")
    marked(MIXED, "--paper-json", "together.json", "-n2")
    assert (pytester.path / "together.json").read_text() == (pytester.path / "alone.json").read_text()


def test_without_marked_tests_there_is_no_table(marked, pytester):
    result = marked("def test_plain(): pass", "--paper-json", "papers.json")
    assert "papers" not in result.stdout.str()
    assert json.loads((pytester.path / "papers.json").read_text()) == {}


@pytest.mark.parametrize("mark", ['paper("207")', 'paper("S2070")', "paper(207)", 'paper("S207, S182")'])
def test_a_mark_that_is_no_id_stops_the_run_with_a_sentence(marked, mark):
    result = marked(f"import pytest\n@pytest.mark.{mark}\ndef test_x(): pass\n", "-m", "not paper")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *::test_x: * is not a catalogue id; expected S and three digits*"])


@pytest.mark.parametrize("mark", ["paper", "paper()", 'paper(id="S207")'])
def test_a_mark_without_an_id_stops_the_run_with_a_sentence(marked, mark):
    result = marked(f"import pytest\n@pytest.mark.{mark}\ndef test_x(): pass\n")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *::test_x: the paper marker names no catalogue id*"])


def test_every_module_says_its_idea():
    for path in MODULES:
        source = path.read_text(encoding="utf-8")
        assert not source.strip() or ast.get_docstring(ast.parse(source)), f"{path.name} has no docstring"


def test_a_dial_imports_neither_data_nor_pictures_nor_the_training_loop():
    """One way only: a dial is below them, and whoever needs it alone loads it alone. One process for all five dials:
    the first file after which one of them is there is the one that brought it."""
    code = """
import importlib, pkgutil, sys
above = ("labkit.data", "labkit.viz", "labkit.train")
for dial in ("patching", "positions", "attention", "tokens", "quant"):
    for file in pkgutil.iter_modules(importlib.import_module(f"labkit.{dial}").__path__):
        importlib.import_module(f"labkit.{dial}.{file.name}")
        if brought := [name for name in sys.modules if name.startswith(above)]:
            sys.exit(f"labkit.{dial}.{file.name} imports {brought}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
