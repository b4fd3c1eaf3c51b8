"""The command line: what it prints, its exit codes, and that a wrong call costs one line and no work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from labkit import cli, doctor, paths, report
from labkit.errors import LabkitError

PARAMETERS = 'seed = 0\nfast = True\nkeep = 0.5\nmodel = "shapes-vit"'
BODY = 'assert seed < 5, "the seed is too big"\nprint("ran with", seed, fast, keep, model)'
WIDGET = 'import ipywidgets\nipywidgets.HTML("a static twin")'


def write_lesson(path: Path, *sources: str) -> None:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": spec}), path)


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course of one small lesson; the current folder is the one above it."""
    folder = tmp_path / "notebooks"
    write_lesson(folder / "00_start_here.ipynb", PARAMETERS, BODY, WIDGET)
    monkeypatch.setattr(paths, "NOTEBOOKS", folder)
    monkeypatch.chdir(tmp_path)
    return folder


def outputs(notebook: Path) -> str:
    return json.dumps([cell.get("outputs", []) for cell in nbformat.read(notebook, 4).cells])


@pytest.mark.parametrize("argument", ["--help", "version"])
def test_a_quick_answer_imports_no_torch(argument):
    code = (
        "import sys; from labkit import cli\n"
        f"try: cli.main([{argument!r}])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "labkit" in done.stdout


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (
            ["docter"],
            'There is no "labkit docter". Did you mean "doctor"? Known: doctor, report, models, version.',
        ),
        (["report", "leson"], 'There is no "labkit report leson". Did you mean "lesson"?'),
        ([], "The following arguments are required: COMMAND. See: labkit --help"),
        (["doctor", "--jsn"], "Unrecognized arguments: --jsn."),
        (
            ["report", "lesson", "00_start_here", "-p", "seed"],
            '-p takes name=value, as in -p seed=1; "seed" is not',
        ),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_2(argv, sentence, capsys):
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("labkit: ") and sentence in err and err.count("\n") == 1


def test_an_error_of_labkit_is_one_line_and_a_mistake_of_ours_is_not_hidden(monkeypatch, capsys):
    def fail(error):
        raise error

    monkeypatch.setattr(doctor, "examine", lambda: fail(LabkitError("one sentence.")))
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err == "labkit: one sentence.\n"
    monkeypatch.setattr(doctor, "examine", lambda: fail(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])


def test_doctor_tells_by_its_exit_code(monkeypatch, capsys):
    rows = [doctor.Row("disk", doctor.WARN, "full", "Free some.")]
    monkeypatch.setattr(doctor, "examine", lambda: rows)
    assert cli.main(["doctor"]) == 0
    assert "This machine is ready." in capsys.readouterr().out
    rows.append(doctor.Row("torch", doctor.BAD, "missing", "Install it."))
    assert cli.main(["doctor", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told[1] == {"name": "torch", "status": "bad", "found": "missing", "advice": "Install it."}


def test_models_lists_what_the_zoo_knows(capsys):
    assert cli.main(["models"]) == 0
    assert "shapes-vit" in capsys.readouterr().out.split()


def test_a_lesson_report_leaves_a_notebook_and_a_page_that_fetches_nothing(course, capsys):
    assert cli.main(["report", "lesson", "00_start_here", "-p", "seed=3", "-p", "keep=1"]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == Path("report/00_start_here.html")
    assert "ran with 3 True 1 shapes-vit" in outputs(page.with_suffix(".ipynb"))
    html = page.read_text(encoding="utf-8")
    assert "ran with 3 True 1 shapes-vit" in html
    assert "a static twin" in html
    assert not [tag for tag in ("<script src", "<link", "import(", "cdnjs", "unpkg", "jsdelivr") if tag in html]
    assert "ran with" not in outputs(course / "00_start_here.ipynb")

    assert cli.main(["report", "lesson", "00_start_here"]) == 2
    assert "exists. Add --force" in capsys.readouterr().err


def test_a_lesson_that_stops_leaves_what_it_did_and_no_old_page(course, capsys):
    Path("report").mkdir()
    Path("report/00_start_here.html").write_text("of an earlier run")
    assert cli.main(["report", "lesson", "00_start_here", "-p", "seed=7", "--force"]) == 2
    err = capsys.readouterr().err
    told = "(AssertionError: the seed is too big). What it had done until then is in report/00_start_here.ipynb."
    assert told in err
    assert "the seed is too big" in outputs(Path("report/00_start_here.ipynb"))
    assert not Path("report/00_start_here.html").exists()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"sed": "1"},
            'has no parameter "sed". Did you mean "seed"? It has: seed, fast, keep, model. Nothing was run.',
        ),
        ({"seed": "one"}, 'Parameter seed must be a whole number, as its default 0; "one" is not.'),
        ({"seed": "True"}, "Parameter seed must be a whole number"),
        ({"fast": "3"}, "Parameter fast must be True or False"),
        ({"keep": "half"}, "Parameter keep must be a number"),
    ],
)
def test_a_wrong_parameter_runs_nothing(course, values, sentence):
    with pytest.raises(LabkitError) as error:
        report.lesson("00_start_here", values)
    assert sentence in str(error.value)
    assert not Path("report").exists()


