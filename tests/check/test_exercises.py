"""Every exercise: its reference passes, each mistake fails with its own sentence, and the lesson asks the same."""

from __future__ import annotations

import ast
import html
import inspect
import random
import re
import textwrap

import jupytext
import numpy as np
import pytest
import torch
from torch import nn

from labkit import check, paths
from labkit.check.attempt import attempt
from labkit.check.judge import examine, raised
from labkit.check.verdict import NOT_STARTED, NOT_YET, RIGHT

LESSONS = sorted(paths.NOTEBOOKS.glob("[0-9]*.py"))


@pytest.fixture(params=check.NAMES)
def task(request):
    return check.find(request.param)


def test_there_are_enough_of_them():
    tasks = [check.find(name) for name in check.NAMES]
    assert len([task for task in tasks if task.lesson >= "01"]) >= 36
    assert sum(len(task.mistakes) for task in tasks) >= 108


def test_it_is_complete(task):
    assert task.name == task.__class__.__name__.lower() or task.name in check.NAMES
    assert (paths.NOTEBOOKS / f"{task.lesson}.py").is_file()
    assert task.prompt and len(task.mistakes) >= 3
    assert all(hint.endswith((".", "`", "!")) for hint in task.hints)
    sentences = [mistake.says for mistake in task.mistakes]
    assert len(set(sentences)) == len(sentences)
    assert all(20 < len(says) <= 240 and says.endswith(".") for says in sentences)
    assert len(task.arguments()) >= 2


def test_the_reference_is_right(task):
    verdict = examine(task, task.reference)
    assert verdict.word == RIGHT, verdict


def test_the_placeholder_is_not_started(task):
    assert examine(task, task.placeholder).word == NOT_STARTED


def test_each_mistake_is_told_with_its_own_sentence(task):
    for mistake in task.mistakes:
        verdict = examine(task, mistake.answer)
        assert (verdict.word, verdict.says) == (NOT_YET, mistake.says), mistake.answer.__name__
        assert len(repr(verdict)) < 1500 and len(repr(verdict).splitlines()) < 25


ODD = [
    *(None, True, 3, -1.5, float("nan"), "text", b"bytes", [], (), {}, {"a": 1}, [None], object(), print, range(3), 1j),
    *(torch.zeros(()), torch.zeros(0), torch.arange(5), torch.eye(4).bool(), torch.rand(1, 1, 1, 1)),
    *(torch.ones(2, 3) * torch.nan, torch.zeros(2, 0, 3), torch.eye(3).to_sparse(), torch.zeros(2, device="meta")),
    *(torch.zeros(3, dtype=torch.complex64), np.zeros(3), np.float32(1), {1: torch.ones(2)}, nn.Linear(2, 2)),
    *((torch.zeros(2), None), [torch.zeros(3), torch.zeros(4)]),
]


def test_no_answer_whatever_it_returns_breaks_the_check(task):
    for odd in random.Random(task.name).sample(ODD, 12):  # over all exercises each comes some twenty times
        verdict = examine(task, lambda *arguments, odd=odd: odd)
        assert verdict.word in (NOT_YET, NOT_STARTED) and len(repr(verdict)) < 1500, odd


def test_an_answer_of_the_right_shape_is_diagnosed(task):
    """Right results changed in ways that nobody foresaw: whatever is said, it is said."""
    changes = (
        lambda t: t + 1e6,
        lambda t: t * 0,
        lambda t: -t,
        lambda t: t.flip(0) if t.dim() else t,
        lambda t: t[..., None],
    )
    for change in changes:

        def answer(*arguments, change=change):
            return altered(task.reference(*arguments), change)

        verdict = examine(task, answer)
        assert verdict.word in (RIGHT, NOT_YET, NOT_STARTED) and (
            verdict or verdict.says or verdict.word == NOT_STARTED
        )


def altered(value, change):
    if isinstance(value, list | tuple):
        return type(value)(altered(part, change) for part in value)
    if isinstance(value, torch.Tensor) and value.dtype != torch.bool:
        return change(value)
    return value


def test_the_cases_are_the_same_every_time_and_small(task):
    first, second = ([attempt(task, task.reference, a) for a in task.arguments()] for _ in range(2))
    assert repr([raised(task, a) for a in first]) == repr([raised(task, a) for a in second])
    assert sum(a.size for a in first) < 200_000


# --- the lesson beside it -------------------------------------------------------------------------------------------
def exercises_of(path) -> dict[str, tuple[str, str]]:
    """From the name in `labkit.check.name(...)` to the text of its exercise and the code of its stub."""
    cells = jupytext.read(path).cells
    found = {}
    for i, cell in enumerate(cells):
        if cell.cell_type == "code" and (
            named := re.search(r"^labkit\.check\.(\w+)\(\1\)$", cell.source, re.MULTILINE)
        ):
            stub = next(c.source for c in reversed(cells[: i + 1]) if f"def {named[1]}(" in c.source)
            words = "\n".join(c.source for c in cells[max(0, i - 3) : i] if c.cell_type == "markdown")
            found[named[1]] = (words[words.rindex("### Exercise") :], stub)
    return found


ASKED = {path.stem: exercises_of(path) for path in LESSONS}


def plain(text: str) -> str:
    """Without marks, so that HTML in a folded hint and the same hint in a file read alike."""
    text = html.unescape(re.sub(r"</?(code|i|em|b|sub|sup)>", "", text))
    return " ".join(re.sub(r"[`*]", "", text).split())


def test_its_lesson_asks_it_with_the_same_words(task):
    assert task.name in ASKED[task.lesson], (
        f"{task.lesson} does not end a cell with labkit.check.{task.name}({task.name})"
    )
    words, stub = ASKED[task.lesson][task.name]
    hints = re.findall(r"<summary>Hint [12]</summary>(.*?)</details>", words, re.DOTALL)
    assert [plain(hint) for hint in hints] == [plain(hint) for hint in task.hints]
    assert plain(task.prompt) in plain(words)
    mine = ast.parse(textwrap.dedent(inspect.getsource(task.placeholder))).body[0]
    yours = next(n for n in ast.parse(stub).body if isinstance(n, ast.FunctionDef) and n.name == task.name)
    assert ast.unparse(yours.args) == ast.unparse(mine.args)
    assert ast.unparse(yours.body[-1]) == ast.unparse(mine.body[-1]), "the lesson's stub is another one"


def test_the_solution_of_the_lesson_is_right(task):
    words, _ = ASKED[task.lesson][task.name]
    solution = re.search(r"<summary>Solution</summary>\s*```python\n(.*?)```", words, re.DOTALL)[1]
    cells = jupytext.read(paths.NOTEBOOKS / f"{task.lesson}.py").cells
    lines = [n for c in cells if c.cell_type == "code" for n in ast.parse(c.source).body]
    imports = [ast.unparse(line) for line in lines if isinstance(line, ast.Import | ast.ImportFrom)]
    names: dict = {}
    exec("\n".join(imports) + "\n" + textwrap.dedent(solution), names)
    verdict = examine(task, names[task.name])
    assert verdict.word == RIGHT, verdict


@pytest.mark.parametrize("lesson", ASKED)
def test_every_exercise_of_a_lesson_is_known(lesson):
    assert set(ASKED[lesson]) == {name for name in check.NAMES if check.find(name).lesson == lesson}
