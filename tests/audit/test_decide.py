"""The recommendation: proven, promising, or nothing; from made-up rows whose right answer is known."""

from __future__ import annotations

import pytest

from labkit.audit.decide import images_needed, recommend
from labkit.audit.stacks import front
from labkit.intervals import paired_difference


def row(name: str, ratio: float, difference: float, half: float = 0.005, noise: float = 0.01) -> dict:
    return {
        "name": name,
        "describe": name.title(),
        "stack": {"keep": ratio},
        "share": 0.9 + difference,
        "difference": difference,
        "difference_low": difference - half,
        "difference_high": difference + half,
        "ratio": ratio,
        "ratio_low": ratio - noise,
        "ratio_high": ratio + noise,
    }


def test_the_fastest_that_is_proven_is_taken():
    rows = [row("slow", 0.9, 0.0), row("fast", 0.5, -0.002), row("wild", 0.3, -0.2), row("unsure", 0.4, 0.0, half=0.05)]
    advice = recommend(rows, 1000, "accuracy")
    assert (advice["verdict"], advice["choice"], advice["stack"]) == ("proven", "fast", {"keep": 0.5})
    assert advice["sentence"].startswith(
        "Take Fast: 2.00 [1.96, 2.04] times as fast, -0.2 [-0.7, +0.3] points of accuracy"
    )


def test_with_few_images_it_says_so_and_how_many_it_would_take():
    advice = recommend([row("fast", 0.5, 0.0, half=0.04)], 64, "agreement")
    assert advice["verdict"] == "not enough images" and advice["images_needed"] == 276
    assert "Not enough images to be sure" in advice["sentence"] and "fewer than 276 images" in advice["sentence"]
    assert "points of agreement" in advice["sentence"] and "accuracy" not in advice["sentence"]


def test_where_nothing_is_faster_or_everything_costs_the_model_stays():
    for rows in ([row("slow", 1.0, 0.0)], [row("costly", 0.5, -0.1)], [row("noise", 0.995, 0.0)]):
        advice = recommend(rows, 1000, "accuracy")
        assert advice["verdict"] == "keep the model" and advice["choice"] is None
        assert advice["sentence"].startswith("Keep the model as it is")


def test_what_cannot_be_told_apart_is_named():
    advice = recommend([row("a", 0.5, 0.0), row("b", 0.51, 0.0), row("c", 0.7, 0.0)], 1000, "accuracy")
    assert advice["alike"] == ["b"] and "cannot be told from that of b" in advice["sentence"]


@pytest.mark.parametrize("tolerance", [0.005, 0.01, 0.02, 0.1])
def test_the_number_of_images_is_the_first_that_is_enough(tolerance):
    n = images_needed(tolerance)
    assert paired_difference([1] * n, [1] * n)[1] >= -tolerance > paired_difference([1] * (n - 1), [1] * (n - 1))[1]


def test_the_front_holds_what_nothing_beats():
    rows = [row("a", 0.5, -0.1), row("b", 0.6, -0.2), row("c", 0.7, 0.0), row("d", 0.7, -0.05)]
    assert [r["name"] for r in front(rows)] == ["a", "c"]
