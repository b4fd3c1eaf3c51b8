"""A pytest plugin beside nbval: every cell of a lesson, and the lesson as a whole, keeps its seconds and its memory.

`pytest --nbval -p tests.lesson_budget` reads both from the kernel's process while nbval runs and compares the cells;
with `-n2 --dist=loadfile`, too: what a lesson took travels with its reports and stands in the one summary. Kernels that
begin at a time keep out of each other's way.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import nbval.kernel
import pytest
from jupyter_client.manager import KernelManager

from labkit.execute import private

SECONDS, CELL_SECONDS, MEMORY = 60, 20, 1e9  # a free Binder machine guarantees 1 GB

spent: dict[Path, float] = {}  # seconds of each lesson so far, in the process that runs it
taken: dict[str, tuple[float, float]] = {}  # seconds and peak bytes of each lesson, in the process that reports

if "PYTEST_XDIST_WORKER" in os.environ:  # two kernels at a time: neither may take all cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_memory(pid: int) -> float:
    """Bytes, without mapped library files: the system drops them when memory is short."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines())
    return 1024 * (int(status["VmHWM"].split()[0]) - int(status["RssFile"].split()[0]))


def pytest_configure(config: pytest.Config) -> None:
    """nbval asks nobody for settings; of kernels that begin at a time, one may find its port taken."""
    stack = contextlib.ExitStack()
    config.add_cleanup(stack.close)
    manager = functools.partial(KernelManager, config=stack.enter_context(private()))
    stack.enter_context(pytest.MonkeyPatch.context()).setattr(nbval.kernel, "KernelManager", manager)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    kernel = getattr(item.parent, "kernel", None)
    if kernel is None or not Path("/proc/self/stat").exists():
        return (yield)
    pid = kernel.km.provisioner.pid
    cpu, wall = processor_seconds(pid), time.monotonic()
    result = yield
    # On a busy machine a lesson waits for others: then the processor time it used counts, not the wait.
    seconds = min(processor_seconds(pid) - cpu, time.monotonic() - wall)
    spent[item.path] = spent.get(item.path, 0.0) + seconds
    peak = peak_memory(pid)
    item.user_properties.append(("lesson", [item.path.stem, spent[item.path], peak]))
    assert seconds <= CELL_SECONDS, f"this cell takes {seconds:.1f} s; a cell has {CELL_SECONDS} s"
    assert spent[item.path] <= SECONDS, f"with this cell the lesson takes {spent[item.path]:.1f} s; it has {SECONDS} s"
    assert peak <= MEMORY, f"with this cell the lesson takes {peak / 1e6:.0f} MB; it has {MEMORY / 1e6:.0f} MB"
    return result


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for kind, value in report.user_properties if report.when == "call" else ():
        if kind == "lesson" and isinstance(value, list):
            name, seconds, peak = value  # the last cell has the last word
            taken[name] = seconds, peak


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for name, (seconds, peak) in sorted(taken.items()):
        terminalreporter.write_line(f"{name}: {seconds:.0f} s, {peak / 1e6:.0f} MB")
