"""Photographs of lessons, tools/shots.py: every stretch of a page, light and dark."""

from __future__ import annotations

import io

import nbformat
import numpy as np
import pytest
from nbformat import v4
from PIL import Image

from tests.tools import tool


@pytest.fixture
def shots(tmp_path, monkeypatch):
    module = tool("shots")
    monkeypatch.setattr(module, "OUT", tmp_path / "shots")
    module.OUT.mkdir()
    return module


def test_a_long_lesson_is_several_pictures_of_the_width_asked_for_in_the_theme_asked_for(shots, browser, tmp_path):
    lesson = tmp_path / "00_long.ipynb"
    nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell("A word.\n\n" * 100)]), lesson)
    brightness = {}
    for theme in shots.THEMES:
        assert shots.photograph(browser, lesson, theme, 800) >= 2
        pictures = sorted(shots.OUT.glob(f"00_long-800-{theme}-*.png"))
        opened = [Image.open(io.BytesIO(picture.read_bytes())) for picture in pictures]
        assert len(opened) >= 2 and {picture.size for picture in opened} == {(800, shots.HEIGHT)}
        brightness[theme] = np.median(np.asarray(opened[0].convert("L")))
    assert brightness["light"] > 200 > 60 > brightness["dark"]


def test_an_unknown_name_and_no_name_are_refused_in_one_sentence(shots, capsys):
    assert shots.main(["99_none"]) == 2
    assert capsys.readouterr().err.startswith("There is no lesson 99_none; there are: 00_start_here, ")
    assert shots.main([]) == 2
    assert capsys.readouterr().err.startswith("Name at least one lesson; there are: 00_start_here, ")
