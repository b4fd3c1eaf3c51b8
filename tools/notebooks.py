"""Runs lessons from their `.py` and writes the paired `.ipynb`: `python tools/notebooks.py [NAME ...]`, or all.

Widgets are saved as their picture, not as a widget: a page that is read before its kernel runs shows the picture.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from labkit.execute import private

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without clocks, widget states and the version of the Python that ran it: only what the lesson says."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["kernelspec"] = KERNEL
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            if len(output.get("data", {})) > 1:  # a widget alone would leave nothing behind
                output["data"].pop(WIDGET, None)
    return notebook


def run(source: Path) -> str:
    """Execute one lesson and write its `.ipynb`; returns a line about it."""
    start = time.monotonic()
    notebook = jupytext.read(source)
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i}"  # jupytext draws ids at random, and every run would change the file
    where = {"metadata": {"path": FOLDER}}
    with private() as settings:
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where, config=settings).execute()
    target = source.with_suffix(".ipynb")
    nbformat.write(clean(notebook), target)
    os.utime(source)  # jupytext refuses a pair whose text is the older half
    return f"{target.relative_to(ROOT)}: {time.monotonic() - start:.0f} s, {target.stat().st_size / 1000:.0f} kB"


def main(names: list[str]) -> int:
    known = {path.stem: path for path in sorted(FOLDER.glob("[0-9]*.py"))}
    if unknown := [name for name in names if name not in known]:
        print(f"There is no lesson {', '.join(unknown)}; there are: {', '.join(known)}.", file=sys.stderr)
        return 2
    failed = False
    for name in names or known:
        try:
            print(run(known[name]), flush=True)
        except CellExecutionError as error:
            failed = True
            print(f"notebooks/{name}.py stopped; its .ipynb is as it was.\n{error}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
