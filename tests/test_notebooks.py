"""Every lesson: its two halves agree, it was run from top to bottom, has the fixed skeleton, and takes parameters.

That a run as saved shows the same again, and within its budget, is the part of nbval (with `tests/lesson_budget.py`).
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest

from labkit import execute
from labkit.errors import LabkitError
from tests import lesson_budget
from tests.tools import tool

check = tool("check")
ROOT = Path(__file__).resolve().parents[1]
LESSONS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
SIZE = 600_000  # bytes of a saved lesson
LAST = ["Limits", "Exercises", "Papers", "Next"]
SETUP = 3  # the cell that loads the model: papermill puts its parameters between the two first cells


def test_there_is_a_lesson_and_every_source_has_been_run():
    sources = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.py"))
    assert sources == [path.stem for path in LESSONS] != []


@pytest.fixture(params=LESSONS, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook, tag: str) -> list:
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def written(output) -> str:
    """All the text of an output; pictures left out."""
    if output.output_type == "stream":
        return output.text
    return "\n".join(text for kind, text in output.get("data", {}).items() if kind.startswith("text/"))


# --- the saved files --------------------------------------------------------------------------------------------
def test_it_was_run_once_from_top_to_bottom_without_an_error(notebook):
    counts = [cell.execution_count for cell in code(notebook)]
    assert counts == list(range(1, len(counts) + 1)), "nbval skips cells that were not run; run make notebooks"
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]


def test_the_two_halves_are_the_same_lesson(path, notebook):
    def cells(book):
        return [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in book.cells]

    source = jupytext.read(path.with_suffix(".py"))
    assert cells(source) == cells(notebook), f"run: make notebooks ONLY={path.stem}"
    assert source.metadata["kernelspec"]["name"] == "python3", "papermill asks the source for its kernel"
    assert notebook.metadata["kernelspec"]["name"] == "python3"


def test_nothing_of_the_machine_or_of_a_widget_is_saved(path, notebook):
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) <= SIZE
    assert "widgets" not in notebook.metadata and "widget-view+json" not in text
    outputs = "\n".join(written(output) for cell in code(notebook) for output in cell.outputs)
    sources = "\n".join(cell.source for cell in notebook.cells)
    # before a path stands a space, a quote or a bracket: "a/b" is a share or a name
    absolute = re.compile(r"""(?:^|[\s"'(=])((?:/(?!/)[\w.-]+){2,}|[A-Za-z]:\\\w+)""", re.MULTILINE)
    assert not absolute.findall(outputs) and not absolute.findall(sources)


def test_parameters_are_literals(notebook):
    (cell,) = tagged(notebook, "parameters")
    values = {}
    for statement in ast.parse(cell.source).body:
        assert isinstance(statement, ast.Assign) and len(statement.targets) == 1
        values[ast.unparse(statement.targets[0])] = statement.value
        assert isinstance(statement.value, ast.Constant), "papermill replaces literals, not what follows from them"
    assert {"seed", "device", "fast"} <= set(values), "every lesson can be run with these"


def test_it_has_the_skeleton(notebook):
    first = notebook.cells[0].source
    assert re.match(r"# \d\d .+\n\n\*\*By the end ", first), "title, then one line that claims something"
    assert "*Needs:*" in first and "*Time:*" in first
    kinds = ["parameters" in cell.metadata.get("tags", []) for cell in notebook.cells]
    assert kinds.index(True) == 1, "the parameters come second, so that they are found"
    assert "labkit.setup(seed, device)" in code(notebook)[1].source
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert headings[-len(LAST) :] == LAST
    assert len(re.findall(r"\*\*Predict\.?\*\*", text, re.IGNORECASE)) >= 3, "a prediction before each reveal"
    exercises = text.count("\n### Exercise")
    assert exercises >= 2
    for part in ("*Easy", "Hint 1", "Hint 2", "Solution"):
        assert text.count(part) >= (1 if part.startswith("*") else exercises), part


def test_every_picture_comes_with_its_sentence(notebook):
    for cell in code(notebook):
        said = " ".join("\n".join(written(output) for output in cell.outputs).split())
        for output in cell.outputs:
            if any(kind.startswith("image/") for kind in output.get("data", {})):
                alts = [meta.get("alt", "") for meta in output.metadata.values() if isinstance(meta, dict)]
                assert any(alt.strip() and " ".join(alt.split()) in said for alt in alts), cell.source
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            assert not re.search(r"!\[\s*\]\(", cell.source), "a picture in the text needs words too"


def test_every_link_leads_somewhere(path, notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []


# --- a fresh run ------------------------------------------------------------------------------------------------
def refusal(path: Path, folder: Path, **values):
    """Runs a lesson with other parameters; what stopped it, or None."""
    try:
        execute.execute(path, folder / path.name, values, path.parent)
    except LabkitError as error:
        return error.__cause__
    return None


def test_it_runs_with_other_parameters_and_refuses_a_model_at_once_or_not_at_all(path, tmp_path):
    """shapes-vit-gap has no class token: a lesson about one says so where it loads the model."""
    other = {"fast": True, "seed": 1}
    if stopped := refusal(path, tmp_path, **other, model="shapes-vit-gap"):
        assert (stopped.exec_count, stopped.ename) == (SETUP, "LabkitError"), stopped
        assert "shapes-vit-gap" in stopped.evalue
        assert refusal(path, tmp_path, **other) is None


def busy(folder: Path, name: str = "busy") -> None:
    """A notebook of one cell that takes 0.3 s."""
    code = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end:\n    pass"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code, execution_count=1)])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, folder / f"{name}.ipynb")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the budget is read from /proc")
@pytest.mark.parametrize(
    ("limit", "value", "sentence"),
    [
        ("CELL_SECONDS", 0.1, "this cell takes"),
        ("SECONDS", 0.1, "with this cell the lesson takes 0."),
        ("MEMORY", 1e6, "MB; it has 1 MB"),
        (None, None, None),
    ],
)
def test_a_lesson_beyond_its_budget_fails(limit, value, sentence, pytester, monkeypatch):
    busy(pytester.path)
    if limit is not None:
        monkeypatch.setattr(lesson_budget, limit, value)
    result = pytester.runpytest_inprocess("-p", "tests.lesson_budget", "--nbval", "--nbval-current-env", "busy.ipynb")
    result.assert_outcomes(**({"passed": 1} if limit is None else {"failed": 1}))
    if sentence is not None:
        result.stdout.fnmatch_lines([f"*{sentence}*"])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the budget is read from /proc")
def test_with_two_workers_the_budget_holds_and_the_summary_is_one(pytester, monkeypatch):
    for name in ("busy", "busier"):
        busy(pytester.path, name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (pytester.path / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "sanitize.cfg", pytester.path / "tests")
    command = check.nbval(["busy.ipynb", "busier.ipynb"])[3:]  # without the words "python -m pytest"
    result = pytester.runpytest_subprocess(*command)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["busier: 0 s, * MB", "busy: 0 s, * MB"])


# --- the order of a run, tools/check.py -------------------------------------------------------------------------
def test_twice_runs_all_lessons_both_times_and_the_second_time_in_another_order():
    (_, first), (_, second) = check.twice(ROOT, seed=1)
    assert first != second and sorted(first) == sorted(second)
    assert [word for word in first if word.endswith(".ipynb")] == check.lessons(ROOT)
    assert second == check.twice(ROOT, seed=1)[1][1] != check.twice(ROOT, seed=2)[1][1]


def test_the_seed_of_the_order_is_printed_and_can_be_given(monkeypatch, capsys):
    monkeypatch.setattr(check, "run", lambda todo, root: len(todo))
    monkeypatch.setenv("LESSON_ORDER", "1234")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # so that it is put back
    assert check.main(["notebooks"]) == 2
    assert "PYTHONDONTWRITEBYTECODE" not in os.environ, "what one process compiled is there for the next"
    assert "the order of seed 1234; LESSON_ORDER=1234 repeats it" in capsys.readouterr().out
