"""Choices in a JSON file that people write by hand: a mistake is one sentence, and no file is half written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labkit import files
from labkit.errors import LabkitError, closest

SCHEMA = 1  # what the names mean; a file of another number is refused, not guessed at
KINDS = {
    int: "a whole number",
    float: "a number",
    str: "a word",
    tuple: "a list of whole numbers",
    bool: "true or false",
}


def check_kind(name: str, value: Any, default: Any) -> None:
    """A value must be of its default's kind; a whole number may stand for a decimal one, true and false for none."""
    kinds = (int, float) if type(default) is float else type(default)
    right = isinstance(value, kinds) and isinstance(value, bool) == isinstance(default, bool)
    if not right:
        raise LabkitError(f"{name}={value!r} is of the wrong kind; expected {KINDS[type(default)]}, as {default!r}.")


def read_object(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file, names and values."""
    path = Path(path)
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LabkitError(f"There is no file {path}; expected a JSON object of names and values.") from None
    except OSError as error:
        raise LabkitError(f"{path} cannot be read ({error.strerror}); expected a JSON file.") from None
    except UnicodeDecodeError:
        raise LabkitError(f"{path} is no text; expected a JSON object of names and values.") from None
    except json.JSONDecodeError as error:
        raise LabkitError(
            f"{path} is no JSON (line {error.lineno}: {error.msg}); write it again, or mend it."
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in brackets in brackets
        raise LabkitError(f"{path} cannot be read as JSON ({error}); write it again, or mend it.") from None
    if not isinstance(told, dict):
        raise LabkitError(
            f'{path} holds a {type(told).__name__}; expected an object of names and values, as {{"keep": 0.5}}.'
        )
    return told


def read(path: str | Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """What a file chooses, of the `known` names and their defaults; a name that is not there keeps its default."""
    told = read_object(path)
    schema = told.pop("schema", None)
    if schema != SCHEMA:
        found = "says no" if schema is None else f"has the {schema!r}"
        raise LabkitError(f'{path} {found} "schema"; this labkit reads {SCHEMA}. Write it again with to_json.')
    for name, value in told.items():
        if name not in known:
            raise LabkitError(f'{path}: nothing is called "{name}".{closest(name, known)} Known: {", ".join(known)}.')
        try:
            check_kind(name, value, known[name])
        except LabkitError as error:
            raise LabkitError(f"{path}: {error}") from None
    return told


def write(path: str | Path, values: Mapping[str, Any]) -> None:
    """Written beside the file and moved there in one step."""
    try:
        files.replace(Path(path), json.dumps({"schema": SCHEMA, **values}, indent=2) + "\n")
    except OSError as error:
        raise LabkitError(f"{path} cannot be written ({error.strerror}); choose another place.") from None
