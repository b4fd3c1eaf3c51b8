"""The instrument that says whether the pair of data and model teaches, tested on answers that are known."""

from __future__ import annotations

import pytest
import torch

from labkit import data, results, tokens, zoo
from labkit.verify import DEMANDS, Demand, coverage, verify


def demand(points, at_most=False):
    return Demand("a beats b", "a", "b", points, at_most)


def test_a_clear_difference_holds_and_a_small_one_does_not():
    n = 1000
    right = {"a": torch.arange(n) < 900, "b": torch.arange(n) < 600}
    assert demand(3).judge(right)["points"] == 30 and demand(3).judge(right)["holds"]
    assert not demand(29.9).judge(right)["holds"]  # the interval reaches below
    assert not demand(5, at_most=True).judge(right)["holds"]
    assert demand(35, at_most=True).judge(right)["holds"]


def test_coverage_is_the_share_of_object_in_each_patch():
    masks = torch.zeros(1, 16, 16, dtype=torch.bool)
    masks[0, :8, :4] = True
    assert coverage(masks, (2, 2)).tolist() == [[0.5, 0.0, 0.0, 0.0]]


def test_the_shipped_model_teaches():
    """On 400 images: every ordering is visible; the stored table on 4,000 has the intervals."""
    rows, _ = verify(zoo.load("shapes-vit"), data.shapes("test", 400), data.shapes("train", 64).images)
    score = {row["setting"]: row["accuracy"] for row in rows}
    assert score["oracle"] >= score["class attention"] > score["random"] + 0.03
    assert score["random"] > score["least attended"] + 0.03
    assert score["full"] - score["merge similar"] <= 0.015 and score["full"] - score["merge random"] >= 0.03
    assert score["W3 per channel"] - score["W3 per tensor"] >= 0.05
    assert score["full"] - score["W4A4"] >= 0.1 and abs(score["full"] - score["W8A8"]) <= 0.015


def test_the_stored_table_says_that_every_demand_holds():
    stored = results.load("verify-shapes-vit")
    assert [row["name"] for row in stored["demands"]] == [d.name for d in DEMANDS]
    assert all(row["holds"] for row in stored["demands"])


def test_attention_points_at_the_object_and_the_centre_does_not():
    """The control of the pointing game: where the class token looks most beats the centre of the frame."""
    model, held_out = zoo.load("shapes-vit"), data.shapes("test", 500)
    covered = coverage(held_out.masks, model.grid) >= 0.25
    with torch.inference_mode():
        step = model.observe(held_out.images).steps[-2]
    looked_at = tokens.class_attention(step.evidence, model.prefix).argmax(dim=1)
    pointing = covered.gather(1, looked_at[:, None]).float().mean()
    centre = covered.unflatten(1, model.grid)[:, 3:5, 3:5].float().mean()
    assert centre < 0.4 and pointing > 0.9


@pytest.mark.parametrize("name", [d.name for d in DEMANDS])
def test_demands_name_settings_that_exist(name):
    d = next(d for d in DEMANDS if d.name == name)
    settings = {row["setting"] for row in results.load("verify-shapes-vit")["accuracy"]}
    assert {d.better, d.worse} <= settings
