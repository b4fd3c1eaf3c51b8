"""`labkit report audit`: the notebook of the audit run by papermill, and two audits beside each other."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from labkit import paths, report
from labkit.audit.audit import Audit, read
from labkit.audit.measure import faster, percent, points
from labkit.audit.subject import subject
from labkit.errors import LabkitError
from labkit.execute import execute
from labkit.notebook import check_seed, torch_device
from labkit.tables import Table

NOTEBOOK = "audit.ipynb"
WIDE = 24  # characters of the bar
FEW = 2  # images that show whether it can work
MOST = {"limit": 100_000, "batch": 10_000}  # more images than these no interval and no machine asks for


def audit(values: dict[str, str], out: Path, force: bool) -> Path:
    """Leaves audit.html, audit.json and the executed audit.ipynb in `out`; returns the page."""
    source = paths.need(paths.NOTEBOOKS) / "reports" / NOTEBOOK
    if not source.is_file():
        raise LabkitError(f"The notebook of the audit, {source}, is not there; run inside a clone of labkit.")
    chosen = report.parameters(source, values)
    notebook, page, numbers = (out / f"audit.{kind}" for kind in ("ipynb", "html", "json"))
    refuse(chosen)
    report.prepare(source, notebook, page, numbers, force=force)
    execute(source, notebook, chosen | {"out": str(out)}, Path.cwd(), told=Bar())
    return page


def verdict(page: Path) -> str:
    """The sentence to act on, of the audit that left this page."""
    return str(read(page.with_suffix(".json"))["recommendation"]["sentence"])


def refuse(chosen: dict[str, Any]) -> None:
    """Whatever cannot work says so before anything is written."""
    for name, most in MOST.items():
        if chosen.get(name, 0) > most:
            raise LabkitError(f"{name}={chosen[name]}; expected a number of images, {most:,} at most.")
    asked = {name: chosen[name] for name in ("model", "weights", "images", "labels", "batch") if name in chosen}
    found = subject(**asked, limit=min(chosen.get("limit", 0), FEW) or FEW)
    Audit(found, tolerance=chosen.get("tolerance", 0.01))
    torch_device(chosen.get("device", "auto"))
    check_seed(chosen.get("seed", 0))


class Bar:
    """How far it is, and with what, on the error stream: a line that moves in a terminal, and lines elsewhere."""

    def __init__(self) -> None:
        self.moves = sys.stderr.isatty()

    def __call__(self, done: int, of: int, tags: list[str]) -> None:
        section = next((tag.removeprefix("section-") for tag in tags if tag.startswith("section-")), None)
        if section is None:
            return
        full = WIDE * done // of
        text = f"[{'#' * full}{'-' * (WIDE - full)}] {section}"
        width = shutil.get_terminal_size().columns - 1
        last = section == "page"
        print(
            f"\r{text[:width]:{width}}" if self.moves else text,
            end="\n" if last or not self.moves else "",
            file=sys.stderr,
        )
        sys.stderr.flush()


def compare(first: Path, second: Path) -> Table:
    """Two audits in one table: what the models are, and what each choice costs them."""
    a, b = read(first), read(second)
    if a["word"] != b["word"]:
        raise LabkitError(
            f"{first} measures {a['word']} and {second} {b['word']}; audit both with labels, or both without."
        )
    told = [column(path, values) for path, values in ((first, a), (second, b))]
    rows = [[name, *(one.get(name, "-") for one in told)] for name in dict.fromkeys([*told[0], *told[1]])]
    rows.append(["verdict", *(values["recommendation"]["verdict"] for values in (a, b))])
    return Table(["", str(first), str(second)], rows, [False, True, True])


def column(path: Path, values: dict[str, Any]) -> dict[str, str]:
    """What one audit says, line by line; no schema refuses a number beyond all floats."""
    try:
        what = values["sections"].get("what", {})
        size = {f"{name} (M)": f"{what[name] / 1e6:,.1f}" for name in ("parameters", "macs") if name in what}
        head = {"model": values["model"], "images": str(values["images"])}
        return head | size | untouched(values["word"], what) | choices(values)
    except ArithmeticError as error:
        raise LabkitError(f"{path} holds numbers that no audit leaves ({error!r}); run the audit again.") from None


def untouched(word: str, what: dict[str, Any]) -> dict[str, str]:
    return {f"untouched, {word}": percent(what["untouched"])} if "untouched" in what else {}


def choices(values: dict[str, Any]) -> dict[str, str]:
    """What each choice of each section costs, by its name."""
    rows = [row for part in values["sections"].values() for row in part.get("candidates", [])]
    return {row["name"]: f"{points(row)} points, {faster(row)} times as fast" for row in rows}
