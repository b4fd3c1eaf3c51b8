"""One answer tried on one case: what came back, what it did to its inputs, or where it broke."""

from __future__ import annotations

import copy
import linecache
import traceback
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from labkit.check.exercise import Answer, Exercise


@dataclass(frozen=True, eq=False)
class Attempt:
    arguments: tuple[Any, ...]
    result: Any = None
    changed: tuple[str, ...] = ()  # parameters that were changed in place
    error: Exception | None = None
    where: str = ""  # the learner's line that raised it

    @property
    def size(self) -> int:
        return sum(leaf.numel() if isinstance(leaf, Tensor) else 1 for leaf in leaves(self.arguments))


def attempt(exercise: Exercise, fn: Answer, arguments: tuple[Any, ...]) -> Attempt:
    """Calls `fn`; the dice of torch stand as before afterwards."""
    before = copy.deepcopy(arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            result = exercise.observe(fn, *arguments)
        except Exception as error:  # whatever a learner's function raises is what we are here to show
            return Attempt(before, error=error, where=line_of(fn, error))
    pairs = zip(exercise.parameters, before, arguments, strict=False)
    changed = tuple(name for name, old, new in pairs if not same(old, new, 0))
    return Attempt(before, result, changed)


def line_of(fn: Answer, error: Exception) -> str:
    """`line 2: x = y` of `fn`, the deepest line of the learner's own code; empty when it never came so far."""
    code = getattr(fn, "__code__", None)
    frames = [] if code is None else traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if code is not None and frame.filename == code.co_filename]
    if code is None or not own or own[-1].lineno is None:
        return ""
    number = own[-1].lineno
    text = linecache.getline(code.co_filename, number).strip()
    inside = code.co_firstlineno <= number and own[-1].name == code.co_name
    place = f"line {number - code.co_firstlineno + 1}" if inside else f"in {own[-1].name}"
    return f"{place}: {text}" if text else place


def leaves(value: Any) -> list[Any]:
    """Everything in nested tuples, lists and dictionaries; a module is its weights."""
    if isinstance(value, nn.Module):
        return leaves(value.state_dict())
    if isinstance(value, dict):
        return [leaf for key in value for leaf in leaves(value[key])]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def kind(tensor: Tensor) -> str:
    if tensor.dtype == torch.bool:
        return "True and False"
    if tensor.is_complex():
        return "complex numbers"
    return "decimal numbers" if tensor.is_floating_point() else "whole numbers"


def same(wanted: Any, got: Any, tolerance: float) -> bool:
    """Equal in kind and shape, and within `tolerance` in every number (also relative to it)."""
    if isinstance(wanted, Tensor):
        if not isinstance(got, Tensor) or wanted.shape != got.shape or kind(wanted) != kind(got):
            return False
        if wanted.device != got.device or got.is_sparse:
            return False
        a, b = wanted.detach().double(), got.detach().double()
        return torch.allclose(b, a, rtol=tolerance, atol=tolerance, equal_nan=True)
    if isinstance(wanted, nn.Module):
        return isinstance(got, nn.Module) and same(wanted.state_dict(), got.state_dict(), tolerance)
    if isinstance(wanted, dict):
        fits = isinstance(got, dict) and list(wanted) == list(got)
        return fits and all(same(wanted[key], got[key], tolerance) for key in wanted)
    if isinstance(wanted, list | tuple):
        fits = isinstance(got, list | tuple) and len(wanted) == len(got)
        return fits and all(same(a, b, tolerance) for a, b in zip(wanted, got, strict=True))
    if isinstance(wanted, float | int) and not isinstance(wanted, bool):
        return (number := as_number(got)) is not None and same(
            torch.tensor(float(wanted)), torch.tensor(number), tolerance
        )
    if isinstance(wanted, bool):
        return (
            isinstance(got, bool | Tensor) and (not isinstance(got, Tensor) or got.numel() == 1) and bool(got) is wanted
        )
    return callable(wanted) or (type(wanted) is type(got) and bool(wanted == got))


def as_number(value: Any) -> float | None:
    """A number, also from a tensor or a numpy scalar that holds just one."""
    if isinstance(value, bool) or (isinstance(value, Tensor) and value.numel() != 1):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def alike(first: Attempt, second: Attempt, tolerance: float) -> bool:
    """Two answers did the same: the same result, the same changes, or the same kind of error."""
    if first.error or second.error:
        return type(first.error) is type(second.error)
    return first.changed == second.changed and same(first.result, second.result, tolerance)
