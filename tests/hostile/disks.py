"""A disk that is full: before the report, in the middle of the notebook, of the numbers, of the page."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from labkit.errors import LabkitError
from tests.hostile import Case, Cases, Impossible, books, command
from tests.hostile.tables import AUDIT as WHOLE

SIZE = 2048  # kB
# The report that is asked for, and kB that are free when it begins: with the last of them it is made.
AUDIT = (("audit", "--fast", "-p", "limit=2"), (0, 24, 48, 72, 136))  # notebook 27, numbers 30, page 45
LESSON = (("lesson", books.LESSON), (0, 200, SIZE))  # notebook 21, page 300
PRINT = 'print("{part}" * 300)'
WRITE = f"""
import json
from pathlib import Path
from labkit import files
print("{{part}}" * 300)
told = {WHOLE | {"sections": {}}} | dict(notes=["7" * 30_000])
files.replace(Path(out) / "audit.json", json.dumps(told))
files.replace(Path(out) / "audit.html", "<html>" + "p" * 45_000 + "</html>")
"""


@contextlib.contextmanager
def small_disk(at: Path) -> Iterator[Path]:
    at.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}k", "labkit-hostile", str(at)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Impossible(f"no small disk: {error}") from None
    if done.returncode:
        raise Impossible(f"no small disk: {done.stderr.strip() or 'mount failed'}")
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def check_whole(out: Path) -> None:
    """Whatever is there is whole, and nothing else is there."""
    left = {path.name: path for path in out.iterdir()} if out.exists() else {}
    assert set(left) <= {f"{name}.{kind}" for name in ("audit", books.LESSON) for kind in ("ipynb", "html", "json")}
    for name, path in left.items():
        if name.endswith(".ipynb"):
            books.outputs(path)
        elif name.endswith(".json"):
            json.loads(path.read_text())
        else:
            assert path.read_text().rstrip().endswith("</html>")


def disks(folder: Path, count: int) -> Cases:
    course = books.audit(folder / "course", PRINT, WRITE)
    books.write(course / f"{books.LESSON}.ipynb", [("parameters", "seed = 0"), ("", 'print("a word" * 3000)')])
    with small_disk(folder / "disk") as disk, books.course(course):

        def case(words: tuple[str, ...], free: int, enough: int) -> Case:
            def call() -> None:
                out = disk / "report"
                shutil.rmtree(out, ignore_errors=True)
                (disk / "ballast").write_bytes(bytes(1024 * (SIZE - free)))
                try:
                    command("report", *words, "--out", out)
                except LabkitError as error:
                    assert free < enough and "No space left" in str(error), error
                    raise
                finally:
                    check_whole(out)
                assert free == enough

            return call

        for words, room in (AUDIT, LESSON):
            yield from (case(words, free, room[-1]) for free in room)
