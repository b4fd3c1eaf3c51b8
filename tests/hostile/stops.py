"""Ctrl-C while a report is in a section, as a terminal sends it: to all processes of the group.

`python -m tests.hostile.stops FOLDER NOTEBOOKS PART ...` stops one report after another and prints what each left; the
modules are read once, and every report is a fork of the process that has read them. {part} in NOTEBOOKS is the section.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from labkit import paths
from labkit.errors import LabkitError
from tests.hostile import BAR, Cases, books
from tests.hostile.disks import check_whole

PATIENCE = 60  # seconds until the report must have come to the section: a real one takes its time
EACH = """
import time
print("begin {part}")
time.sleep(60 if "{part}" == "WAITS" else 0)
print("end {part}")
"""
WRITE = """
from labkit import files
from pathlib import Path
files.replace(Path(out) / "audit.json", "{}")
"""


def report(out: Path, said: Path, notebooks: Path) -> int:
    """Begins `labkit report audit` in a process and a group of its own; the id of both."""
    child = os.fork()
    if child:
        return child
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from labkit import cli

    code = 70
    try:
        with books.course(notebooks):
            code = cli.main(["report", "audit", "--fast", "-p", "limit=4", "-p", "batch=1", "--out", str(out)])
    finally:
        sys.stderr.flush()
        os._exit(code)


def stop(folder: Path, notebooks: Path, part: str) -> dict[str, Any]:
    """What is left of a report that is stopped in a section."""
    out, said = folder / part, folder / f"{part}.txt"
    child = report(out, said, notebooks)
    end = time.monotonic() + PATIENCE
    while f"] {part}" not in (said.read_text() if said.exists() else ""):
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            raise TimeoutError(f"never came to {part}")
        time.sleep(0.02)
    time.sleep(0.3)  # until the cell runs
    below = psutil.Process(child).children(recursive=True)
    begin = time.monotonic()
    os.killpg(child, signal.SIGINT)
    _, status = os.waitpid(child, 0)
    seconds = time.monotonic() - begin
    _, alive = psutil.wait_procs(below, timeout=5)
    return {
        "part": part,
        "code": os.waitstatus_to_exitcode(status),
        "said": said.read_text().splitlines(),
        "seconds": seconds,
        "kernels": len(below),
        "orphans": len(alive),
        "files": sorted(path.name for path in out.iterdir()),
        "printed": books.outputs(out / "audit.ipynb"),
    }


def check(left: dict[str, Any], folder: Path, printed: bool) -> None:
    """130, one sentence, a notebook with all that was done, and nothing else: neither a process nor half a page."""
    part, out = left["part"], folder / left["part"]
    told = [line for line in left["said"] if not line.startswith(BAR)]
    kept = f"labkit: stopped. What it had done until then is in {out / 'audit.ipynb'}."
    assert left["code"] == 130 and told == [kept], left
    assert left["kernels"] == 1 and left["orphans"] == 0 and left["seconds"] < 30, left
    assert "audit.ipynb" in left["files"], left
    check_whole(out)
    if printed:
        assert left["files"] == ["audit.ipynb"], left
        done = books.PARTS[: books.PARTS.index(part)]
        assert all(f"end {name}\n" in left["printed"] for name in done) and f"end {part}" not in left["printed"], left


def cases(folder: Path, notebooks: str, parts: Sequence[str], printed: bool) -> Cases:
    """One for each section, from one process that has read the modules."""
    words = [sys.executable, "-m", __name__, str(folder), notebooks, *parts]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=paths.ROOT) as driver:

        def case() -> None:
            assert driver.stdout is not None
            left = json.loads(driver.stdout.readline())
            check(left, folder, printed)
            raise LabkitError(left["said"][-1])

        for _ in parts:
            yield case


def stops(folder: Path, count: int) -> Cases:
    """A notebook that has the sections of the audit, and waits in one of them."""
    for part in books.PARTS[:count]:
        each = EACH.replace("WAITS", part)
        books.audit(folder / f"{part}-course", each, each + WRITE)
    yield from cases(folder, str(folder / "{part}-course"), books.PARTS[:count], printed=True)


def real_stops(folder: Path, count: int) -> Cases:
    """The audit of shapes-vit: minutes."""
    yield from cases(folder, str(paths.NOTEBOOKS), books.PARTS[:count], printed=False)


if __name__ == "__main__":
    import papermill  # noqa: F401

    import labkit.audit.run  # noqa: F401

    place, notebooks, *parts = sys.argv[1:]
    for name in parts:
        print(json.dumps(stop(Path(place), Path(notebooks.replace("{part}", name)), name)), flush=True)
