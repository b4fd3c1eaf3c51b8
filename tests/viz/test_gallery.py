"""The gallery: what it finds and says, that controls and code agree, its map, and that checks are really run."""

from __future__ import annotations

import base64
from dataclasses import replace
from html import escape

import pytest

from labkit import papers
from labkit.errors import LabkitError
from labkit.papers import Row
from labkit.viz import gallery, gallery_check, gallery_map, gallery_words
from labkit.viz.demo_parts import Demo
from labkit.viz.gallery import Gallery

PEG = "tests/positions/test_conditional.py::test_a_constant_image_has_a_border_and_nothing_else"
FORGETS = """
from labkit.positions.conditional import PEG
right = PEG.forward
PEG.forward = lambda self, x, grid: 0 * right(self, x, grid)
"""
ROWS = [
    Row("S001", "Windows & more", 2021, "attention", "implement", "Attend inside windows.", "works",
        "labkit.attention.windows.WindowAttention", "tests/attention/test_windows.py::test_x;tests/a.py::test_z",
        "06_cheaper_attention"),
    Row("S002", "Few bits", 2023, "quantization", "implement", "Round to few levels.", "works",
        "labkit.quant.grids.Uniform", "tests/quant/test_grids.py::test_y", ""),
    Row("S003", "Windows on scans", None, "restoration-codec", "apply", "Windows for CT.", "applies", "S001", "", ""),
    Row("S004", "A survey", 2022, "survey", "context", "Many of them.", "context", "", "", ""),
    Row("S005", "Prune <it>", 2024, "token-reduction", "implement", "Drop what is dull.", "open", "", "", ""),
]  # fmt: skip


@pytest.fixture
def ui():
    return Gallery(ROWS)


def ids(rows) -> list[str]:
    return [row.id for row in rows]


# --- words ----------------------------------------------------------------------------------------------------------
def test_the_package_decides_what_a_paper_changes_and_then_its_family(ui):
    assert list(ui.dials.values()) == ["tokens talking", "bits", "tokens talking", "other", "tokens kept"]
    moved = replace(ROWS[4], symbol="labkit.compress.fold.fold")
    assert gallery_words.dial(moved, {}) == "weights"
    assert gallery_words.dial(replace(ROWS[0], symbol="labkit.vit.ViT"), {}) == "tokens talking"
    assert gallery_words.dial(replace(ROWS[3], symbol="S004"), {"S004": ROWS[3]}) == "other"  # of itself: no circle


def test_every_word_has_to_be_there(ui):
    ui.search = "WINDOWS attention"
    assert ids(ui.found()) == ["S001"]
    ui.search = "windows"
    assert ids(ui.found()) == ["S001", "S003"]
    ui.search = "quantization uniform"  # family and symbol
    assert ids(ui.found()) == ["S002"]
    ui.search = "s004"
    assert ids(ui.found()) == ["S004"]


def test_the_page_shows_facts_source_and_check(ui, monkeypatch):
    monkeypatch.setattr(
        gallery_check, "source", lambda test: "def test_x():\n    assert 1 < 2\n" if "_x" in test else None
    )
    page = gallery_words.page(ROWS[0], "tokens talking")
    assert "Attend inside windows." in page and "“Windows &amp; more”, 2021" in page and "tokens talking" in page
    assert 'class="labkit-show"' in page and "WindowAttention" in page and page.count("<details>") == 2
    assert '<a href="06_cheaper_attention.ipynb"' in page
    assert "2 tests" in page and '<span class="n">test_x</span>' in page and "tests/a.py::test_z" in page
    assert "Prune &lt;it&gt;" in gallery_words.page(ROWS[4], "tokens kept")
    assert "year not known" in gallery_words.page(ROWS[2], "x") and "that of S001" in gallery_words.page(ROWS[2], "x")


def test_every_row_of_the_table_has_a_page_and_a_dial():
    rows = papers.rows()
    by_id = {row.id: row for row in rows}
    for row in rows:
        assert gallery_words.dial(row, by_id) in gallery_words.DIALS
        assert escape(row.idea) in gallery_words.page(row, "x")


