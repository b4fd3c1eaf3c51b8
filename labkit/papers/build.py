"""The table of papers, made from what is there: facts, marked tests and their last run, docstrings, lessons.

A paper *works* when a test that names it passed in the last run and none failed; it *applies* when it uses a
mechanism that the kit has; it is *context* when there is nothing in it to build; else it is *open*.

    write(checkout())       data/papers.csv
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import astuple, fields
from pathlib import Path

from labkit import papers, paths
from labkit.errors import LabkitError
from labkit.papers import scan
from labkit.tables import Table

BUILD = "python -m labkit.papers build"
RUN = "pytest --paper-json data/results/papers.json -m paper"


def checkout() -> Path:
    """The clone that labkit runs from: only there are tests and lessons to look at."""
    if not all((paths.ROOT / part).exists() for part in ("pyproject.toml", "tests", "notebooks")):
        raise LabkitError(
            f"`{BUILD}` reads the tests and the lessons, and an installed labkit has none; run it in a clone of labkit."
        )
    return paths.ROOT


def table(root: Path) -> list[papers.Row]:
    """One row for every paper, from what stands in the clone at `root`."""
    marked = scan.markers(root)
    passed = last_run(root / "data" / "results" / "papers.json", marked)
    symbols, lessons = scan.symbols(root, marked), scan.lessons(root / "notebooks")
    rows = []
    for paper in papers.load():
        status = _status(paper, passed.get(paper.id))
        rows.append(
            papers.Row(
                *(paper.id, paper.title, paper.year, paper.family, paper.scope, paper.idea, status),
                symbol=paper.through if status == "applies" else symbols.get(paper.id, ""),
                check=";".join(marked.get(paper.id, [])),
                lesson=";".join(lessons.get(paper.id, [])),
            )
        )
    return rows


def last_run(path: Path, marked: Mapping[str, list[str]]) -> dict[str, bool]:
    """Of each paper with marked tests, whether they passed in the stored run; it has to be of just these tests."""
    if not path.is_file():
        raise LabkitError(f"There is no run of the marked tests at {path}; `{RUN}` stores one.")
    run = json.loads(path.read_text(encoding="utf-8"))
    pairs = {(id, test) for id, tests in marked.items() for test in tests}
    stored = {(id, test) for id, row in run.items() for test in row["tests"]}
    if differing := sorted(pairs ^ stored):
        id, test = differing[0]
        what = f"lacks {test}, which names" if differing[0] in pairs else f"holds {test}, which no longer names"
        more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
        raise LabkitError(f"The stored run {what} {id}{more}; run `{RUN}`, then `{BUILD}`.")
    if unknown := sorted(set(run) - {paper.id for paper in papers.load()}):
        raise LabkitError(f"A test names {unknown[0]}, which is no paper in labkit/papers.tsv; add it there.")
    return {id: row["status"] == "passed" for id, row in run.items()}


def text(rows: list[papers.Row]) -> str:
    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(field.name for field in fields(papers.Row))
    lines.writerows(astuple(row) for row in rows)  # a year that is None becomes an empty cell
    return file.getvalue()


def write(root: Path) -> Path:
    path = root / "data" / "papers.csv"
    path.write_text(text(table(root)), encoding="utf-8", newline="\n")
    return path


def stale(root: Path) -> str:
    """What is wrong with data/papers.csv, in one sentence; "" when it says what the sources say."""
    path = root / "data" / "papers.csv"
    said = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    is_so = text(table(root)).splitlines()
    if said == is_so:
        return ""
    lines = sorted(set(said) ^ set(is_so))
    first = f"see the line of {lines[0].split(',')[0]}" if lines else "the order of its lines"
    return f"data/papers.csv is not what the sources say ({first}); run `{BUILD}`."


def counts(rows: list[papers.Row]) -> Table:
    """How many papers there are of each family and status."""
    n = Counter((row.family, row.status) for row in rows)
    families = sorted({row.family for row in rows})
    lines = [[family, *(n[family, status] for status in papers.STATUSES)] for family in families]
    lines.append(["all", *(sum(n[family, status] for family in families) for status in papers.STATUSES)])
    cells = [[str(line[0]), *(str(k or "·") for k in line[1:]), str(sum(line[1:]))] for line in lines]  # type: ignore
    return Table(["family", *papers.STATUSES, "all"], cells, [False] + [True] * 5)


def _status(paper: papers.Paper, passed: bool | None) -> str:
    if passed is not None:
        return "works" if passed else "open"
    if paper.through:
        return "applies"
    return "context" if paper.scope == "context" else "open"
