"""Small notebooks in place of the course: reports end to end, without the minute that a model takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import nbformat

from labkit import paths
from labkit.audit.audit import SECTIONS

PARTS = ("images", *SECTIONS, "page")
LESSON = "00_start_here"


def write(path: Path, cells: Sequence[tuple[str, str]]) -> Path:
    """A notebook of (tag, code)."""
    made = [nbformat.v4.new_code_cell(code, metadata={"tags": [tag] if tag else []}) for tag, code in cells]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata={"kernelspec": kernel}), path)
    return path


def audit(folder: Path, each: str, page: str) -> Path:
    """An audit whose sections do `each` and whose last cell does `page`; {part} is the section's name."""
    cells = [("parameters", 'out = "."\nlimit = 0\nfast = False\nbatch = 1')]
    cells += [(f"section-{part}", (page if part == "page" else each).replace("{part}", part)) for part in PARTS]
    write(folder / "reports" / "audit.ipynb", cells)
    return folder


@contextlib.contextmanager
def course(folder: Path) -> Iterator[None]:
    with mock.patch.object(paths, "NOTEBOOKS", folder):
        yield


def outputs(notebook: Path) -> str:
    """Everything a notebook printed; it has to be one that can be read."""
    cells = nbformat.read(notebook, as_version=4).cells
    return "".join(o.get("text", "") for cell in cells for o in cell.get("outputs", []))