# --- code and view --------------------------------------------------------------------------------------------------
def test_list_code_and_page_agree(ui):
    assert ui.chosen.id == "S001" and "5 of 5 papers" in ui.view.count.value
    ui.view.list.value = "S005"
    assert ui.state().startswith('5 of 5 papers. S005: "Prune <it>", 2024. It changes: tokens kept. Status: not built')
    assert "Drop what is dull." in ui.view.page.value
    ui.filter(status="works")
    assert [id for _, id in ui.view.list.options] == ["S001", "S002"] and ui.chosen.id == "S001"
    ui.filter(status="any", dial="tokens talking", family="attention", lesson="06_cheaper_attention")
    assert ids(ui.found()) == ["S001"]


def test_the_chosen_paper_stays_chosen_while_it_is_found(ui):
    ui.choose("S003")
    ui.search = "windows"
    assert ui.chosen.id == "S003" and "S003" in ui.state() and "Windows for CT." in ui.view.page.value


def test_choosing_lifts_what_hides_the_paper(ui):
    ui.search = "bits"
    ui.filter(status="works")
    ui.choose("S004")
    assert ui.chosen.id == "S004" and ui.search == "" and len(ui.found()) == 5


def test_nothing_found_is_said_and_no_paper_is_shown(ui):
    ui.search = "moonlight"
    assert ui.state() == "0 of 5 papers. None is chosen." and ui.view.page.value == ""
    assert "take a word or a filter away" in ui.view.count.value and ui.view.check.disabled and ui.view.demo.disabled
    with pytest.raises(LabkitError, match="No paper is chosen"):
        ui.check()
    ui.search = ""
    assert ui.chosen.id == "S001"


def test_mistakes_are_sentences(ui):
    with pytest.raises(LabkitError, match=r'There is no paper "S0001" here\. Did you mean'):
        ui.choose("S0001")
    with pytest.raises(LabkitError, match=r'No paper has the status "work"\. Did you mean "works"'):
        ui.filter(status="work")
    with pytest.raises(LabkitError, match='There is no filter "colour"'):
        ui.filter(colour="red")
    with pytest.raises(LabkitError, match="table of papers is empty"):
        Gallery([])


def test_buttons_say_what_was_found_and_what_went_wrong(ui, monkeypatch):
    monkeypatch.setattr(gallery, "demo", lambda row: Demo(None, f"{row.id} <shown>."))
    ui.view.demo.click()
    assert '<p role="status">S001 &lt;shown&gt;.</p>' in ui.view.said.value
    assert ui.demo() == "S001 <shown>."
    ui.choose("S003")  # it applies the first one's mechanism
    assert ui.demo() == "S001 <shown>." and ui.view.check.disabled and not ui.view.demo.disabled
    ui.choose("S002")
    ui.view.check.click()
    assert "tests/quant/test_grids.py::test_y is not here" in ui.view.said.value
    ui.choose("S004")
    assert ui.view.said.value == "" and ui.view.demo.disabled


def test_a_new_row_appears_by_itself():
    new = replace(ROWS[1], id="S999", title="Fresh", symbol="labkit.tokens.fuse.Fuse")
    grown = Gallery([*ROWS, new])
    grown.search = "fresh"
    assert ids(grown.found()) == ["S999"] and grown.dials["S999"] == "tokens kept"
    assert "S999" in gallery_map.figure(grown.rows, grown.dials).data[0].customdata


def test_without_a_kernel_the_map_and_the_words_remain(ui):
    ui.choose("S002")
    shown, about = ui._repr_mimebundle_()
    assert base64.b64decode(shown["image/png"]).startswith(b"\x89PNG")
    assert shown["text/plain"] == about["image/png"]["alt"] == ui.state()
    assert "application/vnd.jupyter.widget-view+json" in shown and ui.view.box.children[-1] is ui.map


