"""JupyterLab itself: lessons run from a student's clicks, and what they show can be used with keys and mouse."""

from __future__ import annotations

import json
import re

import nbformat
import numpy as np
import pytest
from nbformat import v4
from playwright.sync_api import expect

import labkit
from labkit import paths
from labkit.viz.colour import colours
from tests.browser.overlay import Overlay

KERNEL = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
FIRST, LESSON, PRUNING = (
    paths.NOTEBOOKS / f"{name}.ipynb" for name in ("00_start_here", "05_seeing_attention", "07_token_pruning")
)
MODEL = """\
import labkit

model, images = labkit.load("shapes-vit"), labkit.data.shapes("test", 20)
"""
DIAL = """\
from labkit.viz.dial import KeepDial

dial = KeepDial(model, images, keep=0.5)
dial
"""
CHART = """\
from labkit.viz.charts import Line, chart, curves

chart(curves({"Keep": Line([10, 50, 100], [0.4, 0.8, 0.9])}, "patches kept (%)"), "Right answers rise.")
"""
EXPLORER = """\
from labkit.viz.explorer import Explorer

explorer = Explorer(model, images.images[:2], layer=1, head=0, query=(2, 3), opacity=1.0)
explorer
"""
SILENCE = """\
heads = Explorer(model, images.images[:2], view="ablate")
heads
"""
GALLERY = """\
import torch
from labkit.viz.mixer_dial import MixerDial

gallery = MixerDial(torch.randn(1, 64, 128), (8, 8), model.blocks[2].attn, ["window", "axial"], first="window")
gallery
"""
PREDICT = """\
import labkit

labkit.predict("01 keys", "Over what does the softmax run?", options=["queries", "keys"])
"""
VERDICT = "labkit.check.attention(lambda q, k, v: (q @ k.transpose(-2, -1) / q.shape[-1]).softmax(dim=-1) @ v)"


@pytest.fixture(scope="module")
def small(notebook, tmp_path_factory):
    """A notebook with one thing of each kind, run once."""
    cells = [v4.new_code_cell(cell) for cell in (MODEL, DIAL, CHART, EXPLORER, SILENCE, GALLERY, PREDICT, VERDICT)]
    path = tmp_path_factory.mktemp("small") / "small.ipynb"
    nbformat.write(v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL}), path)
    opened = notebook(path)
    opened.run()
    assert opened.errors() == []
    return opened


def test_the_dial_of_the_first_lesson_follows_the_keys(small):
    cell = small.cell(1)
    said = cell.locator('[role="status"]')
    expect(said).to_contain_text("Keep 50% of the patches (32 of 64)")
    cell.locator(".noUi-handle").press("ArrowRight")
    expect(said).to_contain_text("Keep 55% of the patches (35 of 64)")
    small.wait_for("print(dial.state())", said.inner_text())
    assert cell.locator("img").get_attribute("alt") == said.inner_text()


