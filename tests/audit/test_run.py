"""`labkit report audit` from the command line: what it leaves behind, what it refuses before anything runs."""

from __future__ import annotations

import json
import subprocess
import sys

import jupytext
import nbformat
import pytest

from labkit import cli, paths, report
from labkit.audit import run
from labkit.audit.audit import SECTIONS, read
from labkit.errors import LabkitError

SOURCE = paths.NOTEBOOKS / "reports" / "audit.ipynb"


def test_the_notebook_is_a_pair_and_has_every_section():
    book, source = nbformat.read(SOURCE, as_version=4), jupytext.read(SOURCE.with_suffix(".py"))
    assert [cell.source for cell in book.cells] == [cell.source for cell in source.cells]
    tags = [tag for cell in book.cells for tag in cell.metadata.get("tags", [])]
    assert tags == ["parameters", "section-images", *(f"section-{name}" for name in SECTIONS), "section-page"]


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """What a small audit leaves, and what it says."""
    out = tmp_path_factory.mktemp("a folder with 'quotes' & <b>") / "report"
    command = [sys.executable, "-m", "labkit.cli", "report", "audit", "--fast", "-p", "limit=6", "-p", "batch=1"]
    done = subprocess.run([*command, "--out", out], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out, done


def test_it_leaves_a_page_the_numbers_and_the_notebook_and_says_how_far_it_is(left):
    out, done = left
    assert done.stdout.strip() == str(out / "audit.html")
    assert sorted(path.name for path in out.iterdir()) == ["audit.html", "audit.ipynb", "audit.json"]
    lines = [line.split("] ")[1] for line in done.stderr.splitlines() if line.startswith(("[#", "[-"))]
    assert lines == ["images", *SECTIONS, "page"]
    values = read(out / "audit.json")
    assert values["images"] == 6 and values["fast"] and list(values["sections"]) == list(SECTIONS)
    book = nbformat.read(out / "audit.ipynb", as_version=4)
    assert not [o for cell in book.cells for o in cell.get("outputs", []) if o.output_type == "error"]


def test_nothing_is_overwritten_unasked(left, capsys):
    out, _ = left
    before = (out / "audit.json").read_text()
    assert cli.main(["report", "audit", "--out", str(out)]) == 2
    assert "exists. Add --force" in capsys.readouterr().err
    assert (out / "audit.json").read_text() == before


def test_two_audits_beside_each_other(left, tmp_path, capsys):
    out, _ = left
    other = json.loads((out / "audit.json").read_text())
    other["model"], other["sections"]["tokens"] = "another", {"skipped": "It has no tokens."}
    (tmp_path / "b.json").write_text(json.dumps(other))
    assert cli.main(["report", "compare", str(out / "audit.json"), str(tmp_path / "b.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("shapes-vit" in line and "another" in line for line in lines)
    assert next(line for line in lines if line.startswith("merge 70%")).rstrip().endswith("-")
    other["word"] = "agreement"
    (tmp_path / "b.json").write_text(json.dumps(other))
    assert cli.main(["report", "compare", str(out / "audit.json"), str(tmp_path / "b.json")]) == 2
    assert "audit both with labels, or both without" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-p", "limmit=3"], 'audit has no parameter "limmit". Did you mean "limit"?'),
        (["-p", "limit=many"], "Parameter limit must be a whole number"),
        (["-p", "fast=perhaps"], "Parameter fast must be True or False"),
        (["-p", "limit"], "-p takes name=value"),
        (["--model", "shapes-vti"], 'The model "shapes-vti" is unknown'),
        (["--images", "nowhere"], 'There is no folder "nowhere"'),
        (["--weights", "x.safetensors"], "brings its own weights"),
        (["--model", "vit_tiny_patch16_224", "--weights", "mine.pth"], "not a .safetensors file"),
        (["-p", "tolerance=7"], "tolerance=7; expected the share"),
        (["-p", "limit=-3"], "limit=-3"),
        (["-p", "batch=0"], "batch=0"),
        (["-p", "seed=-1"], "seed=-1; expected a whole number from 0"),
        (["-p", "device=moon"], 'The device "moon" is not here'),
    ],
)
def test_what_cannot_work_is_one_sentence_and_nothing_is_left(tmp_path, capsys, arguments, sentence):
    assert cli.main(["report", "audit", "--out", str(tmp_path / "out"), *arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said and len(said.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_run_that_breaks_leaves_what_it_had_done_and_says_where(tmp_path, monkeypatch):
    code = ["a = 1", "print(a)", "raise OSError(28, 'No space left on device')"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in code])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, tmp_path / "broken.ipynb")
    told = []
    with pytest.raises(
        LabkitError, match=r"broken stopped in cell \[3\] \(OSError: .*No space left.* is in .*left.ipynb"
    ):
        report.execute(
            tmp_path / "broken.ipynb", tmp_path / "left.ipynb", {}, tmp_path, lambda done, of, tags: told.append(done)
        )
    kept = nbformat.read(tmp_path / "left.ipynb", as_version=4)
    assert any(o.get("text") == "1\n" for cell in kept.cells for o in cell.get("outputs", []))
    assert told == [0, 1, 2]


@pytest.mark.parametrize("section", [0, 1, 2])
def test_ctrl_c_in_any_section_leaves_what_was_done(tmp_path, capsys, section):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(f"print({i})") for i in range(3)])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, tmp_path / "slow.ipynb")

    def stop(done: int, of: int, tags: list[str]) -> None:
        if done == section:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report.execute(tmp_path / "slow.ipynb", tmp_path / "left.ipynb", {}, tmp_path, stop)
    assert "Stopped. What slow had done until then is in" in capsys.readouterr().err
    kept = nbformat.read(tmp_path / "left.ipynb", as_version=4)
    printed = [o["text"] for cell in kept.cells for o in cell.get("outputs", []) if o.get("name") == "stdout"]
    assert printed == [f"{i}\n" for i in range(section)]


def test_the_bar_moves_in_a_terminal_only(capsys, monkeypatch):
    bar = run.Bar()
    bar(0, 4, ["section-what"])
    bar(2, 4, [])
    bar(3, 4, ["section-page"])
    assert capsys.readouterr().err.splitlines() == [f"[{'-' * 24}] what", f"[{'#' * 18}{'-' * 6}] page"]
    bar.moves = True
    bar(2, 4, ["section-tokens"])
    moving = capsys.readouterr().err
    assert moving.startswith("\r[") and not moving.endswith("\n")
