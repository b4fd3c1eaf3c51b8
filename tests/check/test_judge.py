"""The judge on answers that nobody foresaw: every kind of wrong gets its own sentence, and none stops the lesson."""

from __future__ import annotations

import contextlib
import threading
import time

import numpy as np
import pytest
import torch
from einops import rearrange

from labkit import check
from labkit.check import judge as judging
from labkit.check import progress
from labkit.check.exercise import Exercise, normal
from labkit.check.judge import examine
from labkit.check.limit import TooSlow, within
from labkit.check.verdict import NOT_STARTED, NOT_YET, RIGHT, NotYet
from labkit.errors import LabkitError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    monkeypatch.delenv("LABKIT_STRICT", raising=False)
    return tmp_path


def raised(x):
    """x plus one, over (batch, n, d)."""
    return x + 1


def exercise(reference=raised, axes=("batch", "n", "d"), cases=None, **more) -> Exercise:
    task = Exercise(lesson="01_attention", reference=reference, hints=("One.", "Two."), axes=axes, **more)

    @task.stub
    def raise_it(x):
        """Write `raise_it(x)`."""
        return torch.zeros_like(x)

    @task.cases
    def few(dice):
        yield from (cases(dice) if cases else ((normal(dice, b, n, d),) for b, n, d in ((1, 2, 3), (2, 3, 4))))

    @task.mistake("You took one away.")
    def minus(x):
        return x - 1

    @task.mistake("You sorted first, which fails on purpose.")
    def fails(x):
        raise KeyError("sorted")

    return task


def says(answer, **how) -> str:
    verdict = examine(exercise(**how), answer)
    assert verdict.word == NOT_YET and not verdict
    return verdict.says


def test_right_is_right_and_true():
    verdict = examine(exercise(praise="Well done."), lambda x: 1 + x)
    assert verdict and verdict.word == RIGHT and verdict.says == "Well done."
    assert repr(verdict) == "✓ raise_it: right.\n  Well done."


def test_double_precision_is_right_too():
    assert examine(exercise(), lambda x: x.double() + 1)


@pytest.mark.parametrize("details", [False, True])
def test_a_known_mistake_has_its_sentence_and_the_smallest_case(details):
    verdict = examine(exercise(), lambda x: x - 1)
    assert verdict.says == "You took one away."
    if details:
        assert dict(verdict.details)["case"] == "x (1, 2, 3)"
        assert "labkit.check.raise_it.hint(1)" in verdict.more and verdict.more.endswith("test_judge.raised.")


def test_a_mistake_may_be_an_error():
    def answer(x):
        return {}[x.shape]

    assert says(answer) == "You sorted first, which fails on purpose."


# --- not started ----------------------------------------------------------------------------------------------------
def only_a_docstring(x):
    """Nothing."""


def only_pass(x):
    pass


def not_implemented(x):
    raise NotImplementedError


def as_given(x):
    return x * 0


@pytest.mark.parametrize("answer", [only_a_docstring, only_pass, not_implemented, as_given])
def test_a_placeholder_is_not_started(answer):
    verdict = examine(exercise(), answer)
    assert verdict.word == NOT_STARTED and repr(verdict) == "○ raise_it: not started yet."


def test_work_that_comes_out_as_the_placeholder_is_told():
    def all_zero(x):
        y = x + 1
        return y - y

    assert says(all_zero) == "It is 0 everywhere."


# --- the learner's own errors ---------------------------------------------------------------------------------------
def test_an_error_is_shown_at_the_learners_line():
    def deep(x):
        y = x + 1
        return rearrange(y, "b n d -> n z")

    verdict = examine(exercise(), deep)
    shown = dict(verdict.details)
    assert verdict.says == "It raises an error."
    assert shown["where"] == 'line 3: return rearrange(y, "b n d -> n z")'
    assert shown["error"].startswith("EinopsError: ") and "\n" not in shown["error"]


def test_an_error_in_a_helper_is_shown_there():
    def helper(x):
        return x @ x

    def outer(x):
        return helper(x)

    assert dict(examine(exercise(), outer).details)["where"] == "in helper: return x @ x"