def test_a_chart_is_drawn_without_a_network_and_follows_the_theme(small):
    cell = small.cell(2)
    words, background = cell.locator(".xtitle"), cell.locator(".main-svg").first
    expect(words).to_have_text("patches kept (%)")
    expect(cell.locator("p")).to_have_text("Right answers rise.")
    assert cell.locator(".modebar-btn, img:visible").count() == 0
    expect(words).to_have_css("fill", "rgba(0, 0, 0, 0.87)")
    small.page.evaluate("() => jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    expect(words).to_have_css("fill", "rgb(255, 255, 255)")
    expect(background).to_have_css("background-color", "rgba(0, 0, 0, 0)")
    expect(words).to_be_visible()


# --- the explorer ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def truth():
    """The same attention as in the notebook, from this process: `truth(layer, head, row, column)` is (8, 8)."""
    trace = labkit.trace(labkit.load("shapes-vit"), labkit.data.shapes("test", 20).images[:2])

    def attention(layer: int, head: int, row: int, column: int) -> np.ndarray:
        return trace.rows(layer, 0, [1 + 8 * row + column])[head, 0, 1:].reshape(8, 8).numpy()

    return attention


def assert_shows(overlay: Overlay, attention: np.ndarray) -> None:
    """One byte a share: a colour may be off by the step to its neighbours in the table."""
    expected = colours(attention, 0, attention.max())
    assert np.abs(overlay.heat() - expected).max() <= 6


def test_an_explorer_shows_what_was_traced_and_follows_mouse_keys_and_code(small, truth):
    overlay = Overlay(small.cell(3), (8, 8))
    expect(overlay.said).to_contain_text("Layer 1, head 0: the patch in row 2, column 3 looks most at row")
    small.wait_for("print(explorer.describe())", overlay.said.inner_text())
    assert_shows(overlay, truth(1, 0, 2, 3))

    overlay.canvas.focus()
    expect(small.cell(3)).to_have_class(re.compile("jp-mod-active"))  # now nothing moves beneath the pointer
    overlay.click(6, 1)
    expect(overlay.said).to_contain_text(": the patch in row 6, column 1")
    for key in ("ArrowRight", "ArrowUp", "PageDown", "."):
        overlay.canvas.press(key)
    expect(overlay.said).to_contain_text("Layer 2, head 1: the patch in row 5, column 2")
    small.wait_for("print(explorer.query, explorer.layer, explorer.head)", "(5, 2) 2 1")
    small.wait_for("print(explorer.describe())", overlay.said.inner_text())
    assert_shows(overlay, truth(2, 1, 5, 2))

    small.ask("explorer.layer, explorer.head, explorer.query = 0, 0, (7, 7)")
    expect(overlay.said).to_contain_text("Layer 0, head 0: the patch in row 7, column 7")
    assert_shows(overlay, truth(0, 0, 7, 7))


def test_a_silenced_head_moves_the_answer(small):
    cell = small.cell(4)
    said = cell.locator(".says")
    expect(said).to_contain_text("No head is silenced")
    cell.locator('[data-head="1,0"]').click()
    expect(said).to_contain_text("1 of 24 heads silenced")
    small.wait_for("print(heads.silenced, heads.describe())", f"[[1, 0]] {said.inner_text()}")


def test_the_gallery_shows_the_mixer_that_is_chosen_its_papers_and_its_source(small):
    cell = small.cell(5)
    said = cell.locator('[role="status"]')
    expect(said).to_contain_text("window (grouped: pairs inside groups that are fixed).")
    expect(cell).to_contain_text("(S083)")
    cell.locator("select").select_option("axial")
    expect(said).to_contain_text("axial (factorised: a product of small matrices).")
    small.wait_for("print(gallery.state())", said.inner_text())
    source = cell.locator("pre", has_text="class AxialAttention")
    expect(source).to_be_hidden()
    cell.locator("summary").click()
    expect(source).to_be_visible()


def test_a_prediction_is_chosen_and_committed_by_keyboard_and_then_fixed(small):
    cell = small.cell(6)
    cell.locator("input[type=radio]").nth(1).focus()
    small.page.keyboard.press("Space")
    cell.locator("button", has_text="Commit").focus()
    small.page.keyboard.press("Enter")
    expect(cell.locator('[role="status"]')).to_have_text("Committed: keys.")
    expect(cell.locator("button", has_text="Commit")).to_be_disabled()
    small.wait_for('print(labkit.reveal("01 keys", "keys"))', "You predicted: keys. Measured: keys. As predicted.")


def test_a_verdict_is_shown_with_its_case(small):
    shown = small.cell(7).locator('[role="status"]')
    expect(shown).to_contain_text("You divided by d, not by √d")
    expect(shown.locator("th")).to_have_text(["case", "expected", "got"])


# --- the lesson -----------------------------------------------------------------------------------------------------
# For each explorer of the notebook: what it says, and the attention that it should show.
EXPLORERS = """
import json
from ipywidgets.widgets.widget import _instances
from labkit.viz.explorer import Explorer

for w in [w for w in _instances.values() if isinstance(w, Explorer)]:
    w.opacity, shown = 1.0, None
    if w.view == "overlay" and not isinstance(w.query, str):
        layer = w.traces[0].layers[w.layer]
        asks = layer.prefix + w.query[0] * layer.grid[1] + w.query[1]
        heads = w.traces[0].rows(w.layer, w.image, [asks])[:, 0, layer.key_prefix:]
        shown = (heads.mean(dim=0) if w.head == "mean" else heads[w.head]).reshape(layer.key_grid).tolist()
    print(w.describe())
    print(json.dumps(shown))
"""


def attention_of(lab, words: str) -> np.ndarray | None:
    """What the explorer that says these words should show, when it is a map."""
    lines = lab.wait_for(EXPLORERS, words).splitlines()
    attention = json.loads(lines[lines.index(words) + 1])
    return None if attention is None else np.array(attention)


def test_the_first_lesson_runs_and_its_dial_follows_the_keys(notebook):
    lab = notebook(FIRST, fast=True)
    lab.run(seconds=400)
    assert lab.errors() == []
    cell = lab.page.locator(".jp-CodeCell", has_text="ui = dial.KeepDial")
    said, handle = cell.locator('[role="status"]'), cell.locator(".noUi-handle")
    cell.scroll_into_view_if_needed()
    expect(said).to_contain_text("Keep 10% of the patches (6 of 64)")  # where the code of the lesson left it
    handle.press("ArrowRight")
    expect(said).to_contain_text("Keep 15% of the patches (10 of 64)")
    lab.wait_for("print(ui.state())", said.inner_text())


def test_the_lesson_on_pruning_runs_and_its_film_is_stepped_through_with_keys(notebook):
    lab = notebook(PRUNING, fast=True)
    lab.run(seconds=400)
    assert lab.errors() == []
    place = lab.page.locator(".jp-CodeCell", has_text="film = labkit.Explorer").locator(".labkit-explorer")
    place.scroll_into_view_if_needed()
    said, canvas = place.locator(".says"), place.locator("canvas")
    lab.wait_for("print(film.step, film.describe())", f"6 {said.text_content()}")
    for step in (5, 4, 3):
        before = said.text_content()
        canvas.press("PageUp")
        expect(said).not_to_have_text(before)
        lab.wait_for("print(film.step, film.describe())", f"{step} {said.text_content()}")


def test_the_lesson_runs_and_its_explorers_show_what_python_says(notebook):
    lab = notebook(LESSON, fast=True)
    lab.run(seconds=400)
    assert lab.errors() == []
    places = lab.page.locator(".labkit-explorer").all()
    assert places
    for place in places:
        said, canvas = place.locator(".says"), place.locator("canvas")
        place.scroll_into_view_if_needed()  # what is off the screen has no words yet
        expect(said).not_to_be_empty()
        attention_of(lab, said.text_content())
        if not canvas.is_visible():
            continue
        canvas.press("ArrowUp")
        before = said.text_content()
        canvas.press("ArrowLeft")
        expect(said).not_to_have_text(before)
        attention = attention_of(lab, said.text_content())
        if attention is not None:
            shown, expected = Overlay(place, attention.shape).heat(), colours(attention, 0, attention.max())
            assert np.median(np.abs(shown - expected).max(axis=-1)) <= 6  # the border of an object crosses some cells
