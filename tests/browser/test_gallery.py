"""The gallery in JupyterLab: a search that is typed, a paper chosen by keys, by the map, and its demonstration."""

from __future__ import annotations

import nbformat
import pytest
from nbformat import v4
from playwright.sync_api import expect

KERNEL = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
CELL = """\
from labkit.viz.gallery import Gallery

gallery = Gallery()
gallery.choose("S029")
gallery
"""


@pytest.fixture(scope="module")
def small(notebook, tmp_path_factory):
    """A notebook with one gallery, run once."""
    path = tmp_path_factory.mktemp("gallery") / "gallery.ipynb"
    cells = [v4.new_code_cell(CELL)]
    nbformat.write(v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL}), path)
    opened = notebook(path)
    opened.run()
    assert opened.errors() == []
    expect(opened.cell(0).locator(".labkit-map svg")).to_be_visible(timeout=30_000)
    return opened


def test_a_search_that_is_typed_shortens_the_list_and_the_keys_choose(small):
    cell = small.cell(0)
    count = cell.locator('[role="status"]').first
    cell.get_by_placeholder("words").fill("Vision TOKEN attention")
    expect(count).not_to_contain_text("391 of")
    papers = cell.locator("select[size]")
    ids = small.ask("print(*[row.id for row in gallery.found()])").split()
    assert len(ids) == papers.locator("option").count() > 3
    papers.focus()
    papers.press("End")
    small.wait_for("print(gallery.chosen.id)", ids[-1], seconds=30)
    papers.press("ArrowUp")
    small.wait_for("print(gallery.chosen.id)", ids[-2], seconds=30)
    idea = small.ask("print(gallery.chosen.idea)")
    expect(cell.locator(".labkit-paper .idea")).to_have_text(idea)


def test_a_click_on_the_map_chooses_a_paper_and_rings_its_dot(small):
    small.ask('gallery.choose("S029")')
    cell = small.cell(0)
    id = small.ask('print(next(row.id for row in gallery.rows if gallery.dials[row.id] == "bits"))')
    cell.locator(f'.labkit-map [data-id="{id}"]').click()
    small.wait_for("print(gallery.chosen.id)", id, seconds=30)
    expect(cell.locator(".labkit-paper")).to_contain_text(f"({id}, ")
    place = cell.locator(f'.labkit-map [data-id="{id}"]').get_attribute("transform")
    expect(cell.locator(".labkit-map .ring")).to_have_attribute("transform", place)


def test_code_and_demonstration_are_folded_out_by_keys(small):
    cell = small.cell(0)
    small.ask('gallery.choose("S029")')
    source = cell.locator(".labkit-show pre", has_text="class Fuse")
    expect(source).to_be_hidden()
    cell.locator(".labkit-paper summary").first.press("Enter")
    expect(source).to_be_visible()
    cell.get_by_role("button", name="demo").press("Enter")
    said = cell.locator('[role="status"]').last
    expect(said).to_contain_text("64 patches become 33 tokens", timeout=30_000)
    assert cell.locator("img[alt*='33 tokens']").is_visible()
