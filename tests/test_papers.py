"""The table of papers: its facts, and that it says what tests, their last run, docstrings and lessons say now."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from labkit import papers, paths
from labkit.errors import LabkitError
from labkit.papers import Paper, build, scan
from labkit.papers.__main__ import main

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "labkit").rglob("*.py"))
BUILD, RUN = re.escape(build.BUILD), re.escape(build.RUN)


@pytest.fixture(scope="module")
def rows():
    return papers.rows()


def test_the_table_is_what_the_sources_say():
    assert build.stale(ROOT) == ""


def test_papers_are_cited_by_title_year_and_id():
    assert papers.cite("S182") == '"Going deeper with Image Transformers", 2021 (S182)'


def test_a_paper_without_a_year_is_cited_without_one(monkeypatch):
    monkeypatch.setattr(papers, "load", lambda: (Paper("S001", "Once", None, "survey", "context", "It was.", ""),))
    assert papers.cite("S001") == '"Once" (S001)'


def test_an_unknown_paper_is_a_sentence():
    with pytest.raises(LabkitError, match=r'No paper "S999" is described .* Did you mean "S\d+"\?'):
        papers.cite("S999")


def test_facts_are_complete_sorted_and_in_words():
    assert [paper.id for paper in papers.PAPERS] == [f"S{i:03}" for i in range(1, 392)]
    assert [title for title, n in Counter(paper.title for paper in papers.PAPERS).items() if n > 1] == []
    for paper in papers.PAPERS:
        assert paper.title == paper.title.strip() and not re.search(r"[\\$\t]", paper.title), paper.id
        assert paper.year is None or 2012 <= paper.year <= 2030, paper.id
        assert paper.scope in ("implement", "variant", "apply", "context"), paper.id
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", paper.family), paper.id
        assert re.fullmatch(r"S\d{3}|labkit(\.\w+)+|", paper.through), paper.id


def test_an_idea_is_one_sentence_of_a_line():
    for paper in papers.PAPERS:
        assert 20 <= len(paper.idea) <= 160 and paper.idea == paper.idea.strip(), paper.id
        assert paper.idea.endswith(".") and not re.search(r"[.!?] ", paper.idea), f"{paper.id}: one sentence, please"


def test_every_paper_that_the_code_names_is_described_and_named_in_full():
    known = {paper.id: paper for paper in papers.PAPERS}
    for path in MODULES:
        words = " ".join(path.read_text(encoding="utf-8").split())
        for named in sorted(scan.ids(words)):
            assert named in known, f"{path.name} names {named}; add it to labkit/papers.tsv"
            title, year = known[named].title, known[named].year
            in_full = re.search(rf'{re.escape(title)}", {year}[ ,(].{{0,20}}{named}', words)
            assert in_full, f'{path.name}: write "{title}", {year} ({named})'


def test_every_row_has_what_its_status_promises(rows):
    works = {row.id for row in rows if row.status == "works"}
    assert len(works) > 80 and len(rows) == len(papers.PAPERS)
    for row in rows:
        assert row.status in papers.STATUSES, row.id
        assert (row.status == "works") == bool(row.check), row.id
        assert (row.status == "context") == (row.scope == "context"), row.id
        if row.status == "works":
            assert thing(row.symbol) is not None, row.id
        if row.status == "applies":
            assert row.symbol in works or thing(row.symbol) is not None, f"{row.id} points at {row.symbol}"


def thing(symbol):
    """The module, class or function of that name; an error says where there is none."""
    assert symbol.startswith("labkit."), symbol
    try:
        return importlib.import_module(symbol)
    except ModuleNotFoundError:
        module, name = symbol.rsplit(".", 1)
        return getattr(importlib.import_module(module), name)


def test_checks_and_lessons_are_there(rows):
    tests = {test for row in rows for test in row.check.split(";") if test}
    for test in tests:
        path, *_, name = test.split("::")
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), test
    lessons = {lesson for row in rows for lesson in row.lesson.split(";") if lesson}
    assert all((ROOT / "notebooks" / f"{lesson}.py").is_file() for lesson in lessons) and len(lessons) > 5


FACTS = (
    Paper("S001", "Merging", 2021, "token-reduction", "implement", "Merge what is alike.", ""),
    Paper("S002", "Applying", 2022, "survey", "apply", "Merge tokens of proteins.", "S001"),
    Paper("S003", "Meshes", 2023, "survey", "apply", "Nothing of it is here.", ""),
    Paper("S004", "Overview", None, "survey", "context", "All that there is, in rows.", ""),
)
CODE = '''"""Merge, as in "Merging", 2021 (S001).

    Merge(2)
"""
class Other: pass
class Merge: pass
def score(x): return x
def _hidden(x): return x
'''
TESTS = """import pytest
from labkit.merge import Merge, Other, score, _hidden

