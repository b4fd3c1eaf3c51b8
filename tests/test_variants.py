"""The learner's, the clean and the solved notebook of each lesson: made from its source, the solutions right."""

from __future__ import annotations

import re
import time

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

from labkit import execute, paths
from tests.tools import tool

SOURCES = sorted(paths.NOTEBOOKS.glob("[0-9]*.py"))
QUICK = ("01_attention",)
variants = tool("variants")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`made(variant, lesson)`, all of them made at once; `made.seconds` is what that took."""
    out, start = tmp_path_factory.mktemp("variants"), time.process_time()
    for source in SOURCES:
        variants.make(source, out)

    def read(variant: str, lesson: str):
        notebook = nbformat.read(out / variant / f"{lesson}.ipynb", as_version=4)
        nbformat.validate(notebook)
        return notebook

    read.seconds = time.process_time() - start
    return read


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text(notebook) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def test_making_all_of_them_is_quick(made):
    assert made.seconds < 1.5 * len(SOURCES)


@pytest.mark.parametrize("lesson", [source.stem for source in SOURCES])
def test_a_learner_finds_all_but_the_outputs_and_the_solutions(made, lesson):
    notebook, source = made("learner", lesson), jupytext.read(paths.NOTEBOOKS / f"{lesson}.py")
    assert [cell.source for cell in code(notebook)] == [cell.source for cell in code(source)]
    assert not any(cell.outputs or cell.execution_count for cell in code(notebook))
    words, before = text(notebook), text(source)
    assert "Solution" not in words and "```python" not in words.partition("## Exercises")[2]
    for part in ("Hint 1<", "Hint 2<", "### Exercise"):
        assert words.count(part) == before.count(part) >= 2
    assert (
        words.count("<details>") == words.count("</details>") == before.count("<details>") - before.count("Solution<")
    )
    for link in re.findall(r"\]\(((?!https?:)[^)#]+)\)", words):  # as seen from build/variants/learner
        assert (paths.ROOT / "build" / "variants" / "learner" / link).resolve().is_file() or link in {
            f"{other.stem}.ipynb" for other in SOURCES
        }


@pytest.mark.parametrize("lesson", [source.stem for source in SOURCES])
def test_the_clean_one_has_the_code_and_the_headings_and_no_prose(made, lesson):
    notebook = made("clean", lesson)
    lines = [line for line in text(notebook).splitlines() if line]
    assert lines and all(re.match(r"#{1,4} \S", line) for line in lines)
    assert {"## Limits", "## Exercises", "## Papers"} <= set(lines)
    assert [cell.source for cell in code(notebook)] == [cell.source for cell in code(made("learner", lesson))]


@pytest.mark.parametrize("lesson", [source.stem for source in SOURCES])
def test_every_stub_gave_way_to_its_solution(made, lesson):
    stubs, solved = (
        [cell.source for cell in code(made(variant, lesson)) if "exercise" in cell.metadata.get("tags", [])]
        for variant in ("learner", "solution")
    )
    assert len(stubs) == len(solved) >= 2
    for stub, answer in zip(stubs, solved, strict=True):
        assert "# your " in stub and "# your " not in answer
        compile(answer, lesson, "exec")


@pytest.mark.parametrize("lesson", QUICK)
def test_every_check_of_a_solved_lesson_says_right(made, lesson, monkeypatch):
    monkeypatch.setenv("LABKIT_STRICT", "1")
    notebook = made("solution", lesson)
    parameters = next(cell for cell in code(notebook) if "parameters" in cell.metadata.get("tags", []))
    parameters.source += "\nfast = True"
    where = {"metadata": {"path": paths.NOTEBOOKS}}
    with execute.private() as settings:
        NotebookClient(notebook, timeout=180, kernel_name="python3", resources=where, config=settings).execute()
    said = str([cell.outputs for cell in code(notebook)])
    checked = re.findall(r"^labkit\.check\.(\w+)\(", "\n".join(cell.source for cell in code(notebook)), re.MULTILINE)
    assert len(checked) >= 2
    assert [name for name in checked if f"✓ {name}: right" not in said] == []


# --- the parts ------------------------------------------------------------------------------------------------------
def test_what_stands_around_a_function_of_the_stub_stays():
    stub = (
        "import math\n\n\n@torch.no_grad()\ndef half(x):\n    return 0  # your code here\n\n\nlabkit.check.half(half)"
    )
    answer = "def half(x):\n    return x / 2"
    assert variants.solved(stub, answer) == f"import math\n\n\n{answer}\n\n\nlabkit.check.half(half)"


def test_two_functions_of_a_stub_are_both_replaced():
    stub = "def one():\n    return 0\n\n\ndef two():\n    return 0\n\n\none(), two()"
    answer = "def one():\n    return 1\n\n\ndef two():\n    return 2\n"
    assert variants.solved(stub, answer).split() == [*answer.split(), "one(),", "two()"]


@pytest.mark.parametrize("answer", ["def other():\n    return 1", "1 + 1"])
def test_a_solution_of_something_else_is_refused(answer):
    with pytest.raises(SystemExit, match="nothing of this stub"):
        variants.solved("def one():\n    return 0", answer)


@pytest.mark.parametrize("solutions", [0, 2])
def test_a_stub_without_its_solution_is_refused(solutions):
    block = "<details><summary>Solution</summary>\n\n```python\ndef one(): return 1\n```\n\n</details>\n"
    stub = nbformat.v4.new_code_cell("def one(): return 0", metadata={"tags": ["exercise"]})
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(block * solutions), stub])
    with pytest.raises(SystemExit, match=f"has {solutions}:"):
        variants.solution(notebook)
