"""All sections of an audit in one place: measured one by one, kept as JSON, written as one page.

audit = Audit(found, fast=True)
audit.add("what")                     # a notebook shows the section; a model it does not suit is told why
audit.decide()
audit.to_json("audit.json"); audit.to_html("audit.html")
"""

from __future__ import annotations

import datetime
import functools
import importlib
import json
import platform
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch

import labkit
from labkit import files
from labkit.audit import page
from labkit.audit.measure import Row
from labkit.audit.subject import Subject
from labkit.errors import LabkitError
from labkit.tables import Table
from labkit.viz.figures import png

SCHEMA = 1
SECTIONS = ("what", "speed", "looks", "tokens", "bits", "robust", "together")
PLAIN_ONLY = ("tokens", "bits", "together")


@dataclass(frozen=True)
class Section:
    """One section: its numbers, and how they are told."""

    name: str
    title: str
    values: dict[str, Any]
    said: str
    table: Table | None = None
    picture: bytes | None = None

    def __repr__(self) -> str:
        return "\n".join(str(part) for part in (self.title, self.said, self.table) if part is not None)

    def _repr_html_(self) -> str:
        return page.section(self)


def skipped(name: str, title: str, why: str) -> Section:
    return Section(name, title, {"skipped": why}, f"Not measured. {why}")


class Audit:
    """`sections` in the order in which they were added."""

    def __init__(self, found: Subject, fast: bool = False, tolerance: float = 0.01) -> None:
        if not 0 < tolerance < 1:
            raise LabkitError(f"tolerance={tolerance}; expected the share of right answers that may be lost, as 0.01.")
        # Ranges that are searched take time for every image that they are searched on.
        self.found = replace(found, calibration=found.calibration[:16]) if fast else found
        self.fast, self.tolerance = fast, tolerance
        self.sections: dict[str, Section] = {}
        self.seconds: dict[str, float] = {}

    def add(self, name: str) -> Section:
        """Measures a section; the name is that of a file of `labkit.audit`."""
        module: Any = importlib.import_module(f"labkit.audit.{name}")
        start = time.monotonic()
        why = self.found.plain if name in PLAIN_ONLY else ""
        try:
            section = skipped(name, module.TITLE, why) if why else self._measured(name, module)
        except LabkitError as reason:
            section = skipped(name, module.TITLE, str(reason))
        except Exception as error:
            if not self.found.plain:
                raise
            # Other people's models may fail under our eyes in ways of their own; the other sections go on.
            section = skipped(name, module.TITLE, f"{self.found.name} cannot be asked so ({error!r:.200}).")
        self.sections[name] = section
        self.seconds[name] = round(time.monotonic() - start, 1)
        return section

    def _measured(self, name: str, module: Any) -> Section:
        more = (self.candidates(),) if name == "together" else ()
        measured = module.measure(self.found, self.fast, *more)
        values = json.loads(json.dumps(measured, allow_nan=False))  # what is told is what is kept
        picture = png(module.figure(values))
        return Section(name, module.TITLE, values, module.sentence(values), module.table(values), picture)

    def candidates(self) -> list[Row]:
        """Of all sections."""
        return [row for section in self.sections.values() for row in section.values.get("candidates", [])]

    def recommendation(self) -> dict[str, Any]:
        """From all candidates of all sections; a model whose tokens and bits cannot be reduced here has none."""
        from labkit.audit.decide import recommend

        rows = self.candidates()
        if not rows:
            return {"verdict": "not measured", "sentence": "No choice was measured, so none is recommended."}
        untried = sum(section.values.get("untried", 0) for section in self.sections.values())
        return recommend(rows, len(self.found.inputs), self.found.word, self.tolerance, untried)

    def values(self) -> dict[str, Any]:
        """Everything that was measured, as `schema.json` describes it."""
        return {
            "schema": SCHEMA,
            "labkit": labkit.__version__,
            "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "model": self.found.name,
            "asked": self.found.asked,
            "images": len(self.found.inputs),
            "word": self.found.word,
            "notes": list(self.found.notes),
            "fast": self.fast,
            "tolerance": self.tolerance,
            "seconds": self.seconds,
            "recommendation": self.recommendation(),
            "sections": {name: section.values for name, section in self.sections.items()},
        }

    def to_json(self, path: str | Path) -> Path:
        return files.replace(Path(path), json.dumps(check(self.values()), indent=1, allow_nan=False) + "\n")

    def to_html(self, path: str | Path) -> Path:
        return files.replace(Path(path), page.whole(self))


@functools.cache
def schema() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(Path(__file__).with_name("schema.json").read_text(encoding="utf-8")))


def check(values: Any) -> dict[str, Any]:
    """`values`, when they are an audit; one sentence when they are not."""
    from jsonschema.exceptions import best_match

    if error := best_match(schema().iter_errors(values)):
        where = "/".join(map(str, error.absolute_path)) or "the whole"
        raise LabkitError(f"This is no audit of schema {SCHEMA}: at {where}, {error.message[:200]}.")
    return dict(values)


def read(path: str | Path) -> dict[str, Any]:
    """An `audit.json`."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no number of JSON")

    try:
        return check(json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=refuse))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, LabkitError):
            raise LabkitError(f"{path}: {error}") from None
        raise LabkitError(f"{path} is no audit that can be read ({error}); expected an audit.json.") from None
