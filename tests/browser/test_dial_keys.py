"""A dial in JupyterLab, driven by keys: its menus get the arrows that would go to the next cell, its letters too."""

from __future__ import annotations

import nbformat
import pytest
from nbformat import v4

KERNEL = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
CELL = """\
import torch
from labkit.viz.bits_dial import BitsDial

dial = BitsDial(torch.rand(400))
dial
"""
ACTIVE = "() => [document.activeElement.tagName, jupyterapp.shell.currentWidget.content.activeCellIndex]"


@pytest.fixture(scope="module")
def small(notebook, tmp_path_factory):
    """A notebook with one dial and a cell below it, run once."""
    path = tmp_path_factory.mktemp("dial") / "dial.ipynb"
    cells = [v4.new_code_cell(CELL), v4.new_code_cell("1")]
    nbformat.write(v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL}), path)
    opened = notebook(path)
    opened.run()
    assert opened.errors() == []
    opened.cell(0).locator(".labkit-dial[data-lm-suppress-shortcuts]").wait_for(timeout=30_000)
    return opened


def test_arrows_and_letters_turn_a_menu_and_not_the_notebook(small):
    menu = small.cell(0).locator("select")
    menu.focus()
    for key, kind in (("ArrowDown", "twin"), ("ArrowDown", "log2"), ("ArrowUp", "twin"), ("u", "uniform")):
        menu.press(key)
        small.wait_for("print(dial.kind)", kind)
        assert small.page.evaluate(ACTIVE) == ["SELECT", 0]


def test_a_slider_is_turned_by_arrows_as_well(small):
    handle = small.cell(0).locator(".noUi-handle").first
    handle.focus()
    handle.press("ArrowRight")
    small.wait_for("print(dial.bits)", "5")
