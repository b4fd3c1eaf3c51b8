"""`labkit report audit` from the command line: what it leaves behind, what it refuses before anything runs."""

from __future__ import annotations

import json
import subprocess
import sys

import jupytext
import nbformat
import pytest

from labkit import cli, paths
from labkit.audit import run
from labkit.audit.audit import SECTIONS, read

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
    sentence = read(out / "audit.json")["recommendation"]["sentence"]
    assert done.stdout.splitlines() == [sentence, str(out / "audit.html")]
    assert sorted(path.name for path in out.iterdir()) == ["audit.html", "audit.ipynb", "audit.json"]
    assert all(line.startswith(("[#", "[-")) for line in done.stderr.splitlines()), "nothing but the bar"
    assert [line.split("] ")[1] for line in done.stderr.splitlines()] == ["images", *SECTIONS, "page"]
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
        (["-p", "limit=99999999999999"], "limit=99999999999999; expected a number of images, 100,000 at most"),
        (["-p", "batch=1000000"], "batch=1000000; expected a number of images, 10,000 at most"),
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


def test_ctrl_c_before_anything_runs_is_one_sentence(tmp_path, monkeypatch, capsys):
    def stop(chosen: dict) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "refuse", stop)
    assert cli.main(["report", "audit", "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "labkit: stopped.\n" and not (tmp_path / "out").exists()


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