# --- the map --------------------------------------------------------------------------------------------------------
def test_every_paper_is_one_dot_of_its_own_in_its_cell():
    rows = papers.rows()
    by_id = {row.id: row for row in rows}
    turns = {row.id: gallery_words.dial(row, by_id) for row in rows}
    at, families = gallery_map.places(rows, turns), gallery_map.family_order(rows)
    assert len(set(at.values())) == len(rows)
    for row in rows:
        x, y = at[row.id]
        assert abs(x - gallery_words.DIALS.index(turns[row.id])) < 0.5
        assert abs(y - (len(families) - 1 - families.index(row.family))) < 0.65
    traces = {trace.name: trace for trace in gallery_map.figure(rows, turns).data}
    for status, (name, *_) in gallery_map.LOOKS.items():
        assert list(traces[name].customdata) == ids(row for row in rows if row.status == status)


def test_a_click_on_a_dot_chooses_its_paper_and_the_ring_follows(ui):
    ui.search = "windows"
    ui.map.chosen = "S002"  # as a click does, also on a paper that the search hides
    assert ui.chosen.id == "S002" and ui.search == "" and "Round to few levels." in ui.view.page.value
    ui.choose("S004")
    assert ui.map.chosen == "S004"
    ui.search = "moonlight"
    assert ui.map.chosen == ""
    dots = {id: (x, y, status) for id, x, y, status, _ in ui.map.drawn["dots"]}
    at = gallery_map.places(ROWS, ui.dials)
    assert dots == {row.id: (*at[row.id], row.status) for row in ROWS}


def test_the_still_map_rings_the_chosen_paper(ui):
    fig = gallery_map.figure(ROWS, ui.dials)
    gallery_map.ring(fig, "S002")
    assert (fig.data[-1].x[0], fig.data[-1].y[0]) == gallery_map.places(ROWS, ui.dials)["S002"]
    gallery_map.ring(fig, None)
    assert fig.data[-1].name == "chosen" and len(fig.data[-1].x) == 0


def test_the_map_says_what_it_shows(ui):
    said = gallery_map.words(ROWS, ui.dials)
    assert said.startswith("5 papers by family and by what they change: tokens made 0, tokens talking 2, tokens kept 1")
    assert "2 are “works”, 1 are “applies”" in said
    assert gallery_map.hover(ROWS[4]) == "<b>S005: Prune &lt;it&gt;, 2024</b><br>Drop what is dull."


# --- checks ---------------------------------------------------------------------------------------------------------
def test_the_source_of_a_test_has_its_markers():
    code = gallery_check.source(PEG)
    assert code.startswith('@pytest.mark.paper("S285")\ndef test_a_constant_image') and code.endswith('first")')
    assert gallery_check.source(PEG + "_not") is None and gallery_check.source("tests/no_such_file.py::test") is None


def test_a_break_is_noticed_and_an_intact_mechanism_is_not():
    row = replace(ROWS[0], id="S285", check=PEG)
    assert gallery_check.noticed([row], FORGETS) == {"S285": True}
    done = gallery_check.run(PEG)
    assert done.holds and done.words.startswith("1 passed in ")


def test_a_run_that_takes_too_long_is_stopped():
    done = gallery_check.run(PEG, seconds=0.05)
    assert not done.holds and done.words == "No answer after 0 s, so the run was stopped."


@pytest.mark.parametrize(
    ("said", "passed", "failed", "words"),
    [
        ("3 passed in 1.20s\n", 3, 0, "3 passed in 2 s."),
        ("FAILED tests/a.py::test_b[2] - assert 1 == 2\n1 failed, 4 passed in 0.3s", 4, 1,
         "4 passed and 1 failed in 2 s; the first is test_b[2] (assert 1 == 2)."),
        ("ERROR tests/a.py::test_b\n===== 1 error in 0.30s =====", 0, 1, "1 failed in 2 s; the first is test_b."),
        ("S001 passed (9 passed)\nno tests ran in 0.01s", 0, 0, "pytest ran no test: "),
    ],
)  # fmt: skip
def test_what_pytest_writes_is_read(said, passed, failed, words):
    done = gallery_check.outcome(said, 2.0)
    assert (done.passed, done.failed) == (passed, failed) and done.words.startswith(words)
    assert done.holds == (passed > 0 and not failed)


def test_without_pytest_or_tests_a_sentence_says_so(monkeypatch):
    with pytest.raises(LabkitError, match="No test names this paper"):
        gallery_check.run("")
    monkeypatch.setattr(gallery_check.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LabkitError, match="pip install pytest"):
        gallery_check.run(PEG)
