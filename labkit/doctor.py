"""Is this machine ready? One row per thing that labkit needs, each with its remedy when it is missing.

`examine()` looks, `table(rows)` shows, `healthy(rows)` decides; `labkit doctor` is these three in a row.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
import textwrap
import webbrowser
from dataclasses import dataclass
from pathlib import Path

from labkit import paths
from labkit.errors import LabkitError

OK, WARN, BAD = "ok", "warn", "bad"
TESTED = (3, 11), (3, 13)
REINSTALL = 'python -m pip install --force-reinstall "torch>=2.11,!=2.13.0" "torchvision>=0.26"'


@dataclass(frozen=True)
class Row:
    name: str
    status: str  # OK, WARN (labkit works, something is missing) or BAD (labkit does not work)
    found: str
    advice: str = ""  # what to do, empty when nothing is to be done


def examine() -> list[Row]:
    """Looks at everything and changes nothing."""
    return [
        python(),
        *packages(),
        torch_pair(),
        device(),
        memory(),
        disk(),
        *checkpoints(),
        writable("notebooks", paths.NOTEBOOKS),
        writable("cache", paths.CACHE),
        kernel(),
        browser(),
    ]


def healthy(rows: list[Row]) -> bool:
    return all(row.status != BAD for row in rows)


def table(rows: list[Row]) -> str:
    """The rows as text, a remedy under each row that needs one, the verdict last."""
    lines = []
    for row in rows:
        lines.append(f"{row.status:<5} {row.name:<24} {row.found}")
        lines += textwrap.wrap(row.advice, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    count = {status: sum(row.status == status for row in rows) for status in (OK, WARN, BAD)}
    verdict = "is ready." if healthy(rows) else "is not ready: see the rows marked bad."
    return "\n".join([*lines, "", f"This machine {verdict} {count[OK]} ok, {count[WARN]} warn, {count[BAD]} bad."])


def python() -> Row:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    here, advice = sys.version_info[:2], "Set labkit up with Python 3.11, 3.12 or 3.13."
    if here < TESTED[0]:
        return Row("Python", BAD, found, advice)
    if here > TESTED[1]:
        return Row("Python", WARN, f"{found}, newer than was tested", f"If something fails: {advice}")
    return Row("Python", OK, found)


def requirements() -> list[str]:
    """What labkit asks for: requirements.txt of the checkout, or what the installed package declares."""
    file = paths.ROOT / "requirements.txt"
    if file.is_file():
        lines = (line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
        return [line for line in lines if line]
    try:
        declared = importlib.metadata.requires("labkit") or []
    except importlib.metadata.PackageNotFoundError:
        raise LabkitError("labkit is not installed. In its clone, run: python -m pip install .") from None
    return [line for line in declared if "extra ==" not in line]


def packages() -> list[Row]:
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return [Row("packaging", BAD, "missing", "Run: python -m pip install -r requirements.txt")]
    rows = []
    for requirement in map(Requirement, requirements()):
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        if version and requirement.specifier.contains(version, prereleases=True):
            rows.append(Row(requirement.name, OK, version))
        else:
            found = f"{version or 'missing'}, needs {requirement.specifier}"
            remedy = f'Run: python -m pip install --upgrade "{requirement}"'
            rows.append(Row(requirement.name, BAD, found, remedy))
    return rows


def torch_pair() -> Row:
    """torchvision is compiled against one torch; a mismatch shows in its first compiled operation."""
    name = "torch and torchvision"
    try:
        torch, torchvision = importlib.import_module("torch"), importlib.import_module("torchvision")
        boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.9]])
        kept = torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.5).tolist()
        if kept != [0]:
            raise RuntimeError(f"of two boxes that overlap torchvision kept {kept}, not [0]")
    except Exception as error:  # a broken binary can raise anything, and the doctor must report it
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return Row(name, BAD, f"do not work together: {reason[:120]}", f"Run: {REINSTALL}")
    return Row(name, OK, f"{torch.__version__} and {torchvision.__version__} work together")


def device() -> Row:
    try:
        machine, torch = importlib.import_module("labkit.machine"), importlib.import_module("torch")
    except Exception:  # as above; the row of the pair says why
        return Row("device", WARN, f"{os.cpu_count()} threads; torch cannot be asked for more", "See above.")
    cpu = f"{machine.cpu()}, {machine.cores()} cores, torch uses {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        return Row("device", OK, f"{cpu}; GPU {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB")
    apple = torch.backends.mps.is_available()
    return Row("device", OK, f"{cpu}; {'Apple GPU (MPS)' if apple else 'no GPU, none is needed'}")


def memory() -> Row:
    try:
        total = importlib.import_module("psutil").virtual_memory().total
    except ImportError:
        return Row("memory", WARN, "unknown: psutil is missing", "See the row of psutil.")
    limit = Path("/sys/fs/cgroup/memory.max")  # a container may own less than the machine has
    text = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
    total = min(total, int(text)) if text.isdigit() else total
    advice = "" if total > 1.9 * 2**30 else "A lesson needs 1 GiB: close what else runs."
    return Row("memory", WARN if advice else OK, f"{total / 2**30:.1f} GiB", advice)


def disk() -> Row:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    advice = "" if free >= 1 else "Free some space: a report or a training run may need up to 1 GiB."
    return Row("free disk", WARN if advice else OK, f"{free:.1f} GiB", advice)


def checkpoints() -> list[Row]:
    """Every shipped checkpoint against the sha256 in its model card."""
    files = sorted(paths.CHECKPOINTS.glob("*.safetensors"))
    if not files:
        advice = "Run inside a clone of labkit, or set LABKIT_DATA to the clone's data folder."
        return [Row("checkpoints", WARN, f"none in {paths.CHECKPOINTS}", advice)]
    return [checkpoint(file) for file in files]


def checkpoint(file: Path) -> Row:
    name, card = f"checkpoint {file.stem}", file.with_suffix(".json")
    back = f"Get it back with: git checkout -- data/checkpoints/{file.stem}.*"
    try:
        expected = str(json.loads(card.read_text(encoding="utf-8"))["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return Row(name, BAD, f"its model card {card.name} is missing or has no sha256", back)
    with file.open("rb") as stream:
        actual = hashlib.file_digest(stream, "sha256").hexdigest()
    if actual != expected:
        return Row(name, BAD, f"sha256 {actual[:12]}, its card says {expected[:12]}", back)
    return Row(name, OK, f"sha256 {actual[:12]}, as its card says")


def writable(name: str, folder: Path) -> Row:
    """Tried on the nearest folder that exists, so that looking creates nothing."""
    name = f"write access, {name}"
    nearest = next(p for p in (folder, *folder.parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return Row(name, OK, str(folder))
    except OSError as error:
        advice = f"Make {nearest} a folder that you may write to, or work in a copy of labkit that is yours."
        return Row(name, BAD, f"{folder}: {error.strerror}", advice)


def kernel() -> Row:
    try:
        specs = importlib.import_module("jupyter_client.kernelspec").KernelSpecManager().find_kernel_specs()
    except ImportError:
        specs = {}
    if "python3" in specs:
        return Row("notebook kernel", OK, "python3")
    return Row("notebook kernel", BAD, "no python3", "Run: python -m ipykernel install --sys-prefix")


def browser() -> Row:
    try:
        webbrowser.get()
    except webbrowser.Error:
        advice = "Use `make lab HEADLESS=1` and open the printed URL, or open the lessons in another editor."
        return Row("browser", WARN, "none found", advice)
    return Row("browser", OK, "found")