def test_parameters_take_the_kind_of_their_defaults(course):
    typed = {"seed": "4", "fast": "false", "keep": "1", "model": "7"}
    assert report.parameters(course / "00_start_here.ipynb", typed) == {
        "seed": 4,
        "fast": False,
        "keep": 1,
        "model": "7",
    }


@pytest.mark.parametrize("name", ["0", "00", "00_start_here"])
def test_a_lesson_is_known_by_its_number_too(course, name):
    assert report.find(name) == course / "00_start_here.ipynb"


@pytest.mark.parametrize("name", ["1", "000", "-0", "", "*"])
def test_a_number_without_a_lesson_is_refused(course, name):
    with pytest.raises(LabkitError, match="There is no lesson"):
        report.find(name)


def test_a_report_names_the_nearest_lesson_and_never_overwrites_one(course, tmp_path):
    with pytest.raises(LabkitError, match=r'no lesson "00_start"[.] Did you mean "00_start_here"'):
        report.lesson("00_start", {})
    with pytest.raises(LabkitError, match="would overwrite the lesson itself"):
        report.lesson("00_start_here", {}, out=course, force=True)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LabkitError, match="cannot be written to"):
        report.lesson("00_start_here", {}, out=tmp_path / "file" / "report")


def test_without_a_course_there_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path / "none")
    with pytest.raises(LabkitError, match=r"none, and it is not there[.] Run inside a clone of labkit"):
        report.lesson("00_start_here", {})


# --- parameters from a file -------------------------------------------------------------------------------------
@pytest.fixture
def best(course):
    """A file of parameters in the current folder."""

    def write(text: str) -> str:
        Path("best.json").write_text(text)
        return "best.json"

    return write


def test_a_file_of_parameters_is_run_and_what_is_typed_wins(course, best, capsys):
    file = best('{"seed": 4, "keep": 1, "fast": false, "model": "mine"}')
    call = ["report", "lesson", "00_start_here", "--parameters", file, "-p", "model=typed", "-p", "seed=2"]
    assert cli.main(call) == 0
    page = Path(capsys.readouterr().out.strip())
    assert "ran with 2 False 1 typed" in outputs(page.with_suffix(".ipynb"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            '{"sed": 1}',
            'has no parameter "sed". Did you mean "seed"? It has: seed, fast, keep, model. Nothing was run.',
        ),
        ('{"seed": "1"}', "Parameter seed must be a whole number, as its default 0; '1' is not."),
        ('{"seed": true}', "Parameter seed must be a whole number, as its default 0; True is not."),
        ('{"fast": 1}', "Parameter fast must be True or False"),
        ('{"keep": null}', "Parameter keep must be a number, as its default 0.5; None is not."),
        ('{"keep": [0.5]}', "Parameter keep must be a number"),
        ('{"model": 3}', "Parameter model must be a text, as its default 'shapes-vit'; 3 is not."),
        ('{"seed": 1', "best.json is no JSON (line 1: "),
        ("[1, 2]", "best.json holds a list; expected an object of names and values"),
        ("\x00", "best.json is no JSON"),
    ],
)
def test_a_wrong_file_of_parameters_is_one_line_and_runs_nothing(course, best, capsys, text, sentence):
    assert cli.main(["report", "lesson", "00_start_here", "--parameters", best(text)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("labkit: ") and sentence in err and err.count("\n") == 1
    assert not Path("report").exists()


def test_a_missing_file_of_parameters_is_one_line_and_runs_nothing(course, capsys):
    assert cli.main(["report", "lesson", "00_start_here", "--parameters", "none.json"]) == 2
    assert capsys.readouterr().err == (
        "labkit: There is no file none.json; expected a JSON object of names and values.\n"
    )
    assert cli.main(["report", "lesson", "00_start_here", "--parameters", "notebooks"]) == 2
    assert "notebooks cannot be read (Is a directory)" in capsys.readouterr().err
    assert not Path("report").exists()


def test_without_a_default_a_file_may_say_anything(course):
    write_lesson(course / "01_free.ipynb", "bits = None", "print(bits)")
    assert report.parameters(course / "01_free.ipynb", {}, {"bits": 8}) == {"bits": 8}
    assert report.parameters(course / "01_free.ipynb", {"bits": "4"}, {"bits": 8}) == {"bits": 4}