def made(): return Merge(2)

@pytest.mark.paper("S001")
@pytest.mark.parametrize("n", [1, 2])
def test_one(n): assert made() and score(n) and Other and _hidden

@pytest.mark.paper("S001")
def test_two(): assert made() and score(1) and score(2)

def test_unmarked(): pass
"""


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone with one file, its tests, their run and a lesson; returns its root."""
    monkeypatch.setattr(papers, "load", lambda: FACTS)
    put(tmp_path, "labkit/merge.py", CODE)
    put(tmp_path, "labkit/viz/show.py", '"""Shows S001, which it does not hold, and S003, which nobody holds."""')
    put(tmp_path, "tests/test_merge.py", TESTS)
    put(tmp_path, "notebooks/01_merging.ipynb", lesson("# Merging (S001)", "nothing"))
    put(tmp_path, "notebooks/02_more.ipynb", lesson("print(cite(paper))", '"Merging", 2021 (S001)\n'))
    run(tmp_path, S001=("passed", ["test_one", "test_two"]))
    return tmp_path


def put(root, name, text):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")


def lesson(source, printed):
    return json.dumps({"cells": [{"source": [source], "outputs": [{"text": [printed]}]}, {"source": ["S0011"]}]})


def run(root, **outcomes):
    stored = {
        id: {"status": status, "tests": [f"tests/test_merge.py::{test}" for test in tests]}
        for id, (status, tests) in outcomes.items()
    }
    put(root, "data/results/papers.json", json.dumps(stored))


def test_a_row_is_made_from_facts_tests_code_and_lessons(clone):
    first, second, third, fourth = build.table(clone)
    facts = dataclasses.asdict(FACTS[0]) | {"status": "works", "symbol": "labkit.merge.Merge"}
    del facts["through"]
    facts["check"] = "tests/test_merge.py::test_one;tests/test_merge.py::test_two"
    assert dataclasses.asdict(first) == facts | {"lesson": "01_merging;02_more"}
    assert (second.status, second.symbol, second.check, second.lesson) == ("applies", "S001", "", "")
    assert (third.status, third.symbol) == ("open", "")
    assert (fourth.status, fourth.year) == ("context", None)


def test_what_is_written_is_read_again(clone, monkeypatch):
    monkeypatch.setattr(paths, "DATA", clone / "data")
    build.write(clone)
    assert papers.rows() == build.table(clone) and build.stale(clone) == ""
    assert "token-reduction      1" in str(build.counts(papers.rows()))


@pytest.mark.parametrize("outcome", ["failed", "skipped"])
def test_a_paper_whose_tests_did_not_pass_is_open(clone, outcome):
    run(clone, S001=(outcome, ["test_one", "test_two"]))
    assert build.table(clone)[0].status == "open"


@pytest.mark.parametrize(
    "old, new",
    [
        ("Merging,2021", "Merging,2020"),
        ("works", "open"),
        ("01_merging;", ""),
        ("S003,", "S033,"),
        ("S004,", "\nS004,"),
    ],
)
def test_a_table_edited_by_hand_is_stale(clone, old, new):
    path = build.write(clone)
    path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    assert re.search(rf"not what the sources say .*`{BUILD}`", build.stale(clone))


def test_a_table_in_another_order_is_stale(clone):
    path = build.write(clone)
    head, *lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([head, *reversed(lines), ""]), encoding="utf-8")
    assert re.search(rf"the order of its lines\); run `{BUILD}`", build.stale(clone))


@pytest.mark.parametrize(
    "name, old, new",
    [
        ("labkit/merge.py", "class Merge:", "class Fuse:"),
        ("notebooks/01_merging.ipynb", "(S001)", ""),
        ("tests/test_merge.py", "def made(): return Merge(2)", "def made(): return 2"),
    ],
)
def test_when_the_sources_change_the_table_is_stale(clone, name, old, new):
    build.write(clone)
    put(clone, name, (clone / name).read_text(encoding="utf-8").replace(old, new))
    assert re.search(rf"see the line of S001\); run `{BUILD}`", build.stale(clone))


@pytest.mark.parametrize(
    "old, new, what",
    [
        ("def test_unmarked", '@pytest.mark.paper("S003")\ndef test_new', "lacks .*::test_new, which names S003;"),
        ("def test_two", "def test_three", r"lacks .*::test_three, which names S001 \(and 1 more\);"),
        ('@pytest.mark.paper("S001")\ndef', "def", "holds .*::test_two, which no longer names S001;"),
        ('"S001")\ndef', '"S001", "S002")\ndef', "lacks .*::test_two, which names S002;"),
    ],
)
def test_a_marker_that_came_or_went_since_the_run_asks_for_a_run(clone, old, new, what):
    build.write(clone)
    put(clone, "tests/test_merge.py", TESTS.replace(old, new))
    with pytest.raises(LabkitError, match=rf"The stored run {what} run `{RUN}`, then `{BUILD}`"):
        build.stale(clone)


