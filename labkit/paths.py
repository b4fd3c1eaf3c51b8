"""Where labkit finds its files: in the checkout, or in the wheel when it was installed without one.

`LABKIT_DATA` and `LABKIT_CACHE` name other folders. Nothing here reads a file or needs one to exist.
"""

from __future__ import annotations

import os
from pathlib import Path

from labkit.errors import LabkitError

_PACKAGE = Path(__file__).resolve().parent
ROOT = _PACKAGE.parent  # the clone, when labkit runs from one


def _data() -> Path:
    if chosen := os.environ.get("LABKIT_DATA"):
        return Path(chosen).expanduser()
    in_wheel = _PACKAGE / "_data"
    return in_wheel if in_wheel.is_dir() else ROOT / "data"


def _notebooks() -> Path:
    """The course is in no wheel: beside the package, or else below (or in) the current folder."""
    places = [ROOT / "notebooks", Path.cwd() / "notebooks", Path.cwd()]
    return next((p for p in places if (p / "00_start_here.ipynb").is_file()), places[0])


DATA = _data()
CHECKPOINTS = DATA / "checkpoints"
RESULTS = DATA / "results"
NOTEBOOKS = _notebooks()
CACHE = Path(os.environ.get("LABKIT_CACHE", "~/.labkit")).expanduser()


def need(folder: Path) -> Path:
    """`folder` itself, or one sentence when it is not there."""
    if folder.is_dir():
        return folder
    other = ", or set LABKIT_DATA to the data folder of one" if folder.is_relative_to(DATA) else ""
    raise LabkitError(f"labkit expects the folder {folder}, and it is not there. Run inside a clone of labkit{other}.")
