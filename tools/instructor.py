"""Writes into docs/INSTRUCTOR.md what the lessons know themselves: minutes, answers to the predictions, named mistakes.

`python tools/instructor.py` renews what stands between `<!-- from the lesson -->` and `<!-- end -->` under each
lesson's heading; all other lines are somebody's own words and stay. Run it when a lesson has changed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from labkit import check

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "docs" / "INSTRUCTOR.md"
LESSONS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
BLOCK = re.compile(r"(?<=<!-- from the lesson -->\n).*?(?=<!-- end -->)", re.DOTALL)
ASKS = re.compile(r"^### Exercise \d+: (.+?)\n\n\*(Easy|Medium|Hard), (\d+) minutes", re.MULTILINE)
TIME = re.compile(r"\*Time:\* (\d+) minutes; the cells take ([a-z ]+?)\.")


def prose(lesson: NotebookNode) -> str:
    return "\n\n".join(cell.source for cell in lesson.cells if cell.cell_type == "markdown")


def minutes(lesson: NotebookNode) -> tuple[int, str]:
    """For the lesson without its exercises, and in words what its cells take of them."""
    found = TIME.search(" ".join(lesson.cells[0].source.split()))
    if found is None:
        raise SystemExit(f"This lesson has no line *Time:* as in the others:\n{lesson.cells[0].source}")
    return int(found[1]), found[2]


def exercises(lesson: NotebookNode) -> list[tuple[str, str, int, str]]:
    """Title, level, minutes, and the name by which `labkit.check` knows it; open ones have none."""
    found, judged = [], {}
    for cell in lesson.cells:
        if title := ASKS.search(cell.source):
            found.append((title[1], title[2], int(title[3])))
        elif named := re.search(r"^labkit\.check\.(\w+)\(\1\)$", cell.source, re.MULTILINE):
            judged[len(found) - 1] = named[1]
    return [(*row, judged.get(i, "")) for i, row in enumerate(found)]


def predictions(lesson: NotebookNode) -> list[tuple[str, str, str]]:
    """The question, the expectation that stands in where nobody guesses, and what the saved run measured."""
    asked: dict[str, str] = {}
    answered: dict[str, tuple[str, str]] = {}
    for cell in (cell for cell in lesson.cells if cell.cell_type == "code"):
        if name := called(cell, "predict"):
            asked[name] = said(cell, r"^Predict\. (.*) \[")[0]
        if name := called(cell, "reveal"):
            guess, measured = said(cell, r"in its place stands: (.*?)\. Measured: (.*)\. (?:Not a|A)s predicted")
            timed = "nbval-ignore-output" in cell.metadata.get("tags", [])
            answered[name] = guess, "depends on the machine" if timed else measured
    if set(asked) != set(answered):
        raise SystemExit(f"Predicted and never revealed, or the other way round: {set(asked) ^ set(answered)}")
    return [(asked[name], *answered[name]) for name in asked]


def called(cell: NotebookNode, function: str) -> str:
    """The id that `labkit.predict` or `labkit.reveal` has in this cell."""
    call = re.search(rf'^labkit\.{function}\(\s*"(.+?)"', cell.source, re.MULTILINE)
    return call[1] if call else ""


def said(cell: NotebookNode, pattern: str) -> tuple[str, ...]:
    words = "\n".join(output.get("data", {}).get("text/plain", "") for output in cell.outputs)
    if (found := re.search(pattern, words, re.DOTALL)) is None:
        raise SystemExit(f"This cell has to be run, and nobody to predict in it; it says: {words!r}\n{cell.source}")
    return found.groups()


def block(lesson: NotebookNode) -> str:
    """The lines of one lesson."""
    (total, cells), asked = minutes(lesson), exercises(lesson)
    extra = sum(row[2] for row in asked)
    text = (
        f"\n**Minutes:** {total} for the rounds, of which the cells take {cells}; {extra} more for all exercises.\n\n"
    )
    if guesses := predictions(lesson):
        rows = ["| prediction | naive guess | measured |", "|---|---|---|"]
        text += "\n".join(rows + [f"| {' | '.join(map(cell_of, row))} |" for row in guesses]) + "\n\n"
    rows = ["| exercise | level, minutes | mistakes that are named |", "|---|---|---|"]
    for title, level, amount, name in asked:
        judged = f" (`{name}`)" if name else " (open)"
        rows.append(f"| {cell_of(title)}{judged} | {level}, {amount} | {mistakes(name) if name else '-'} |")
    return text + "\n".join(rows) + "\n\n"


def mistakes(name: str) -> str:
    return ", ".join(mistake.answer.__name__.replace("_", " ") for mistake in check.find(name).mistakes)


def cell_of(text: str) -> str:
    return text.replace("|", "\\|")


def renewed(guide: str) -> str:
    """The guide with the lines of every lesson as they are today; a lesson without a section stops it."""
    for path in LESSONS:
        head, mark, rest = guide.partition(f"\n## [{path.stem}](../notebooks/{path.name})")
        if not mark or not BLOCK.search(rest.split("\n## ", 1)[0]):
            raise SystemExit(f"docs/INSTRUCTOR.md has no section, or no marked block, for {path.stem}.")
        lines = block(nbformat.read(path, as_version=4))
        guide = head + mark + BLOCK.sub(lambda _: lines, rest, count=1)  # noqa: B023
    return guide


def main() -> int:
    GUIDE.write_text(renewed(GUIDE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