def test_a_run_that_was_never_stored_is_a_sentence(clone):
    (clone / "data/results/papers.json").unlink()
    with pytest.raises(LabkitError, match=RUN):
        build.table(clone)


def test_a_marker_of_no_paper_is_a_sentence(clone):
    put(clone, "tests/test_merge.py", TESTS.replace("S001", "S009"))
    run(clone, S009=("passed", ["test_one", "test_two"]))
    with pytest.raises(LabkitError, match=r"S009, which is no paper in labkit/papers\.tsv"):
        build.table(clone)


def test_a_marked_class_marks_its_tests(clone):
    put(
        clone,
        "tests/test_b.py",
        'import pytest\n@pytest.mark.paper("S003")\nclass TestB:\n def test_c(self): pass\n def made(self): pass\n',
    )
    assert scan.markers(clone)["S003"] == ["tests/test_b.py::TestB::test_c"]


@pytest.mark.parametrize(
    "text, sentence",
    [
        ('pytestmark = [pytest.mark.paper("S001")]', "no decorator"),
        ("@pytest.mark.paper(*IDS)\ndef test_x(): pass", "written out"),
    ],
)
def test_a_marker_that_cannot_be_read_is_a_sentence(clone, text, sentence):
    put(clone, "tests/test_b.py", f"import pytest\n{text}\n")
    with pytest.raises(LabkitError, match=sentence):
        scan.markers(clone)


def test_the_symbol_is_in_the_file_whose_own_tests_are_marked(clone):
    put(clone, "labkit/a.py", '"""Also names S001."""\nclass Merge: pass\n')
    assert scan.symbols(clone, scan.markers(clone))["S001"] == "labkit.merge.Merge"


@pytest.mark.parametrize(
    "code, symbol",
    [
        ('"""S001."""\nclass Unused: pass\ndef _hidden(x): return x\n', "labkit.merge"),
        ('"""S001."""\ndef score(x): return x\ndef made(): pass\n', "labkit.merge.score"),
        ('"""S001."""\ndef score(x):\n    return x\nclass Other: pass\n', "labkit.merge.score"),
        ('"""S001: Other()."""\ndef score(x):\n    return x\nclass Other: pass\n', "labkit.merge.Other"),
        ('"""No paper."""\nclass Merge:\n    def merge(self):\n        """S001."""\n', "labkit.merge.Merge"),
    ],
)
def test_of_a_file_the_symbol_is_what_its_tests_use_most(clone, code, symbol):
    """`score` is in two tests, `Other` in one: a class counts double, so that the longer wins, or the one called."""
    put(clone, "labkit/merge.py", code)
    assert scan.symbols(clone, scan.markers(clone))["S001"] == symbol


def test_the_command_counts(capsys, rows):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["family", *papers.STATUSES, "all"]
    n = Counter(row.status for row in rows)
    assert out.splitlines()[-1].split()[1:] == [str(n[status]) for status in papers.STATUSES] + [str(len(rows))]
    assert main(["count"]) == 0 and capsys.readouterr().out == out


def test_the_command_builds_and_checks(clone, monkeypatch, capsys):
    monkeypatch.setattr(build, "checkout", lambda: clone)
    assert main(["build", "--check"]) == 1 and build.BUILD in capsys.readouterr().err
    assert main(["build"]) == 0 and (clone / "data/papers.csv").is_file()
    assert main(["build", "--check"]) == 0
    (clone / "data/results/papers.json").write_text("{}")
    assert main(["build"]) == 1 and build.RUN in capsys.readouterr().err


def test_installed_without_a_clone_the_table_is_there_and_building_is_refused(tmp_path):
    shutil.copytree(ROOT / "labkit", tmp_path / "labkit", ignore=shutil.ignore_patterns("__pycache__"))
    put(tmp_path, "labkit/_data/papers.csv", (ROOT / "data/papers.csv").read_text(encoding="utf-8"))
    env = {k: v for k, v in os.environ.items() if k != "LABKIT_DATA"} | {"PYTHONPATH": str(tmp_path)}

    def python(*arguments):
        return subprocess.run([sys.executable, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True)

    said = python("-c", "from labkit import papers; print(papers.__file__, len(papers.rows()), papers.cite('S182'))")
    assert said.stdout == f"{tmp_path}/labkit/papers/__init__.py {len(papers.PAPERS)} {papers.cite('S182')}\n"
    refused = python("-m", "labkit.papers", "build")
    assert refused.returncode == 1 and "run it in a clone of labkit" in refused.stderr


def test_without_a_table_the_sentence_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path)
    with pytest.raises(LabkitError, match=BUILD):
        papers.rows()
