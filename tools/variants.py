"""Makes three notebooks of every lesson, always from its one source, `notebooks/NN.py`; nothing here is kept by hand.

`build/variants/learner`: no outputs, no solutions, the hints stay. `.../clean`: code and headings alone, to recall a
lesson without its words. `.../solution`: each stub gives way to its solution, so that every check says right.
"""

from __future__ import annotations

import ast
import copy
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "variants"
SOLUTION = re.compile(r"<details><summary>Solution</summary>(.*?)</details>\n*", re.DOTALL)
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
FENCED = re.compile(r"```.*?```", re.DOTALL)


def learner(notebook: NotebookNode) -> NotebookNode:
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = SOLUTION.sub("", cell.source).rstrip()
    return notebook


def clean(notebook: NotebookNode) -> NotebookNode:
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            lines = FENCED.sub("", cell.source).splitlines()
            cell.source = "\n\n".join(line for line in lines if re.match(r"#+ ", line))
    notebook.cells = [cell for cell in notebook.cells if cell.source]
    return notebook


def solution(notebook: NotebookNode) -> NotebookNode:
    found: list[str] = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            found += ["\n\n".join(CODE.findall(text)) for text in SOLUTION.findall(cell.source)]
        elif "exercise" in cell.metadata.get("tags", []):
            if len(found) != 1:
                raise SystemExit(f"A stub needs one solution above it, and has {len(found)}:\n{cell.source}")
            cell.source = solved(cell.source, found.pop())
    return notebook


def solved(stub: str, answer: str) -> str:
    """The stub with the functions of the answer in the place of its own; the other lines stay."""
    wanted = names(ast.parse(answer))
    lines, place = stub.splitlines(), None
    for node in reversed(ast.parse(stub).body):
        if names(ast.Module([node], [])) & wanted:
            first = min([node.lineno, *(line.lineno for line in getattr(node, "decorator_list", []))])
            lines[first - 1 : node.end_lineno] = []
            place = first - 1
    if place is None:
        raise SystemExit(f"The solution defines {', '.join(wanted) or 'nothing'}, and nothing of this stub:\n{stub}")
    lines[place:place] = answer.rstrip().splitlines()
    return "\n".join(lines)


def names(tree: ast.Module) -> set[str]:
    """What the top level of some code defines."""
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    return found | {target.id for target in targets if isinstance(target, ast.Name)}


VARIANTS: dict[str, Callable[[NotebookNode], NotebookNode]] = {
    "learner": learner,
    "clean": clean,
    "solution": solution,
}


def make(source: Path, out: Path = OUT) -> None:
    """All variants of one lesson; a link that leaves the folder of the lessons is led back to where it led."""
    lesson = jupytext.read(source)
    for i, cell in enumerate(lesson.cells):
        cell["id"] = f"cell-{i}"
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace("](../", "](../../../")
    for name, variant in VARIANTS.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        nbformat.write(variant(copy.deepcopy(lesson)), out / name / f"{source.stem}.ipynb")


def main() -> int:
    shutil.rmtree(OUT, ignore_errors=True)  # what a lesson that is gone has left
    sources = sorted((ROOT / "notebooks").glob("[0-9]*.py"))
    for source in sources:
        make(source)
    print(f"{len(sources)} lessons, in build/variants/: {', '.join(VARIANTS)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