def test_an_error_in_later_cases_alone_is_shown():
    def answer(x):
        return x + 1 if len(x) == 1 else x.reshape(7)

    verdict = examine(exercise(), answer)
    assert dict(verdict.details)["case"] == "x (2, 3, 4)" and "reshape(7)" in dict(verdict.details)["where"]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (3, "It needs the function itself, as in labkit.check.raise_it(raise_it), without calling it."),
        (lambda: 1, "It should take (x); yours takes (nothing)."),
        (lambda a, b: 1, "It should take (x); yours takes (a, b)."),
    ],
)
def test_what_is_no_function_of_these_arguments_is_told(answer, problem):
    assert says(answer) == problem


def test_the_stop_button_still_stops():
    def stopped(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        examine(exercise(), stopped)


# --- too slow -------------------------------------------------------------------------------------------------------
def endless(x):
    while True:
        pass


def asleep(x):
    time.sleep(60)


def catches_everything(x):
    while True:
        with contextlib.suppress(Exception):
            time.sleep(0.01)


@pytest.mark.parametrize("answer", [endless, asleep, catches_everything])
def test_a_slow_answer_is_stopped_with_a_sentence(answer, monkeypatch):
    monkeypatch.setattr(judging, "SECONDS", 0.2)
    start = time.monotonic()
    assert says(answer).startswith("It was stopped after")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("answer", [endless, catches_everything])
def test_in_another_thread_as_well(answer):
    seen = []

    def work():
        try:
            within(0.2, lambda: answer(0))
        except TooSlow:
            seen.append("stopped")
        seen.append(within(5, lambda: "goes on"))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(10)
    assert seen == ["stopped", "goes on"]


def test_a_quick_answer_leaves_no_alarm_behind():
    assert within(0.05, lambda: 1) == 1
    time.sleep(0.1)


# --- a diagnosis ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda x: None, "It returns nothing: is there a `return` in every branch?"),
        (lambda x: (x + 1).numpy(), "It returns a numpy array; expected is a tensor."),
        (lambda x: [x + 1], "It returns a list; expected is a tensor."),
        (lambda x: (x + 1).mean(dim=1), "The axis n is gone: was it summed away?"),
        (lambda x: (x + 1)[None], "An axis of length 1 is too many."),
        (lambda x: (x + 1).flatten(), "The shape should be (2 batch, 3 n, 4 d); yours is (24,)."),
        (lambda x: (x + 1).transpose(1, 2), "The axes are there, in another order."),
        (lambda x: (x + 1).round().long(), "It holds whole numbers; expected are decimal numbers."),
        (lambda x: torch.fft.fft(x), "It holds complex numbers; expected are decimal numbers."),
        (lambda x: (x + 1).to("meta"), "It is on meta, its inputs are on cpu"),
        (lambda x: (x + 1) / 0 * 0, "6 of its 6 numbers are NaN"),
        (lambda x: (x + 1).abs() / 0, "6 of its 6 numbers are infinite"),
        (lambda x: (x + 1).flip(2), "It is right, but reversed along d."),
        (lambda x: (x + 1)[:, :, [1, 0, *range(2, x.shape[2])]], "The entries along d are right, in another order."),
        (lambda x: -(x + 1), "The sign is wrong."),
        (lambda x: 4 * (x + 1), "It is right up to a factor: multiplied by 0.25 it would be right."),
        (lambda x: x + 3, "It is right up to a constant: -2 is missing everywhere."),
        (lambda x: x * 0 + torch.eye(4)[: x.shape[1], : x.shape[2]] + x, "numbers are wrong, the first at [0, 0, 1]"),
        (lambda x: torch.cat([x[:1] + 1, x[1:] * 3]), "It is right for a batch of one, wrong for more"),
    ],
)
def test_what_nobody_named_is_diagnosed(answer, expected):
    assert expected in says(answer)


def test_square_matrices_that_are_transposed_are_told():
    def cases(dice):
        yield (normal(dice, 2, 3, 3),)

    assert says(lambda x: (x + 1).transpose(1, 2), cases=cases) == (
        "The numbers are right, with axes exchanged: n and d."
    )


def test_first_entry_alone():
    def cases(dice):
        yield (normal(dice, 3, 2, 2),)

    assert "Along batch the first entry is right" in says(lambda x: x[:1] + 1 + 0 * x, cases=cases)


