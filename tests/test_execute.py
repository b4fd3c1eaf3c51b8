"""Notebooks run to their end or stopped on the way: what is kept is whole, and what is said is one sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from labkit import execute, files
from labkit.errors import LabkitError
from tests.hostile import books


@pytest.fixture
def run(tmp_path):
    """A function that runs a notebook of these cells; what it printed is in `left.ipynb`."""

    def call(*codes: str, told=None, folder=tmp_path / "a folder {0} of {braces}") -> None:
        source = books.write(folder / "book.ipynb", [("", code) for code in codes])
        execute.execute(source, tmp_path / "left.ipynb", {}, tmp_path, told)

    return call


def test_all_of_it_is_kept_and_nothing_is_said_beside(run, tmp_path, silence):
    told = []
    run("a = 1", "print(a)", told=lambda done, of, tags: told.append((done, of)))
    assert books.outputs(tmp_path / "left.ipynb") == "1\n" and told == [(0, 2), (1, 2)]
    silence()


def test_what_a_kernel_says_of_its_own_end_is_not_heard(run, silence):
    cell = """
import time
handlers = get_ipython().kernel.shell_handlers
answer = handlers["kernel_info_request"]

async def slow(*message):
    await answer(*message)
    time.sleep(0.5)

handlers["kernel_info_request"] = slow
"""
    run(cell)
    silence()


@pytest.mark.parametrize(("longest", "transport"), [(execute.LONGEST, "ipc"), (0, "tcp")])
def test_a_kernel_talks_through_files_and_where_they_cannot_be_through_ports(
    run, tmp_path, monkeypatch, silence, longest, transport
):
    monkeypatch.setattr(execute, "LONGEST", longest)
    run("from ipykernel.connect import get_connection_info; print(get_connection_info(unpack=True)['transport'])")
    assert books.outputs(tmp_path / "left.ipynb") == f"{transport}\n"
    silence()


@pytest.mark.skipif(os.name != "posix", reason="there are no such files elsewhere")
def test_the_files_of_a_kernel_are_gone_when_it_is():
    with execute.private() as settings:
        folder = Path(settings.KernelManager.ip).parent
        (folder / "kernel-1").touch()
    assert not folder.exists()


def test_a_cell_that_breaks_is_named(run, tmp_path):
    full = "raise OSError(28, 'No space left on device')"
    with pytest.raises(
        LabkitError, match=r"book stopped in cell \[2\] \(OSError: .*No space left.* is in .*left.ipynb"
    ):
        run("print(1)", full, "print(2)")
    assert books.outputs(tmp_path / "left.ipynb") == "1\n"


def test_a_process_that_dies_is_a_sentence(run, tmp_path, silence):
    with pytest.raises(LabkitError, match=r"The process that ran book died, .* memory .* is in .*left.ipynb"):
        run("print(1)", "import os; os.kill(os.getpid(), 9)")
    assert books.outputs(tmp_path / "left.ipynb") == "1\n"
    silence()


def test_a_kernel_that_cannot_begin_is_a_sentence(run, tmp_path, monkeypatch, silence):
    (tmp_path / "ipykernel_launcher.py").write_text("raise SystemExit('half an installation')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(
        LabkitError, match=r"stopped before it had run anything .*; run .* -m ipykernel_launcher to see"
    ):
        run("print(1)")
    silence()


def test_ctrl_c_says_where_it_is(run, tmp_path):
    def stop(done: int, of: int, tags: list[str]) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"stopped. What it had done until then is in .*left.ipynb"):
        run("print(1)", "print(2)", told=stop)
    assert books.outputs(tmp_path / "left.ipynb") == "1\n"


@pytest.mark.parametrize(("room", "kept"), [(0, None), (2, "1\n")])
def test_a_full_disk_leaves_the_last_whole_notebook(run, tmp_path, monkeypatch, room, kept):
    """For machines where no small disk can be mounted: see tests/hostile/disks.py."""
    write, times = files.replace, []

    def full(path, text):
        times.append(path)
        if len(times) > room:
            raise OSError(28, "No space left on device")
        return write(path, text)

    monkeypatch.setattr(files, "replace", full)
    end = r"is in .*left.ipynb" if kept else "Nothing was kept"
    with pytest.raises(LabkitError, match=rf"cannot be written \(No space left on device\); choose another.* {end}"):
        run("print(1)", "print(2)")
    assert (tmp_path / "left.ipynb").exists() == (kept is not None)
    assert kept is None or books.outputs(tmp_path / "left.ipynb") == kept
