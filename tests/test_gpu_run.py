"""`make test-gpu`, rehearsed: the runner is a stand-in that leaves the report which nbval would leave."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch

from labkit import paths, results
from tests.tools import tool

PASSED = '<testcase name="Cell 0"/>'
FAILED = '<testcase name="Cell 1"><failure message="mismatch"/></testcase>'
ERROR = '<testcase name="Cell 2"><error message="no kernel"/></testcase>'
SKIPPED = '<testcase name="Cell 3"><skipped/></testcase>'


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """tools/gpu.py where there seems to be a GPU, in a folder of its own with two lessons."""
    module = tool("gpu")
    (tmp_path / "notebooks").mkdir()
    for name in ("00_one", "01_two"):
        (tmp_path / "notebooks" / f"{name}.ipynb").write_text("{}")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "OUT", tmp_path / "build" / "gpu")
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU")
    return module


def runner(*cells: str):
    def run(lesson: Path, report: Path) -> str:
        report.write_text(f"<testsuites><testsuite>{''.join(cells)}</testsuite></testsuites>")
        return f"what nbval said about {lesson.stem}"

    return run


def test_without_cuda_it_refuses_in_one_sentence():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = subprocess.run([sys.executable, "tools/gpu.py"], cwd=paths.ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("There is no CUDA device here") and done.stderr.count("\n") == 1


def test_a_run_of_all_lessons_is_recorded_with_the_device_the_versions_and_the_commit(gpu, monkeypatch, capsys):
    monkeypatch.setenv("LABKIT_COMMIT", "a" * 40)
    assert gpu.main([], runner(PASSED, SKIPPED)) == 0
    saved = results.load("gpu")
    assert saved["device"] == "a GPU" and saved["commit"] == "a" * 40
    row = {"passed": 1, "failed": 0, "failed_cells": []}
    assert saved["lessons"] == {"00_one": row, "01_two": row}
    assert saved.provenance["machine"]["gpu"] == "a GPU" and saved.provenance["versions"]["torch"]
    assert "said" not in capsys.readouterr().out


def test_what_differs_is_counted_named_and_printed_and_fails_the_run(gpu, capsys):
    assert gpu.main([], runner(PASSED, FAILED, ERROR)) == 1
    assert results.load("gpu")["lessons"]["01_two"] == {"passed": 1, "failed": 2, "failed_cells": ["Cell 1", "Cell 2"]}
    out = capsys.readouterr().out
    assert "00_one: 1 cells agree, 2 do not" in out and "what nbval said about 01_two" in out


def test_a_lesson_that_leaves_no_report_fails_even_where_an_older_one_lies(gpu):
    gpu.main([], runner(PASSED))
    assert gpu.main([], lambda *_: "the kernel never came up") == 1


def test_some_lessons_are_run_but_not_recorded_and_an_unknown_one_is_refused(gpu, capsys):
    assert gpu.main(["01_two"], runner(PASSED)) == 0
    assert "00_one" not in capsys.readouterr().out
    assert gpu.main(["02_three"], runner(PASSED)) == 2
    assert "There is no lesson 02_three; there are: 00_one, 01_two." in capsys.readouterr().err
    assert results.names() == []


def test_the_real_runner_tells_the_kernel_the_device_and_sees_a_difference(tmp_path, monkeypatch):
    """No GPU is needed: the cells only say what they were told."""
    cells = [
        nbformat.v4.new_code_cell(
            "import os\nprint(os.environ['LABKIT_DEVICE'])",
            execution_count=1,
            outputs=[nbformat.v4.new_output("stream", text=f"{device}\n")],
        )
        for device in ("cuda", "cpu")
    ]
    lesson, report = tmp_path / "00_one.ipynb", tmp_path / "report.xml"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), lesson)
    gpu = tool("gpu")
    said = gpu.compare(lesson, report)
    assert gpu.outcome(report) == {"passed": 1, "failed": 1, "failed_cells": ["Cell 1"]}, said
