"""Cached measurements that say where they come from, and the intervals that say how far to trust them.

A number that takes longer than a lesson is one small JSON in `data/results/`: the values, and the command,
seed, versions, machine, day and commit that made them. `load(name).caption()` is the sentence a figure shows.
"""

from __future__ import annotations

import datetime
import json
import math
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from importlib import metadata
from pathlib import Path
from typing import Any

import labkit
from labkit import files, machine, paths
from labkit.errors import LabkitError, closest
from labkit.intervals import bootstrap, paired_difference, wilson

__all__ = ["Result", "bootstrap", "load", "names", "paired_difference", "save", "wilson"]

SCHEMA = 1
REPOSITORY = Path(__file__).resolve().parents[1]
ABSOLUTE_PATH = re.compile(r"""(^|[\s"'=])(/[\w.-]+/|[A-Za-z]:[\\/])""")


@dataclass(frozen=True)
class Result:
    """One measurement: `result["accuracy"]` reads a value, `.provenance` says where it comes from."""

    name: str
    values: dict[str, Any]
    provenance: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        if key not in self.values:
            raise LabkitError(f'The result "{self.name}" has no value "{key}".{closest(key, self.values)}')
        return self.values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def __len__(self) -> int:
        return len(self.values)

    def caption(self) -> str:
        """One sentence: when, with which command and seed, on what."""
        p, where = self.provenance, self.provenance["machine"]
        seed = "" if p["seed"] is None else f", seed {p['seed']}"
        cores = f"{where['cores']} core{'s' if where['cores'] != 1 else ''} of {where['cpu']}"
        gpu = f" with {where['gpu']}" if where["gpu"] else ""
        software = f"torch {p['versions']['torch']}" + (f"; ranges: {p['interval']}" if p["interval"] else "")
        return f"Measured {p['date']} with `{p['command']}`{seed}, on {cores}{gpu}, {software}."

    def html(self) -> str:
        """The caption; the pointer resting on it shows the rest of the provenance."""
        p = self.provenance
        versions = ", ".join(f"{package} {version or 'unknown'}" for package, version in p["versions"].items())
        commit = (p["commit"] or "unknown")[:12] + (" with local changes" if p["dirty"] else "")
        title = f"data/results/{self.name}.json; {versions}; commit {commit}"
        caption = re.sub(r"`(.+?)`", r"<code>\1</code>", escape(self.caption()))
        return f'<small title="{escape(title)}">{caption}</small>'

    _repr_html_ = html


def save(
    name: str,
    values: Mapping[str, Any],
    *,
    command: str,
    seed: int | None = None,
    interval: str | None = None,
) -> Result:
    """Write data/results/NAME.json; `interval` says what the ranges in `values` are, as in "95 % Wilson".

    Numbers keep six significant digits, so that the file stays small and its changes readable.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name):
        raise LabkitError(f"The result name {name!r} is not usable; take small letters, digits, - and _.")
    if not isinstance(interval, str | None):
        raise LabkitError(f'interval={interval!r} is not a sentence; say "95 % Wilson" and put the ranges into values.')
    content = {
        "schema": SCHEMA,
        "values": _plain(values, "values"),
        "provenance": _plain(_provenance(command, seed, interval), "provenance"),
    }
    paths.RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    files.replace(paths.RESULTS / f"{name}.json", text)
    return Result(name, content["values"], content["provenance"])


def load(name: str) -> Result:
    """The measurement called `name`."""
    path = paths.RESULTS / f"{name}.json"
    if not path.is_file():
        raise LabkitError(f'There is no result "{name}" in data/results.{closest(name, names())}')
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        result, schema = Result(name, content["values"], content["provenance"]), content["schema"]
        result.html()  # a piece of the provenance that is missing shows here
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"data/results/{name}.json is damaged ({type(error).__name__}: {error})"
        raise LabkitError(f"{problem}; restore it with git, or measure it again.") from error
    if schema != SCHEMA:
        raise LabkitError(f"data/results/{name}.json has schema {schema}, expected {SCHEMA}; measure it again.")
    return result


def names() -> list[str]:
    """The measurements there are."""
    return sorted(path.stem for path in paths.RESULTS.glob("[!.]*.json"))


def _plain(value: Any, where: str) -> Any:
    """JSON's own types, rounded; whatever another machine could not read is refused."""
    if hasattr(value, "tolist"):  # a tensor, or an array or a scalar of numpy
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(part, f"{where}.{key}") for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part, f"{where}[{i}]") for i, part in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise LabkitError(f"{where} is {value}; a result holds finite numbers, and None for a missing one.")
        return float(f"{value:.6g}")
    if isinstance(value, str) and ABSOLUTE_PATH.search(value):
        raise LabkitError(f"{where} holds an absolute path ({value!r}); write it relative to the repository.")
    if value is None or isinstance(value, str | int):
        return value
    raise LabkitError(f"{where} is a {type(value).__name__}; a result holds numbers, strings, lists and dicts.")


def _provenance(command: str, seed: int | None, interval: str | None) -> dict[str, Any]:
    versions = {package: _version(package) for package in ("torch", "timm", "numpy")}
    versions |= {"python": platform.python_version(), "labkit": getattr(labkit, "__version__", None)}
    commit = _git("rev-parse", "HEAD")
    return {
        "command": command,
        "seed": seed,
        "interval": interval,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": versions,
        "machine": machine.describe(),
        "commit": commit,
        # Results do not make a tree dirty: a bench that writes two of them is not changed by the first.
        "dirty": bool(_git("status", "--porcelain", "--", ".", ":!data/results")) if commit else None,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """What git says about the repository that holds this package; None without git or outside a clone."""
    if not (REPOSITORY / ".git").exists():
        return None
    try:
        run = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None
