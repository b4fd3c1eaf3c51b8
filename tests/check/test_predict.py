"""Predictions are committed once, revealed beside what was measured, and noted with the exercises in one file."""

from __future__ import annotations

import csv
import json

import pytest

import labkit
from labkit.check import predict as predicting
from labkit.check import progress as noted
from labkit.errors import LabkitError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(predicting, "made", {})
    monkeypatch.setattr(noted, "unsaved", "")
    return tmp_path


def ask():
    return labkit.predict("01 keys", "Over what does the softmax run?", options=["queries", "keys"])


def test_a_committed_choice_is_shown_beside_the_measurement():
    asked = ask()
    asked.commit("keys")
    assert repr(labkit.reveal("01 keys", "keys")) == "You predicted: keys. Measured: keys. As predicted."
    assert repr(labkit.reveal("01 keys", "queries")).endswith("Measured: queries. Not as predicted.")


def test_a_number_is_met_when_it_is_near():
    labkit.predict("01 right", "How many?", number=50, unit="%").commit(90)
    revealed = labkit.reveal("01 right", 95.53)
    assert revealed.met
    assert repr(revealed) == "You predicted: 90 %. Measured: 95.5 %. As predicted: off by 5.53 points."
    assert not labkit.reveal("01 right", 95.5, within=5).met


def test_without_a_guess_the_first_stands_in_and_nothing_is_noted(home):
    ask()
    text = repr(labkit.reveal("01 keys", "keys"))
    assert text == "Nobody predicted; in its place stands: queries. Measured: keys. Not as predicted."
    assert not (home / "progress.json").exists()


def test_the_buttons_commit_once():
    asked = ask()
    assert asked.box is asked.box
    asked.button.click()
    assert asked.guess is None and "Choose one first" in asked.status.value
    asked.field.value = "keys"
    asked.button.click()
    assert asked.guess == "keys" and asked.field.disabled and asked.button.disabled
    assert "Committed: keys." in asked.status.value
    with pytest.raises(LabkitError, match=r'"01 keys" was predicted already: keys. Run its cell again'):
        asked.commit("queries")


def test_running_the_cell_again_starts_anew():
    ask().commit("keys")
    ask()
    assert repr(labkit.reveal("01 keys", "keys")).startswith("Nobody predicted")


def test_the_saved_output_is_text_without_a_widget():
    data, _ = ask()._repr_mimebundle_()
    assert data["text/plain"] == "Predict. Over what does the softmax run? [queries / keys]"
    assert "application/vnd.jupyter.widget-view+json" in data


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("keys", "?"), r'The id of a prediction begins with its lesson, as in "01 keys"'),
        (("01 keys", "?"), "needs two options or more, or a number"),
        (("01 keys", "?", ["one"]), "needs two options or more"),
        (("01 keys", "?", ["one", "two"], 3), "not both"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused(arguments, sentence):
    with pytest.raises(LabkitError, match=sentence):
        labkit.predict(*arguments)


def test_what_cannot_be_a_guess_or_an_outcome_is_refused():
    asked = ask()
    with pytest.raises(LabkitError, match=r'"key" is none of the options: queries, keys. Did you mean "keys"'):
        asked.commit("key")
    with pytest.raises(LabkitError, match="asks for a number; 'many' is none"):
        labkit.predict("01 n", "?", number=1).commit("many")
    with pytest.raises(LabkitError, match="cannot come out as 'rows'"):
        labkit.reveal("01 keys", "rows")
    with pytest.raises(LabkitError, match=r'Nothing was asked as "01 key" in this run. Did you mean "01 keys"'):
        labkit.reveal("01 key", "keys")


# --- progress -------------------------------------------------------------------------------------------------------
def test_the_table_counts_by_lesson(home):
    noted.note_answer("attention", "01_attention", right=True)
    ask().commit("keys")
    labkit.reveal("01 keys", "keys")
    rows = {row[0]: row[1:] for row in labkit.progress().table().rows}
    assert rows["01"][0] == "1" and rows["01"][1] == "1" and rows["01"][3:] == ["1", "1"]
    assert int(rows["01"][2]) == len([n for n in labkit.check.NAMES if labkit.check.find(n).lesson == "01_attention"])


def test_export_and_delete(home):
    noted.note_answer("attention", "01_attention", right=False)
    me = labkit.progress()
    rows = list(csv.DictReader(me.to_csv(home / "me.csv").open()))
    assert rows == [
        {
            "kind": "exercise",
            "name": "attention",
            "lesson": "01",
            "tried": "1",
            "right": "False",
            "answer": "",
            "measured": "",
        }
    ]
    assert json.loads(me.to_json(home / "me.json").read_text())["entries"][0]["name"] == "attention"
    with pytest.raises(LabkitError, match="cannot be written"):
        me.to_csv(home / "progress.json" / "x.csv")
    me.delete()
    assert not (home / "progress.json").exists() and labkit.progress().entries == []


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"version": 9, "entries": []}', '{"version": 1, "entries": [{"a": 1}]}']
)
def test_a_broken_file_is_kept_aside_and_told(home, content):
    (home / "progress.json").write_text(content)
    with pytest.raises(LabkitError, match=r"could not be read; it is now progress\.broken"):
        labkit.progress()
    assert (home / "progress.broken").read_text() == content
    noted.note_answer("attention", "01_attention", right=True)
    assert len(labkit.progress().entries) == 1


def test_a_lesson_goes_on_where_nothing_can_be_written(home, monkeypatch):
    (home / "file").write_text("")
    monkeypatch.setenv("LABKIT_CACHE", str(home / "file"))
    noted.note_answer("attention", "01_attention", right=True)
    monkeypatch.setenv("LABKIT_CACHE", str(home))
    assert "Not all was saved: progress.json cannot be written" in repr(labkit.progress())


def test_a_half_written_file_never_stands(home, monkeypatch):
    noted.note_answer("attention", "01_attention", right=True)
    before = (home / "progress.json").read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    noted.note_answer("grouped", "01_attention", right=True)
    assert (home / "progress.json").read_text() == before
    assert [path.name for path in home.iterdir()] == ["progress.json"]
