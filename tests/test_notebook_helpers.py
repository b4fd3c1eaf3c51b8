"""The first cells of a lesson: seeds, device, figures with words, tables, numbers the same everywhere."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from labkit import machine, notebook
from labkit.errors import LabkitError


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
    """setup changes the process; other tests want it as it was."""
    import matplotlib

    monkeypatch.delenv("LABKIT_DEVICE", raising=False)
    threads = torch.get_num_threads()
    with matplotlib.rc_context():
        yield
    torch.set_num_threads(threads)


def draws():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_setup_seeds_everything_every_time():
    notebook.setup(seed=3, device="cpu")
    first = draws()
    notebook.setup(seed=3, device="cpu")
    assert draws() == first
    notebook.setup(seed=4, device="cpu")
    assert all(a != b for a, b in zip(draws(), first, strict=True))


def test_setup_takes_the_gpu_where_there_is_one(monkeypatch):
    assert notebook.setup().type == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setenv("LABKIT_DEVICE", "cpu")
    assert notebook.setup(device="cuda") == torch.device("cpu"), "the environment has the last word"


@pytest.mark.parametrize("name", ["tpu-pod", "cuda:77"])
def test_a_device_that_is_not_here_is_a_sentence(name):
    with pytest.raises(LabkitError, match=f'The device "{name}" is not here; choose "auto" or "cpu"'):
        notebook.setup(device=name)


def test_setup_never_raises_the_number_of_threads(monkeypatch):
    torch.set_num_threads(2)
    monkeypatch.setattr(machine, "cores", lambda: 1)
    notebook.setup(device="cpu")
    assert torch.get_num_threads() == 1
    monkeypatch.setattr(machine, "cores", lambda: 64)
    notebook.setup(device="cpu")
    assert torch.get_num_threads() == 1


def test_setup_is_quiet(silence, recwarn):
    notebook.setup()
    silence()
    assert not recwarn.list


def test_figure_shows_a_picture_with_words_and_closes_it(monkeypatch, capsys):
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from IPython import display

    shown = []
    monkeypatch.setattr(display, "display", shown.append)
    fig = plt.figure()
    fig.subplots().plot([1, 2])
    notebook.figure(fig, "A line goes up.")
    data, metadata = shown[0]._repr_png_()
    assert metadata["alt"] == "A line goes up." and data
    assert capsys.readouterr().out == "A line goes up.\n"
    assert not plt.get_fignums()
    notebook.figure(Figure(), "A figure that pyplot never knew.")


def test_a_figure_without_words_is_refused():
    with pytest.raises(LabkitError, match="A figure needs a sentence"):
        notebook.figure(Figure(), "  ")


@pytest.mark.parametrize(
    "value, expected",
    [
        (0.123456, "0.1235"),
        (-0.00001, "0.0000"),
        (7, "7"),
        (True, "True"),
        (float("nan"), "nan"),
        (torch.tensor(0.5, dtype=torch.bfloat16, requires_grad=True), "0.5000"),
        (torch.tensor([[1.0, -0.00004], [1e-9, 2.5]]), "[[1.0000, 0.0000],\n [0.0000, 2.5000]]"),
        (torch.tensor([1, 2]), "[1, 2]"),
        (np.float32(1 / 3), "0.3333"),
        ([0.25, 1], "[0.2500, 1.0000]"),
    ],
)
def test_text_is_rounded_and_names_no_device(value, expected):
    assert notebook.text(value) == expected


def test_text_takes_digits_and_shortens_what_is_long():
    assert notebook.text(0.123456, digits=2) == "0.12"
    assert notebook.text(torch.arange(1000)) == "[  0,   1,   2, ..., 997, 998, 999]"


ROWS = [("plain", 1.0, 4599, None), ("<pruned>", 0.98765, 2900, True)]
HEADERS = ["model", "accuracy", "MMACs", "fast"]


def test_a_table_is_aligned_text():
    assert repr(notebook.table(ROWS, HEADERS)).splitlines() == [
        "model     accuracy  MMACs  fast",
        "--------  --------  -----  ----",
        "plain       1.0000   4599     -",
        "<pruned>    0.9877   2900  True",
    ]


def test_a_table_is_escaped_html():
    html = notebook.table(ROWS, HEADERS, digits=2)._repr_html_()
    assert '<th style="text-align: right">accuracy</th>' in html
    assert '<td style="text-align: left">&lt;pruned&gt;</td><td style="text-align: right">0.99</td>' in html


def test_a_ragged_table_is_a_sentence():
    with pytest.raises(LabkitError, match="Row 1 has 1 cells, the table has 2 headers"):
        notebook.table([(1, 2), (3,)], ["a", "b"])
    assert repr(notebook.table([], ["a", "bc"])) == "a  bc\n-  --"


def test_the_helpers_are_light_to_import():
    code = (
        "import sys, labkit.notebook, labkit.results, labkit.papers, labkit.viz.source, labkit.viz.figures;"
        "heavy = {'matplotlib', 'IPython', 'timm', 'sklearn', 'pygments', 'torchvision'} & set(sys.modules);"
        "sys.exit(f'imported too early: {sorted(heavy)}' if heavy else 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
