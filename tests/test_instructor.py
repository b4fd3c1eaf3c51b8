"""The instructor's guide: a section for every lesson, the lessons' own minutes and answers, and syllabi that add up."""

from __future__ import annotations

import re

import nbformat
import pytest

from labkit import check, paths
from tests.tools import tool

guide = tool("instructor")
TEXT = guide.GUIDE.read_text(encoding="utf-8")
LESSONS = [path.stem for path in guide.LESSONS]
LINK = re.compile(r"\[(\d\d_\w+)\]\(\.\./notebooks/\1\.ipynb\)")
SECTIONS = {LINK.search(part)[1]: part for part in re.split(r"^## ", TEXT, flags=re.MULTILINE) if LINK.match(part)}
SYLLABI = re.split(r"^### ", TEXT[TEXT.index("\n## Syllabi\n") :], flags=re.MULTILINE)[1:]


def lesson(name: str):
    return nbformat.read(paths.NOTEBOOKS / f"{name}.ipynb", as_version=4)


def test_every_lesson_has_its_section_and_every_section_its_lesson():
    assert list(SECTIONS) == LESSONS != []
    for name, text in SECTIONS.items():
        for part in ("**Minutes:**", "**Goes wrong.**", "**Ask.**", "**Misconceptions.**", "**Short of time.**"):
            assert text.count(part) == 1, (name, part)


def test_what_comes_from_the_lessons_is_as_they_are_today():
    assert guide.renewed(TEXT) == TEXT, "run: python tools/instructor.py"


@pytest.mark.parametrize("name", LESSONS)
def test_the_guide_and_the_readme_give_the_minutes_of_the_lesson(name):
    stated = int(re.search(r"\*Time:\*\s+(\d+)\s+minutes", lesson(name).cells[0].source)[1])
    assert f"**Minutes:** {stated} for the rounds" in SECTIONS[name]
    readme = (paths.ROOT / "README.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| \[.*?\]\(notebooks/{name}\.ipynb\) \|.*\| (\d+) \|$", readme, re.MULTILINE)
    assert row and int(row[1]) == stated, (
        f"README's table needs a row for {name} with {stated} minutes; it has {row and row[0]}"
    )


def test_every_exercise_and_every_prediction_is_in_its_section():
    for name in check.NAMES:
        task = check.find(name)
        (row,) = [line for line in SECTIONS[task.lesson].splitlines() if f"(`{name}`) |" in line]
        assert all(mistake.answer.__name__.replace("_", " ") in row for mistake in task.mistakes)
    for name in LESSONS:
        asked = re.findall(r"^\s*labkit\.reveal\(", "\n".join(c.source for c in lesson(name).cells), re.MULTILINE)
        table = re.search(r"\| prediction \|.*?\n\n", SECTIONS[name], re.DOTALL)
        assert len(asked) == (len(table[0].strip().splitlines()) - 2 if table else 0), name


def test_its_links_and_its_exercises_exist():
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (guide.GUIDE.parent / link).exists(), link
    anchors = {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.+)$", TEXT, re.M)}
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= anchors
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", TEXT)) - {"to_json"}
    assert named <= set(check.NAMES), named - set(check.NAMES)


# --- the syllabi ----------------------------------------------------------------------------------------------------
def rows(syllabus: str) -> list[list[str]]:
    lines = [line for line in syllabus.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_there_are_three_and_their_titles_promise_what_they_sum_up_to():
    promised = {"90 minutes": 90, "One day": 480, "Six weeks": 12 * 90}
    assert [syllabus.split(":")[0] for syllabus in SYLLABI] == list(promised)
    for syllabus, minutes in zip(SYLLABI, promised.values(), strict=True):
        *parts, total = rows(syllabus)
        assert total[0] == "**sum**" and total[-1] == f"**{minutes}**"
        assert sum(int(row[-1]) for row in parts) == minutes


@pytest.mark.parametrize("syllabus", SYLLABI[:2], ids=["90 minutes", "one day"])
def test_a_lesson_gets_its_minutes_and_an_exercise_its_own(syllabus):
    for what, amount in rows(syllabus)[:-1]:
        names = LINK.findall(what)
        assert set(names) <= set(LESSONS)
        if what.startswith("["):
            assert int(amount) == guide.minutes(lesson(names[0]))[0], what
        elif what.startswith("exercise"):
            known = {name: amount for *_, amount, name in guide.exercises(lesson(names[0]))}
            assert int(amount) == sum(known[name] for name in re.findall(r"`(\w+)`", what)), what


def test_six_weeks_hold_every_lesson_and_each_meeting_adds_up():
    met = []
    for _, what, *amounts in rows(SYLLABI[2])[:-1]:
        names = LINK.findall(what)
        rounds, exercises, rest, total = map(int, amounts)
        assert rounds + exercises + rest == total == 90, what
        assert rounds == sum(guide.minutes(lesson(name))[0] for name in names), what
        assert exercises <= sum(row[2] for name in names for row in guide.exercises(lesson(name))), what
        met += names
    assert met == LESSONS


# --- the tool -------------------------------------------------------------------------------------------------------
def test_a_lesson_without_a_section_is_told():
    with pytest.raises(SystemExit, match="no section, or no marked block, for 07_token_pruning"):
        guide.renewed(TEXT.replace("## [07_token_pruning]", "## [07_pruning]"))


def test_own_words_stay_and_old_numbers_go():
    stale = TEXT.replace("**Minutes:** ", "**Minutes:** 9999", 1).replace(
        "**Goes wrong.**", "**Goes wrong.** Nobody came.", 1
    )
    fresh = guide.renewed(stale)
    assert "Nobody came." in fresh and "**Minutes:** 9999" not in fresh


def test_a_measured_value_that_is_missing_is_told():
    book = lesson("07_token_pruning")
    (question, guess, measured), *_ = guide.predictions(book)
    assert question.endswith("?") and guess == "50 % right" and re.fullmatch(r"\d+ % right", measured)
    cell = next(c for c in book.cells if c.source.startswith("labkit.reveal("))
    cell.metadata["tags"] = ["nbval-ignore-output"]
    assert guide.predictions(book)[0] == (question, guess, "depends on the machine")
    cell.outputs = []
    with pytest.raises(SystemExit, match="has to be run"):
        guide.predictions(book)
    book.cells.remove(cell)
    with pytest.raises(SystemExit, match="never revealed"):
        guide.predictions(book)
