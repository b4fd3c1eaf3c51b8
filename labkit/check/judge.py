"""From an answer to a verdict: not started, right, one of the mistakes a tutor knows, or a diagnosis."""

from __future__ import annotations

import ast
import inspect
import os
import textwrap
from typing import Any

from torch import Tensor

from labkit.check import progress
from labkit.check.attempt import Attempt, alike, attempt, same
from labkit.check.diagnose import diagnose
from labkit.check.exercise import Answer, Exercise
from labkit.check.limit import TooSlow, within
from labkit.check.verdict import NOT_STARTED, NOT_YET, RIGHT, NotYet, Verdict
from labkit.notebook import text

SECONDS = 5.0  # for all cases of an answer; the right one takes a few milliseconds
Details = tuple[tuple[str, str], ...]


def judge(exercise: Exercise, fn: Any) -> Verdict:
    """The verdict on `fn`, which is noted in the learner's progress; raised, unless right, under LABKIT_STRICT=1."""
    verdict = examine(exercise, fn)
    if verdict.word != NOT_STARTED:
        progress.note_answer(exercise.name, exercise.lesson, right=bool(verdict))
    if not verdict and os.environ.get("LABKIT_STRICT", "0") not in ("", "0"):
        raise NotYet(str(verdict))
    return verdict


def examine(exercise: Exercise, fn: Any) -> Verdict:
    if problem := not_callable_so(exercise, fn):
        return wrong(exercise, problem)
    if is_empty(fn):
        return not_started(exercise)
    try:
        got = within(SECONDS, lambda: attempts(exercise, fn))
    except TooSlow:
        return wrong(exercise, f"It was stopped after {SECONDS:.0f} seconds: does a loop never end?")
    wanted = attempts(exercise, exercise.reference)
    if all(fine(exercise, w, g) for w, g in zip(wanted, got, strict=True)):
        return Verdict(exercise.name, RIGHT, exercise.praise)
    if agrees(exercise, exercise.placeholder, got) and not longer(fn, exercise.placeholder):
        return not_started(exercise)
    failing = [i for i, (w, g) in enumerate(zip(wanted, got, strict=True)) if not fine(exercise, w, g)]
    at = min(failing, key=lambda i: got[i].size)
    for mistake in exercise.mistakes:
        if agrees(exercise, mistake.answer, got):
            return wrong(exercise, mistake.says, beside(exercise, wanted[at], got[at]))
    broken = next((g for g in got if g.error), None)
    if broken is not None:
        return wrong(exercise, "It raises an error.", raised(exercise, broken))
    changed = next((g for g in got if g.changed), None)
    if changed is not None and all(
        same(w.result, g.result, exercise.tolerance) for w, g in zip(wanted, got, strict=True)
    ):
        return wrong(
            exercise, f"The result is right, but it changes its input {' and '.join(changed.changed)}: work on a copy."
        )
    at, says = diagnose(exercise, wanted, got)
    return wrong(exercise, says, beside(exercise, wanted[at], got[at]))


def attempts(exercise: Exercise, fn: Answer) -> list[Attempt]:
    return [attempt(exercise, fn, arguments) for arguments in exercise.arguments()]


def fine(exercise: Exercise, wanted: Attempt, got: Attempt) -> bool:
    return got.error is None and not got.changed and same(wanted.result, got.result, exercise.tolerance)


def agrees(exercise: Exercise, other: Answer, got: list[Attempt]) -> bool:
    """`other` does on every case what was got."""
    cases = zip(exercise.arguments(), got, strict=True)
    return all(alike(attempt(exercise, other, arguments), g, exercise.tolerance) for arguments, g in cases)


def not_callable_so(exercise: Exercise, fn: Any) -> str:
    if not callable(fn):
        return f"It needs the function itself, as in labkit.check.{exercise.name}({exercise.name}), without calling it."
    try:
        inspect.signature(fn).bind(*exercise.parameters)
    except TypeError:
        yours = ", ".join(inspect.signature(fn).parameters) or "nothing"
        return f"It should take ({', '.join(exercise.parameters)}); yours takes ({yours})."
    except ValueError:  # a builtin without a signature: calling it will tell
        return ""
    return ""


def statements(fn: Any) -> list[ast.stmt] | None:
    """What the function does, its docstring left out; None where its source is not at hand."""
    try:
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(fn))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    if not isinstance(node, ast.FunctionDef):
        return None
    return node.body[1:] if ast.get_docstring(node) is not None else node.body


def longer(fn: Any, placeholder: Answer) -> bool:
    """Somebody has worked on it, even if nothing comes of it."""
    return len(statements(fn) or []) > len(statements(placeholder) or [])


def is_empty(fn: Any) -> bool:
    """Nothing but a docstring, `pass`, `...` or `raise NotImplementedError`."""
    lines = statements(fn)
    return lines is not None and all(
        isinstance(line, ast.Pass)
        or (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
        or (isinstance(line, ast.Raise) and "NotImplementedError" in ast.unparse(line))
        for line in lines
    )


def not_started(exercise: Exercise) -> Verdict:
    return Verdict(exercise.name, NOT_STARTED)


def wrong(exercise: Exercise, says: str, details: Details = ()) -> Verdict:
    more = f"Hint: labkit.check.{exercise.name}.hint(1). How labkit does it: {exercise.source}."
    return Verdict(exercise.name, NOT_YET, says, details, more)


def beside(exercise: Exercise, wanted: Attempt, got: Attempt) -> Details:
    """The smallest case that fails: what went in, what should come out, what came."""
    if got.error is not None:
        return raised(exercise, got)
    return (*inputs(exercise, got), ("expected", short(wanted.result)), ("got", short(got.result)))


def raised(exercise: Exercise, got: Attempt) -> Details:
    lines = str(got.error).strip().splitlines() or [""]
    error = f"{type(got.error).__name__}: {lines[0][:200]}"
    place = (("where", got.where),) if got.where else ()
    return (*inputs(exercise, got), *place, ("error", error))


def inputs(exercise: Exercise, got: Attempt) -> Details:
    names = zip(exercise.parameters, got.arguments, strict=False)
    return (("case", ", ".join(f"{name} {brief(value)}" for name, value in names)),)


def brief(value: Any) -> str:
    """A value in few words: small ones as they are, tensors by their shape."""
    if isinstance(value, Tensor):
        return short(value) if value.numel() <= 6 and value.dim() <= 1 else str(tuple(value.shape))
    if isinstance(value, list | tuple) and any(isinstance(v, Tensor) for v in value):
        return f"({', '.join(brief(v) for v in value)})"
    return text(value) if isinstance(value, float) else repr(value)[:60] if not callable(value) else "a function"


def short(value: Any) -> str:
    """At most a corner of four by six numbers, never a wall of them."""
    if isinstance(value, tuple | list) and len(value) <= 4 and any(isinstance(v, Tensor | float) for v in value):
        return "\n".join(short(v) for v in value)
    if not isinstance(value, Tensor):
        return text(value) if isinstance(value, float) else repr(value)[:120]
    if value.is_meta or value.is_complex() or value.is_sparse:
        return f"{tuple(value.shape)}, {value.dtype}".replace("torch.", "")
    shown, where = value.detach(), ""
    while shown.dim() > 2:
        where += "0, "
        shown = shown[0]
    cut = shown[tuple(slice(0, n) for n in ((6,), (4, 6))[shown.dim() - 1])] if shown.dim() else shown
    where = f"  (of {tuple(value.shape)}: [{where}:4, :6])" if value.numel() != cut.numel() else ""
    return text(cut) + where
