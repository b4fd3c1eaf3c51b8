"""The recommendation: proven, promising, or nothing; from made-up rows whose right answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.audit.decide import ERROR, chance, images_needed, recommend
from labkit.audit.stacks import front
from labkit.intervals import paired_difference


def row(name: str, ratio: float, lost: int = 0, gained: int = 0, images: int = 3000, noise: float = 0.01) -> dict:
    """A choice after which so many images are lost and gained, and that takes this share of the time."""
    before = np.arange(images) < images // 2
    after = np.arange(images) < images // 2 - lost
    after |= np.arange(images) >= images - gained
    difference, low, high = paired_difference(after, before)
    return {
        "name": name,
        "describe": name.title(),
        "stack": {"keep": ratio},
        "images": images,
        "share": after.mean(),
        "lost": lost,
        "gained": gained,
        "difference": difference,
        "difference_low": low,
        "difference_high": high,
        "ratio": ratio,
        "ratio_low": ratio - noise,
        "ratio_high": ratio + noise,
    }


def test_the_fastest_that_is_proven_is_taken():
    rows = [row("slow", 0.9), row("fast", 0.5, lost=6), row("wild", 0.3, lost=600), row("unsure", 0.4, lost=28)]
    advice = recommend(rows, 3000, "accuracy")
    assert (advice["verdict"], advice["choice"], advice["stack"]) == ("proven", "fast", {"keep": 0.5})
    assert advice["sentence"] == (
        "Take Fast: 2.00 [1.96, 2.04] times as fast, -0.2 [-0.4, -0.0] points of accuracy, on 3000 images. A loss of "
        "more than 1 point is ruled out, even as the luckiest of 4 choices."
    )


def test_with_few_images_it_says_so_and_how_many_it_would_take():
    advice = recommend([row("fast", 0.5, images=64)], 64, "agreement")
    assert advice["verdict"] == "not enough images" and advice["images_needed"] == 369
    assert "Not enough images to be sure" in advice["sentence"] and "fewer than 369 images" in advice["sentence"]
    assert "points of agreement" in advice["sentence"] and "accuracy" not in advice["sentence"]


def test_more_choices_ask_for_more_images():
    rows = [row("fast", 0.5, images=400)]
    assert recommend(rows, 400, "accuracy")["verdict"] == "proven"
    many = rows + [row(f"other {i}", 0.6, lost=100, images=400) for i in range(9)]
    advice = recommend(many, 400, "accuracy")
    assert (advice["verdict"], advice["choices"], advice["images_needed"]) == ("not enough images", 10, 600)
    assert "for the luckiest of 10 choices with fewer than 600 images" in advice["sentence"]


def test_choices_that_were_not_tried_for_what_these_images_said_count_too():
    advice = recommend([row("fast", 0.5, images=400)], 400, "accuracy", untried=9)
    assert (advice["verdict"], advice["choices"], advice["images_needed"]) == ("not enough images", 10, 600)


def test_where_nothing_is_faster_or_everything_costs_the_model_stays():
    for rows in ([], [row("slow", 1.0)], [row("costly", 0.5, lost=300)], [row("noise", 0.995)]):
        advice = recommend(rows, 3000, "accuracy")
        assert advice["verdict"] == "keep the model" and advice["choice"] is None
        assert advice["sentence"].startswith("Keep the model as it is")


def test_what_cannot_be_told_apart_is_named():
    advice = recommend([row("a", 0.5), row("b", 0.51), row("c", 0.7), row("d", 0.51, lost=30)], 3000, "accuracy")
    assert advice["alike"] == ["b"]
    assert advice["sentence"].endswith(
        "Not enough images to tell these apart: a, b; nor does their speed differ surely."
    )


def test_of_those_that_are_as_fast_the_one_that_is_surely_better_is_taken():
    rows = [row("first", 0.5, lost=12), row("better", 0.51, gained=12), row("slower", 0.7, gained=60)]
    advice = recommend(rows, 3000, "accuracy")
    assert (advice["choice"], advice["alike"]) == ("better", [])


@pytest.mark.parametrize("tolerance", [0.005, 0.01, 0.02, 0.1])
@pytest.mark.parametrize("choices", [1, 30])
def test_the_number_of_images_is_the_first_that_is_enough(tolerance, choices):
    n = images_needed(tolerance, choices)
    assert chance(row("same", 0.5, images=n), tolerance) <= ERROR / choices
    assert chance(row("same", 0.5, images=n - 1), tolerance) > ERROR / choices


# --- how often a verdict is wrong -----------------------------------------------------------------------------------
def drawn(dice: np.random.Generator, images: int, losses: np.ndarray, churn: float) -> list[dict]:
    """Choices that truly lose such shares; `churn` more are lost, and as many gained. The last are the fastest."""
    lost, gained = dice.binomial(images, losses + churn), dice.binomial(images, churn, size=len(losses))
    speeds = np.linspace(0.9, 0.3, len(losses))
    return [row(str(i), speeds[i], lost[i], gained[i], images) for i in range(len(losses))]


LOSSES = {
    "all lose a little too much": np.full(30, 0.0105),
    "the fast ones lose too much": np.linspace(0.002, 0.03, 30),
    "half of them are harmless": np.repeat([0.001, 0.012], 15),
}


@pytest.mark.parametrize("churn", [0.0, 0.01])
@pytest.mark.parametrize("kind", LOSSES)
def test_what_is_recommended_of_thirty_rarely_loses_more_than_is_allowed(kind, churn):
    """Each with its own interval, in a third of the draws and more some of the thirty are called proven and are not."""
    dice, images, losses = np.random.default_rng(0), 1000, LOSSES[kind]
    chosen = [recommend(drawn(dice, images, losses, churn), images, "accuracy") for _ in range(100)]
    wrong = [a for a in chosen if a["verdict"] == "proven" and losses[int(a["choice"])] > 0.01]
    assert len(wrong) <= 5
    if kind == "all lose a little too much":
        naive = [any(r["difference_low"] >= -0.01 for r in drawn(dice, images, losses, churn)) for _ in range(40)]
        assert sum(naive) > 10
    if kind == "half of them are harmless" and not churn:
        assert sum(a["verdict"] == "proven" for a in chosen) > 80


def test_a_few_that_the_same_images_picked_are_judged_as_all_of_them():
    """The combined choices are those whose parts did best; all thirty lose a little more than is allowed."""
    dice, images, wrong = np.random.default_rng(2), 1000, {0: 0, 28: 0}
    for _ in range(100):
        rows = drawn(dice, images, LOSSES["all lose a little too much"], 0.0)
        picked = sorted(rows, key=lambda each: -each["share"])[:2]
        for untried in wrong:
            wrong[untried] += recommend(picked, images, "accuracy", untried=untried)["verdict"] == "proven"
    assert wrong[28] <= 5 and wrong[0] > 10


def test_the_chance_of_one_choice_is_what_it_says():
    dice, images = np.random.default_rng(1), 2000
    for churn in (0.0, 0.005, 0.03):
        rows = [drawn(dice, images, np.array([0.01]), churn)[0] for _ in range(600)]
        wrong = np.mean([chance(each, 0.01) <= 0.1 for each in rows])
        assert 0.05 < wrong < 0.13


def test_the_front_holds_what_nothing_beats():
    rows = [row("a", 0.5, 300), row("b", 0.6, 600), row("c", 0.7), row("d", 0.7, 150)]
    assert [r["name"] for r in front(rows)] == ["a", "c"]