def test_a_row_of_numbers():
    def cases(dice):
        yield (normal(dice, 4),)

    how = {"reference": lambda x: x + 1, "axes": ("n",), "cases": cases}
    assert says(lambda x: (x + 1)[[1, 0, 2, 3]], **how) == "The entries along n are right, in another order."
    assert says(lambda x: x * x, **how) == "The shape is right, the numbers are not."


def test_an_axis_that_was_summed_away_is_named_even_where_it_has_length_one():
    def cases(dice):
        yield from ((normal(dice, b, 2),) for b in (1, 3))

    how = {"reference": lambda x: x + 1, "axes": ("batch", "d"), "cases": cases}
    assert "The axis batch is gone: was it summed away?" in says(lambda x: (x + 1).mean(dim=0), **how)


def test_rows_and_columns_exchanged():
    def rows(x, grid):
        return rearrange(x, "(h w) -> h w", h=grid[0])

    task = Exercise(lesson="02_images_to_tokens", reference=rows, hints=("a.", "b."), axes=("h", "w"))

    @task.stub
    def unfold(x, grid):
        return torch.zeros(grid)

    @task.cases
    def cases(dice):
        for h, w in ((2, 2), (2, 3), (3, 3)):
            yield normal(dice, h * w), (h, w)

    verdict = examine(task, lambda x, grid: rearrange(x, "(h w) -> h w", h=grid[1]))
    assert "right on square grids alone" in verdict.says


def test_an_input_that_is_changed():
    def in_place(x):
        x += 1
        return x

    assert says(in_place) == "The result is right, but it changes its input x: work on a copy."


def test_numbers_and_several_values():
    def reference(x):
        return x.sum().item(), x.numel()

    how = {"reference": reference, "parts": ("sum", "count")}
    assert says(lambda x: (-x.sum().item(), x.numel()), **how) == "Look at the sum. The sign is wrong."
    assert says(lambda x: reference(x)[::-1], **how) == "The values are right and come in the wrong order."
    assert says(lambda x: (1, 2, 3), **how) == "It returns 3 values; expected are 2."
    assert (
        says(lambda x: (x.sum(), 2 * x.numel()), **how) == "Look at the count. It is 2 times as large as it should be."
    )
    assert examine(exercise(**how), lambda x: (x.sum(), np.int64(x.numel())))


def test_a_large_result_is_shown_by_its_corner():
    def cases(dice):
        yield (normal(dice, 2, 50, 60),)

    verdict = examine(exercise(cases=cases), lambda x: x**2)
    got = dict(verdict.details)["got"]
    assert len(got.splitlines()) <= 4 and "(of (2, 50, 60): [0, :4, :6])" in got


# --- what it leaves behind ------------------------------------------------------------------------------------------
def test_the_dice_of_torch_stand_as_before():
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    examine(exercise(), lambda x: x + torch.rand(()))
    assert torch.rand(2).equal(wanted)


def test_strict_raises_what_a_lesson_shows(monkeypatch):
    task = exercise()
    assert not task(lambda x: x - 1) and task(raised)
    monkeypatch.setenv("LABKIT_STRICT", "1")
    assert task(raised)
    for answer in (lambda x: x - 1, as_given):
        with pytest.raises(NotYet, match=r"raise_it: not"):
            task(answer)


def test_progress_counts_tries_and_keeps_what_was_right():
    task = exercise()
    for answer in (as_given, lambda x: x - 1, raised, lambda x: x):
        task(answer)
    (entry,) = progress.progress().entries
    assert (entry.name, entry.lesson, entry.tried, entry.right) == ("raise_it", "01", 3, True)


def test_the_page_is_escaped_and_says_what_the_text_says():
    page = examine(exercise(), lambda x: x - 1)._repr_html_()
    assert "raise_it: not yet." in page and "You took one away." in page and 'role="status"' in page
    verdict = examine(exercise(reference=lambda x: "<script>"), lambda x: "<b>")
    assert "<script>" not in verdict._repr_html_() and "&lt;script&gt;" in verdict._repr_html_()


def test_names_and_hints():
    assert check.attention.hint(1).startswith("`k.transpose")
    with pytest.raises(LabkitError, match="hint 1 and hint 2; there is no hint 3"):
        check.attention.hint(3)
    with pytest.raises(AttributeError, match=r'There is no exercise "atention". Did you mean "attention"'):
        _ = check.atention
    assert "attention" in dir(check) and "Write attention" in repr(check.attention).replace("`", "")
