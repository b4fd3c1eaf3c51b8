"""The judge, its controls and its table on numbers that are known, then on the shipped model; and the command."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
import time

import pytest
import torch

from labkit import data, paths, zoo
from labkit.errors import LabkitError
from labkit.explain.controls import CONTROLS, centre_map, edge_map, random_map
from labkit.explain.methods import METHODS
from labkit.explain.scores import MASK, METERS, Scores, judge
from labkit.explain.trial import trial

HERE = tuple(CONTROLS)


@pytest.fixture(scope="module")
def shown():
    return data.shapes("test", 60)


@pytest.fixture(scope="module")
def vit():
    return zoo.load("shapes-vit")


def looks(model, images, target):
    """Where the class token looks in the block before the last."""
    with torch.no_grad():
        seen = model.observe(images)
    return seen.steps[-2].evidence.attention(slice(0, 1))[:, :, 0, 1:].mean(1).unflatten(1, seen.grid)


# controls


def test_the_random_control_repeats_with_its_seed_and_is_uniform():
    images = torch.zeros(50, 3, 8, 8)
    maps = random_map(images, (4, 5))
    assert torch.equal(maps, random_map(images, (4, 5))) and not torch.equal(maps, random_map(images, (4, 5), seed=1))
    assert maps.shape == (50, 4, 5) and abs(maps.mean() - 0.5) < 0.04 and not torch.equal(maps[0], maps[1])


def test_the_centre_control_is_a_bell_in_the_middle():
    bell = centre_map(torch.zeros(2, 3, 8, 8), (5, 7))
    assert bell.shape == (2, 5, 7) and bell.amax() == bell[1, 2, 3] == 1
    torch.testing.assert_close(bell, bell.flip(1).flip(2))
    # A quarter of the side from the middle is one standard deviation.
    assert centre_map(torch.zeros(1, 3, 8, 8), (2, 1))[0, 0, 0].item() == pytest.approx(2.718281828**-0.5)


def test_the_edge_control_sees_a_step_and_nothing_else():
    """Black to white between the columns 3 and 4: Sobel gives 4 on both, the other cells are plain."""
    images = (torch.arange(8) >= 4).float().expand(1, 3, 8, 8)
    torch.testing.assert_close(edge_map(images, (1, 4)), torch.tensor([[[0.0, 2, 2, 0]]]))
    torch.testing.assert_close(edge_map(images.mT, (4, 1)), torch.tensor([[[0.0], [2], [2], [0]]]))
    assert edge_map(torch.full((1, 3, 8, 8), 0.7), (4, 4)).abs().max() < 1e-6


# the table


def test_one_map_is_judged_alone_and_images_bring_the_controls(shown):
    maps = shown.masks.float()
    alone = judge(maps, shown.masks)
    assert list(alone.values) == ["map"] and alone.controls == ()
    beside = judge({"mine": maps, "other": -maps}, shown.masks, shown.images)
    assert list(beside.values) == ["mine", "other", *HERE, MASK] and beside.controls == HERE
    assert torch.equal(beside.values["mine"]["AUC"], alone.values["map"]["AUC"])
    assert set(alone.values["map"]) == {"pointing", "mass", "IoU", "AUC"}
    assert all(score.mean == 1 and score.beats for score in beside.summary["mine"].values())
    assert not any(score.beats for name in ("other", *HERE) for score in beside.summary[name].values())


def test_the_star_asks_for_a_clear_difference_on_the_same_images():
    dice = torch.Generator().manual_seed(0)
    base = torch.rand(100, generator=dice, dtype=torch.float64)  # images differ far more than maps do

    def scores(gain: float, metric: str) -> bool:
        noise = torch.randn(100, generator=dice, dtype=torch.float64)
        noise = 0.1 * (noise - noise.mean())  # what is gained is exactly `gain`, known to about ±0.02
        values = {
            "mine": {metric: base + gain + noise},
            "good": {metric: base},
            "bad": {metric: base - METERS[metric][0]},
        }
        return Scores(values, ("good", "bad")).summary["mine"][metric].beats

    assert scores(0.05, "AUC") and not scores(0.005, "AUC") and not scores(-0.05, "AUC")
    assert scores(-0.05, "deletion") and not scores(0.05, "deletion")  # low is good
    values = {"mine": {"random weights": base - 9}, "rival": {"random weights": base}}
    assert not Scores(values, ("rival",)).summary["mine"]["random weights"].beats


def test_intervals_are_wilsons_for_hits_and_hold_the_mean():
    hits = torch.tensor([1.0] * 8 + [0.0] * 2, dtype=torch.float64)
    score = Scores({"mine": {"pointing": hits, "mass": hits}}).summary["mine"]["pointing"]
    assert score == pytest.approx((0.8, 0.4902, 0.9433, False), abs=1e-4)
    half = Scores({"mine": {"pointing": torch.full((9,), 0.5)}}).summary["mine"]["pointing"]
    assert half.low < 0.5 < half.high


def test_the_table_reads_well_as_text_and_as_html(shown):
    scores = judge({"mine <1>": shown.masks.float()}, shown.masks, shown.images)
    lines = repr(scores).splitlines()
    assert lines[0].split() == ["map", "pointing", "mass", "IoU", "AUC"] and max(map(len, lines[:8])) < 120
    assert re.match(r"mine <1> +1\.00 \[0\.9\d,\xa01\.00\]\* +1\.00 \[1\.00,\xa01\.00\]\*", lines[2]), "no break inside"
    assert "Means over 60 images, with 95 % intervals. * beats the best of random, centre, edges" in repr(scores)
    assert all(METERS[metric][1] in repr(scores) for metric in scores.values["random"])
    html = scores._repr_html_()
    assert "mine &lt;1&gt;" in html and html.count("<table>") == 1 and "AUC: chance" in html
    values = {"pointing": torch.ones(2)}
    assert "<b>" not in Scores({"map": values, "<b>": values}, ("<b>",))._repr_html_()


def test_a_single_image_has_no_interval(shown):
    scores = judge(shown.masks[:1].float(), shown.masks[:1])
    assert scores.summary["map"]["AUC"] == (1, None, None, False)
    assert "[" not in repr(scores) and "Means over 1 image." in repr(scores)


def test_what_cannot_be_judged_is_a_sentence(shown):
    with pytest.raises(LabkitError, match="no map to judge"):
        judge({}, shown.masks)
    with pytest.raises(LabkitError, match='"centre" is the name of a control'):
        judge({"centre": shown.masks.float()}, shown.masks)
    with pytest.raises(LabkitError, match=r"expected \(60, rows, columns\)"):
        judge(torch.ones(3, 8, 8), shown.masks, shown.images)
    with pytest.raises(LabkitError, match=r"expected \(60, rows, columns\)"):
        judge(torch.ones(3, 8, 8), shown.masks)


def test_a_thousand_maps_are_judged_within_two_seconds():
    dice = torch.Generator().manual_seed(0)
    maps = torch.rand(1000, 14, 14, generator=dice)
    masks = torch.randint(0, 2, (1000, 224, 224), generator=dice, dtype=torch.bool)
    start = time.process_time()
    judge(maps, masks)
    assert time.process_time() - start < 2


# the shipped model


def test_attention_is_judged_good_and_luck_is_judged_luck(vit, shown):
    scores = judge(looks(vit, shown.images, None), shown.masks, shown.images)
    area = shown.masks.float().mean().item()
    found, luck, best = (scores.summary[name] for name in ("map", "random", MASK))
    assert all(score.beats for score in found.values())
    assert luck["pointing"].low < area < luck["pointing"].high and luck["AUC"].low < 0.5 < luck["AUC"].high
    assert luck["mass"].mean == pytest.approx(area, abs=0.02)
    assert found["pointing"].mean > 0.6 and found["AUC"].mean > 0.9
    assert all(best[metric].mean >= found[metric].mean for metric in ("pointing", "IoU", "AUC"))


def test_the_trial_tells_methods_from_controls(vit, shown):
    few = shown[:4]
    scores = trial(vit, few.images, few.masks, {"looks": looks})
    assert list(scores.values) == ["looks", *HERE, MASK] and scores.seconds["looks"] > 0
    assert set(scores.values["looks"]) == set(METERS) and set(METERS) - set(scores.values[MASK]) == {"random weights"}
    mean = {name: {m: score.mean for m, score in row.items()} for name, row in scores.summary.items()}
    assert mean["looks"]["deletion"] < 0.3 < mean["random"]["deletion"]
    assert mean["looks"]["insertion"] > 0.8 > mean["random"]["insertion"]
    assert mean["looks"]["ROAD"] > 0.5 > mean["random"]["ROAD"] and mean["looks"]["random weights"] < 0.5
    assert all(mean[name]["random weights"] == pytest.approx(1) for name in HERE)


# the command


def test_the_command_prints_and_saves_the_table(vit, tmp_path):
    (tmp_path / "checkpoints").symlink_to(paths.CHECKPOINTS)
    run = subprocess.run(
        [sys.executable, "-m", "labkit.explain.judge", "--images", "1", "--seed", "3", "--save"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "LABKIT_DATA": str(tmp_path)},
    )
    assert run.returncode == 0, run.stderr
    assert "shapes-vit on 1 test images of shapes with seed 3" in run.stdout and "14/14" in run.stderr
    saved = json.loads((tmp_path / "results" / "judge-shapes-vit.json").read_text())
    assert saved["provenance"]["seed"] == 3 and "--images 1" in saved["provenance"]["command"]
    assert "Wilson" in saved["provenance"]["interval"] and saved["values"]["images"] == 1
    assert set(saved["values"]["scores"]) == {*METHODS, *HERE, MASK} and set(saved["values"]["seconds"]) == {*METHODS}
    rollout, seen = saved["values"]["scores"]["rollout"], data.shapes("test", 1, seed=3)
    again = judge(METHODS["rollout"](vit, seen.images, None), seen.masks).summary["map"]
    assert {metric: rollout[metric]["mean"] for metric in again} == pytest.approx(
        {metric: score.mean for metric, score in again.items()}, abs=1e-4
    )
    assert set(rollout) == set(METERS) and f"{rollout['ROAD']['mean']:.2f}" in run.stdout


def test_a_model_that_reads_no_shapes_is_refused():
    main = runpy.run_module("labkit.explain.judge")["main"]
    with pytest.raises(LabkitError, match='"digits-vit" does not read shapes'):
        main(["--model", "digits-vit"])
    with pytest.raises(LabkitError, match="invalid int value"):
        main(["--images", "many"])
