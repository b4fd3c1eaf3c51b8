"""Exercises that find your mistake: `labkit.check.attention(fn)` judges `fn` and says which mistake it makes.

Each file of `labkit/check/exercises` is one exercise; its name is the name of the function that is asked for.
`python -m labkit.check` tries every named mistake and prints which exercise catches which.
"""

from __future__ import annotations

import importlib
import pkgutil

from labkit.check import exercises
from labkit.check.exercise import Exercise
from labkit.errors import LabkitError, closest

NAMES = sorted(module.name for module in pkgutil.iter_modules(exercises.__path__))


def find(name: str) -> Exercise:
    if name not in NAMES:
        raise LabkitError(f'There is no exercise "{name}".{closest(name, NAMES)} labkit.check.NAMES has all of them.')
    found: Exercise = importlib.import_module(f"labkit.check.exercises.{name}").task
    return found


def __getattr__(name: str) -> Exercise:
    if name.startswith("__"):
        raise AttributeError(name)
    try:
        return find(name)
    except LabkitError as error:
        raise AttributeError(str(error)) from None


def __dir__() -> list[str]:
    return [*NAMES, "NAMES", "find"]
