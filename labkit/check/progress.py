"""What a learner has done: exercises tried and right, predictions made and met, in one local file.

    labkit.progress()                     # a table, lesson by lesson
    labkit.progress().to_csv("me.csv")    # to hand in; to_json as well
    labkit.progress().delete()

The file is `progress.json` in `~/.labkit` (or in LABKIT_CACHE). Nothing is sent anywhere.
"""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from labkit import files, paths
from labkit.errors import LabkitError
from labkit.notebook import table
from labkit.tables import Table

VERSION = 1
unsaved = ""  # why the file could not be written, for `progress()` to say


@dataclass(frozen=True)
class Entry:
    """One exercise or one prediction."""

    kind: str  # exercise, prediction
    name: str
    lesson: str  # its two digits
    tried: int
    right: bool
    answer: str = ""  # what was predicted
    measured: str = ""


def file() -> Path:
    return Path(os.environ.get("LABKIT_CACHE") or paths.CACHE).expanduser() / "progress.json"


def read() -> dict[tuple[str, str], Entry]:
    """What the file holds; a file that cannot be read is moved aside, never overwritten."""
    try:
        content = json.loads(file().read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise KeyError("version")
        entries = [Entry(**entry) for entry in content["entries"]]
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        aside = file().with_suffix(".broken")
        file().replace(aside)
        raise LabkitError(
            f"The progress file could not be read; it is now {aside.name}, beside it, and a new one begins."
        ) from None
    return {(entry.kind, entry.name): entry for entry in entries}


def note(entry: Entry) -> None:
    """Adds or replaces one entry. On a full or read-only disk the lesson goes on, and `progress()` says so."""
    global unsaved
    try:
        try:
            entries = read()
        except LabkitError:
            entries = {}
        entries[entry.kind, entry.name] = entry
        file().parent.mkdir(parents=True, exist_ok=True)
        files.replace(file(), as_json(list(entries.values())))
        unsaved = ""
    except OSError as error:
        unsaved = f"Not all was saved: {file().name} cannot be written ({error.strerror})."


def note_answer(name: str, lesson: str, right: bool) -> None:
    """Once right stays right."""
    try:
        before = read().get(("exercise", name))
    except (LabkitError, OSError):
        before = None
    tried = 1 + (before.tried if before else 0)
    note(Entry("exercise", name, lesson[:2], tried, right or bool(before and before.right)))


def as_json(entries: list[Entry]) -> str:
    content = {"version": VERSION, "entries": [asdict(entry) for entry in entries]}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


class Progress:
    """The table of what was done; `entries` are its rows one by one."""

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = sorted(entries, key=lambda entry: (entry.lesson, entry.kind, entry.name))

    def table(self) -> Table:
        from labkit import check

        lessons: dict[str, dict[str, int]] = {}
        for name in check.NAMES:
            row = lessons.setdefault(check.find(name).lesson[:2], dict.fromkeys(("of", "tried", "right"), 0))
            row["of"] += 1
        for entry in self.entries:
            row = lessons.setdefault(entry.lesson, {})
            for column in ("tried", "right") if entry.kind == "exercise" else ("predicted", "met"):
                done = entry.right if column in ("right", "met") else True
                row[column] = row.get(column, 0) + done
        columns = ("right", "tried", "of", "predicted", "met")
        rows = [[lesson, *(row.get(column, 0) for column in columns)] for lesson, row in sorted(lessons.items())]
        return table(rows, ["lesson", "exercises right", "tried", "of", "predictions", "met"])

    def __repr__(self) -> str:
        return "\n".join(line for line in (repr(self.table()), unsaved) if line)

    def _repr_html_(self) -> str:
        return self.table()._repr_html_() + (f"<p>{unsaved}</p>" if unsaved else "")

    def to_json(self, path: str | Path) -> Path:
        return save(Path(path), as_json(self.entries))

    def to_csv(self, path: str | Path) -> Path:
        sheet = io.StringIO()
        lines = csv.DictWriter(sheet, list(Entry.__dataclass_fields__), lineterminator="\n")
        lines.writeheader()
        lines.writerows(asdict(entry) for entry in self.entries)
        return save(Path(path), sheet.getvalue())

    def delete(self) -> None:
        file().unlink(missing_ok=True)
        self.entries = []


def save(path: Path, text: str) -> Path:
    try:
        return files.replace(path, text)
    except OSError as error:
        raise LabkitError(f"{path} cannot be written ({error.strerror}): choose another place.") from error


def progress() -> Progress:
    """What is noted on this machine."""
    return Progress(list(read().values()))


def note_prediction(name: str, guess: Any, measured: Any, met: bool) -> None:
    note(Entry("prediction", name, name[:2], 1, met, str(guess), str(measured)))
