"""The loop: it learns, it repeats, it survives a kill without a trace, and it says what is wrong."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from labkit import data
from labkit.errors import LabkitError
from labkit.token_labels import TokenLabels, patch_targets, token_label_loss
from labkit.train import Recipe, classify, epochs, learning_rate, optimizers, train
from labkit.vit import ViT


def tiny(seed=0, classes=10):
    torch.manual_seed(seed)
    return ViT(32, 8, classes, dim=32, depth=2, heads=2)


def centred(batches):
    def at(step, done):
        batch = batches(step, done)
        return replace(batch, images=batch.images * 4 - 2)

    return at


@pytest.fixture(scope="module")
def digits():
    return data.digits("train")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_learns(digits, optimizer):
    recipe = Recipe(steps=150, optimizer=optimizer, lr=3e-3, warmup=0.1)
    two = digits[digits.labels < 2]
    log = train(tiny(), centred(epochs(two, 32)), recipe, every=50)
    assert [row["step"] for row in log.rows] == [50, 100, 150]
    assert log.rows[-1]["accuracy"] > 0.9 and log.rows[-1]["loss"] < 0.3 * log.rows[0]["loss"] + 0.1


def test_the_same_seed_gives_the_same_weights(digits):
    weights = []
    for _ in range(2):
        model = tiny()
        train(model, epochs(digits, 16), Recipe(steps=5))
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_killed_run_resumes_to_the_same_weights(digits, optimizer, tmp_path):
    recipe = Recipe(steps=12, optimizer=optimizer, ema=0.9)

    def run(folder, stop=None):
        def watch(rows):
            if rows[-1]["step"] == stop:
                raise KeyboardInterrupt

        model = tiny()
        log = train(model, epochs(digits, 16), recipe, folder=folder, every=4, watch=watch)
        return model.state_dict(), log.rows

    whole, rows = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", stop=8)
    resumed, again = run(tmp_path / "killed")
    assert rows == again
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    assert not list(tmp_path.rglob("*.part"))


def test_a_folder_of_another_recipe_is_refused(digits, tmp_path):
    train(tiny(), epochs(digits, 16), Recipe(steps=2), folder=tmp_path, every=1)
    with pytest.raises(LabkitError, match="another recipe"):
        train(tiny(), epochs(digits, 16), Recipe(steps=3), folder=tmp_path, every=1)


def test_a_loss_that_is_not_a_number_stops_the_run(digits):
    model = tiny()
    model.head.weight.data[0, 0] = float("nan")
    with pytest.raises(LabkitError, match="became nan at step 0"):
        train(model, epochs(digits, 16), Recipe(steps=2))


def test_images_without_labels_are_refused(digits):
    with pytest.raises(LabkitError, match="needs labels"):
        train(tiny(), lambda step, done: replace(digits[:4], labels=None), Recipe(steps=2))


def test_the_average_of_the_weights_is_returned(digits):
    plain, averaged = tiny(), tiny()
    train(plain, epochs(digits, 16), Recipe(steps=6))
    train(averaged, epochs(digits, 16), Recipe(steps=6, ema=0.99))
    start = tiny().head.weight
    assert 0 < (averaged.head.weight - start).norm() < (plain.head.weight - start).norm()


def test_learning_rate_warms_up_and_ends_at_zero():
    recipe = Recipe(steps=100, lr=1.0, warmup=0.1)
    rates = [learning_rate(recipe, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[9] == 1.0 and rates[100] == pytest.approx(0)
    assert all(a >= b for a, b in pairwise(rates[9:]))


def test_every_parameter_has_one_optimizer_and_vectors_are_not_decayed():
    model = tiny()
    for name, count in (("adamw", 1), ("muon", 2)):
        groups = [g for o in optimizers(model, Recipe(steps=1, optimizer=name)) for g in o.param_groups]
        held = [id(p) for g in groups for p in g["params"]]
        assert sorted(held) == sorted(id(p) for p in model.parameters())
        assert len(optimizers(model, Recipe(steps=1, optimizer=name))) == count
        free = [p for g in groups if g["weight_decay"] == 0 for p in g["params"]]
        assert {id(model.pos_embed), id(model.cls_token), id(model.norm.bias)} <= {id(p) for p in free}


def test_epochs_visit_every_image_once(digits):
    few = digits[:40]
    at = epochs(few, 8)
    seen = torch.cat([at(step, 0).images for step in range(5)])
    assert sorted(seen.sum((1, 2, 3)).tolist()) == pytest.approx(sorted(few.images.sum((1, 2, 3)).tolist()))
    assert not torch.equal(at(0, 0).images, at(5, 0).images)


def test_smoothing_raises_the_loss_of_a_sure_answer(digits):
    model = tiny()
    batch = digits[:8]
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias[:] = torch.eye(10)[batch.labels[0]] * 20
    one = digits[:1]
    assert classify(0.1)(model, one)[0] > classify()(model, one)[0] + 0.5


def test_token_labels_share_each_patch_between_object_and_background():
    batch = data.shapes("val", 6)
    targets = patch_targets(batch.labels, batch.masks, (8, 8), 10)
    assert targets.shape == (6, 64, 11)
    assert torch.allclose(targets.sum(-1), torch.ones(6, 64))
    area = targets[..., :10].sum((1, 2)) / 64
    assert torch.allclose(area, batch.masks.float().mean((1, 2)), atol=1e-6)
    assert (targets[..., :10].sum(1).argmax(-1) == batch.labels).all()


def test_token_labels_train_the_plain_model_inside():
    torch.manual_seed(0)
    wrapped = TokenLabels(ViT(64, 8, 10, dim=32, depth=2, heads=2))
    loss, logits = token_label_loss(wrapped, data.shapes("val", 4))
    loss.backward()
    assert logits.shape == (4, 10)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in wrapped.parameters())
