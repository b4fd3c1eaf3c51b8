"""The papers this kit grew from: what each is about, and what of it works here.

The facts stand in `labkit/papers.tsv`, one line a paper, with the idea in one sentence of ours; the year is the
first version's. What works is never written by hand: `python -m labkit.papers build` makes `data/papers.csv` from
the tests that name a paper, their last run, the docstrings and the lessons.

    cite("S182")        '"Going deeper with Image Transformers", 2021 (S182)'
    find("S182").idea   what a lesson says of it
    rows()              the table: every paper, with its status, the code that holds it, its tests and lessons
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit import paths
from labkit.errors import LabkitError, closest

FACTS = Path(__file__).resolve().parents[1] / "papers.tsv"
STATUSES = ("works", "applies", "context", "open")


@dataclass(frozen=True)
class Paper:
    id: str  # the catalogue id
    title: str
    year: int | None  # None where it is not known for sure
    family: str
    scope: str  # "implement", "variant", "apply" or "context"
    idea: str
    through: str  # the working paper or the labkit name whose mechanism it applies; "" if the kit has none


@dataclass(frozen=True)
class Row:
    """One line of data/papers.csv; what may be several (`check`, `lesson`) is joined by ";", and may be empty."""

    id: str
    title: str
    year: int | None
    family: str
    scope: str
    idea: str
    status: str  # one of STATUSES
    symbol: str  # "labkit.tokens.fuse.Fuse"; of a paper that is applied, what it is applied through: a name or an id
    check: str  # "tests/tokens/test_fuse.py::test_it"
    lesson: str  # "07_token_pruning"


if TYPE_CHECKING:
    PAPERS: tuple[Paper, ...]


def __getattr__(name: str) -> Any:
    if name == "PAPERS":
        return load()
    raise AttributeError(f"module 'labkit.papers' has no attribute {name!r}")


@cache
def load() -> tuple[Paper, ...]:
    """The facts about all papers, in the order of their ids; read once. `papers.PAPERS` is the same."""
    with FACTS.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return tuple(Paper(**_typed(line)) for line in lines)


def find(id: str) -> Paper:
    """The facts about one paper, by its catalogue id."""
    for paper in load():
        if paper.id == id:
            return paper
    hint = closest(id, [paper.id for paper in load()])
    raise LabkitError(f'No paper "{id}" is described in labkit/papers.tsv; add it there.{hint}')


def cite(id: str) -> str:
    """`'"Going deeper with Image Transformers", 2021 (S182)'`: title, year and catalogue id."""
    paper = find(id)
    return f'"{paper.title}", {paper.year} ({paper.id})' if paper.year else f'"{paper.title}" ({paper.id})'


def rows() -> list[Row]:
    """Every paper with what works of it: the lines of data/papers.csv, in the order of their ids."""
    path = paths.DATA / "papers.csv"
    if not path.is_file():
        raise LabkitError(
            f"There is no table of papers at {path}; `python -m labkit.papers build` in a clone makes it."
        )
    with path.open(encoding="utf-8", newline="") as file:
        return [Row(**_typed(line)) for line in csv.DictReader(file)]


def _typed(line: dict[str, str]) -> dict[str, Any]:
    return {**line, "year": int(line["year"]) if line["year"] else None}
