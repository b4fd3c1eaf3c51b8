"""An answer that is wrong in a way nobody named: what can be said of it by looking at it beside the right one.

Each function knows one kind of error and returns its sentence, or nothing; the first that speaks is heard.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from labkit.check.attempt import Attempt, as_number, kind, same
from labkit.check.exercise import Exercise

TOLERANCE = 1e-3


def diagnose(exercise: Exercise, wanted: list[Attempt], got: list[Attempt]) -> tuple[int, str]:
    """The smallest case that fails, and the most telling sentence about it."""
    right = [same(w.result, g.result, exercise.tolerance) for w, g in zip(wanted, got, strict=True)]
    failing = clearest([i for i, fine in enumerate(right) if not fine], wanted, got)
    says = which_cases(wanted, right) or about(exercise, wanted[failing].result, got[failing].result)
    return failing, says


def clearest(failing: list[int], wanted: list[Attempt], got: list[Attempt]) -> int:
    """The smallest case; where the shape is wrong, the smallest in which no axis has length 1 and could pass unseen."""
    ordered = sorted(failing, key=lambda i: wanted[i].size)

    def tells(i: int) -> bool:
        a, b = wanted[i].result, got[i].result
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape != b.shape and min(a.shape, default=0) > 1

    return next((i for i in ordered if tells(i)), ordered[0])


def which_cases(wanted: list[Attempt], right: list[bool]) -> str:
    """A pattern in which cases are right says more than any number in them."""
    if not any(right):
        return ""
    if splits([batch_of(a) for a in wanted], right, lambda size: size == 1):
        return "It is right for a batch of one, wrong for more: something is taken over the batch, or from its first."
    if splits([grid_of(a) for a in wanted], right, lambda grid: grid[0] == grid[1]):
        return "It is right on square grids alone: somewhere rows and columns are exchanged (h is rows, w is columns)."
    return ""


def splits(values: Sequence[Any], right: list[bool], test: Callable[[Any], bool]) -> bool:
    """Right exactly where `test` holds, and both are there."""
    known = [value is not None for value in values]
    return all(known) and [test(value) for value in values] == right and not all(right)


def batch_of(case: Attempt) -> int | None:
    sizes = {a.shape[0] for a in case.arguments if isinstance(a, Tensor) and a.dim() >= 3}
    return sizes.pop() if len(sizes) == 1 else None


def grid_of(case: Attempt) -> tuple[int, int] | None:
    pairs = [a for a in case.arguments if isinstance(a, tuple) and len(a) == 2 and all(isinstance(n, int) for n in a)]
    return pairs[0] if len(pairs) == 1 else None


def about(exercise: Exercise, wanted: Any, got: Any) -> str:
    """The sentence about one result."""
    if got is None:
        return "It returns nothing: is there a `return` in every branch?"
    if isinstance(wanted, list | tuple):
        return of_several(exercise, wanted, got)
    if isinstance(wanted, Tensor):
        return of_tensor(exercise, wanted, got)
    if isinstance(wanted, float | int) and not isinstance(wanted, bool):
        return of_number(float(wanted), got)
    if type(got) is not type(wanted):
        return f"It returns {named(got)}; expected is {named(wanted)}."
    return "It returns something else than expected."


def of_several(exercise: Exercise, wanted: Sequence[Any], got: Any) -> str:
    if not isinstance(got, list | tuple):
        return f"It returns {named(got)}; expected are {len(wanted)} values."
    if len(got) != len(wanted):
        return f"It returns {len(got)} values; expected are {len(wanted)}."
    wrong = next(i for i, (a, b) in enumerate(zip(wanted, got, strict=True)) if not same(a, b, exercise.tolerance))
    name = exercise.parts[wrong] if wrong < len(exercise.parts) else f"value {wrong}"
    if all(same(a, b, exercise.tolerance) for a, b in zip(wanted, reversed(got), strict=True)):
        return "The values are right and come in the wrong order."
    return f"Look at the {name}. " + about(exercise, wanted[wrong], got[wrong])


def of_number(wanted: float, got: Any) -> str:
    number = as_number(got)
    if number is None:
        return f"It returns {named(got)}; expected is one number."
    if number == -wanted:
        return "The sign is wrong."
    if number != number:
        return "It is not a number (NaN): is something divided by zero?"
    if wanted and number and abs(number / wanted - round(number / wanted)) < TOLERANCE and abs(number) > abs(wanted):
        return f"It is {round(number / wanted)} times as large as it should be."
    return f"It is {'larger' if number > wanted else 'smaller'} than it should be."


def of_tensor(exercise: Exercise, wanted: Tensor, got: Any) -> str:
    if not isinstance(got, Tensor) or got.is_sparse:
        return f"It returns {named(got)}; expected is a tensor."
    for look in (shape, dtype, device, not_finite, axes_exchanged, order, sign_scale_offset, first_only, places):
        if says := look(exercise, wanted, got):
            return says
    return "The shape is right, the numbers are not."


def shape(exercise: Exercise, wanted: Tensor, got: Tensor) -> str:
    if wanted.shape == got.shape:
        return ""
    fits = len(exercise.axes) == wanted.dim()
    named_axes = [f"{n} {a}" if fits else str(n) for n, a in itertools.zip_longest(wanted.shape, exercise.axes) if n]
    text = f"The shape should be ({', '.join(named_axes)}); yours is {tuple(got.shape)}."
    if sorted(wanted.shape) == sorted(got.shape):
        return text + " The axes are there, in another order."
    if tuple(n for n in got.shape if n != 1) == tuple(n for n in wanted.shape if n != 1):
        return text + " An axis of length 1 is " + ("too many." if got.dim() > wanted.dim() else "missing.")
    if got.dim() == wanted.dim() - 1 and fits:
        for i, axis in enumerate(exercise.axes):
            if tuple(got.shape) == (*wanted.shape[:i], *wanted.shape[i + 1 :]):
                return text + f" The axis {axis} is gone: was it summed away?"
    return text


def dtype(exercise: Exercise, wanted: Tensor, got: Tensor) -> str:
    return "" if kind(wanted) == kind(got) else f"It holds {kind(got)}; expected are {kind(wanted)}."


def device(exercise: Exercise, wanted: Tensor, got: Tensor) -> str:
    if wanted.device.type == got.device.type:
        return ""
    return f"It is on {got.device.type}, its inputs are on {wanted.device.type}: make new tensors with device=x.device."


def not_finite(exercise: Exercise, wanted: Tensor, got: Tensor) -> str:
    for name, test, why in (
        ("NaN", torch.isnan, "0 / 0, ∞ − ∞ or a softmax over nothing makes them"),
        ("infinite", torch.isinf, "a division by 0 or an exponential makes them"),
    ):
        if test(got).any() and not test(wanted).any():
            return f"{int(test(got).sum())} of its {got.numel()} numbers are {name}: {why}."
    return ""


def axes_exchanged(exercise: Exercise, wanted: Tensor, got: Tensor) -> str:
    for order in itertools.permutations(range(wanted.dim())):
        if order != tuple(range(wanted.dim())) and wanted.dim() <= 4:
            turned = got.permute(order)
            if turned.shape == wanted.shape and close(wanted, turned):
                moved = [i for i, j in enumerate(order) if i != j]
                names = [exercise.axes[i] if i < len(exercise.axes) else f"axis {i}" for i in moved]
                return f"The numbers are right, with axes exchanged: {' and '.join(names)}."
    return ""


def order(exercise: Exercise, wanted: Tensor, got: Tensor) -> str:
    """The right numbers at other places along one axis."""
    for axis in range(wanted.dim()):
        name = exercise.axes[axis] if axis < len(exercise.axes) else f"axis {axis}"
        if wanted.shape[axis] > 1 and close(wanted, got.flip(axis)):
            return f"It is right, but reversed along {name}."
        a, b = (t.detach().double().movedim(axis, 0) for t in (wanted, got))
        a, b = (t.reshape(len(t), -1) for t in (a, b))
        if wanted.shape[axis] > 1 and close(rows_sorted(a), rows_sorted(b)):
            return f"The entries along {name} are right, in another order."
    return ""


def rows_sorted(rows: Tensor) -> Tensor:
    return torch.stack(sorted(rows, key=lambda row: [round(float(n), 3) for n in row])) if len(rows) else rows


def sign_scale_offset(exercise: Exercise, wanted: Tensor, got: Tensor) -> str:
    if kind(wanted) == "True and False":
        return "It is True where it should be False, and the other way round." if wanted.equal(~got) else ""
    a, b = wanted.detach().double().flatten(), got.detach().double().flatten()
    if not len(a) or not b.any():
        return "It is 0 everywhere." if len(a) and not b.any() else ""
    factor = float((a @ b) / (b @ b))
    if len(a) > 1 and abs(factor - 1) > TOLERANCE and close(a, factor * b) and a.any():
        return (
            "The sign is wrong."
            if abs(factor + 1) < TOLERANCE
            else f"It is right up to a factor: multiplied by {factor:.3g} it would be right."
        )
    offset = float((a - b).mean())
    if len(a) > 1 and abs(offset) > TOLERANCE and close(a, b + offset):
        return f"It is right up to a constant: {offset:+.3g} is missing everywhere."
    return ""


def first_only(exercise: Exercise, wanted: Tensor, got: Tensor) -> str:
    if wanted.dim() < 2 or len(wanted) < 2:
        return ""
    name = exercise.axes[0] if exercise.axes else "the first axis"
    if close(wanted[0], got[0]) and wanted[0].any():
        return f"Along {name} the first entry is right, others are not: is it taken from the first alone, or over all?"
    return ""


def places(exercise: Exercise, wanted: Tensor, got: Tensor) -> str:
    """How many are wrong, and where the first one is."""
    wrong = ~torch.isclose(got.detach().double(), wanted.detach().double(), TOLERANCE, TOLERANCE)
    if not wrong.any() or wrong.all() or wanted.dim() == 0:
        return ""
    where = tuple(int(i) for i in wrong.nonzero()[0])
    return f"{int(wrong.sum())} of {wrong.numel()} numbers are wrong, the first at {list(where)}."


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.detach().double(), b.detach().double(), TOLERANCE, TOLERANCE)


def named(value: Any) -> str:
    if isinstance(value, Tensor) and value.is_sparse:
        return "a sparse tensor"
    kinds = {
        "ndarray": "a numpy array",
        "Tensor": "a tensor",
        "NoneType": "nothing",
        "int": "a number",
        "float": "a number",
    }
    return kinds.get(type(value).__name__, f"a {type(value).__name__}")
