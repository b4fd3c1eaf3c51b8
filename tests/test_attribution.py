"""Attributions: answers known because the model is linear, completeness, patches, and a cache that can be trusted."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

import labkit
from labkit import data, paths, tokens
from labkit.errors import LabkitError
from labkit.explain import attribution, cache
from labkit.explain.attribution import integrated_gradients, occlusion, patch_ablation, patch_mask, smooth_grad
from tests.checks import equal
from tests.oblong import images, model

EVERY = [integrated_gradients, smooth_grad, occlusion, patch_ablation]
TAKING_AWAY = [integrated_gradients, occlusion, patch_ablation]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The cache, empty and in a place of its own."""
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    return tmp_path / "attribution"


class Linear(nn.Module):
    """Logit c is the sum of all pixels times their weight for c."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 3, 32, 48, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        return torch.einsum("bijk,cijk->bc", x, self.weight)


def per_patch(pixels):
    """(b, 3, 32, 48) → (b, 4, 6), cell by cell."""
    rows = torch.stack(pixels.split(8, dim=2), dim=1).sum(dim=(2, 3))
    return torch.stack(rows.split(8, dim=2), dim=2).sum(dim=3)


@pytest.mark.parametrize("baseline", [None, 0.25, "pixels"])
@pytest.mark.parametrize("method", [integrated_gradients, partial(occlusion, window=1), patch_ablation])
def test_on_a_linear_model_a_patch_is_worth_its_weights(method, baseline):
    x, linear, target = images(), Linear(), torch.tensor([1, 4, 0])
    baseline = images(4)[1:] if baseline == "pixels" else baseline
    away = x.mean(dim=(2, 3), keepdim=True) if baseline is None else baseline
    expected = per_patch((x - away) * linear.weight[target])
    equal(method(linear, x, target, grid=(4, 6), baseline=baseline), expected, 1e-3)


def test_a_larger_square_is_shared_by_the_patches_that_it_covers():
    """Each square of 2 x 2 patches is worth the sum of its four; a patch gets the mean over its squares."""
    x, linear = images(), Linear()
    worth = per_patch((x - 0.5) * linear.weight[2])
    squares = worth[:, :-1, :-1] + worth[:, 1:, :-1] + worth[:, :-1, 1:] + worth[:, 1:, 1:]
    got = occlusion(linear, x, 2, grid=(4, 6), baseline=0.5)
    equal(got[:, 0, 0], squares[:, 0, 0], 1e-3)
    equal(got[:, 2, 3], squares[:, 1:3, 2:4].mean(dim=(1, 2)), 1e-3)
    equal(occlusion(linear, x, 2, grid=(1, 1), baseline=0.5).flatten(), worth.sum(dim=(1, 2)), 1e-2)


def test_noise_does_not_change_the_gradient_of_a_linear_model():
    linear = Linear()
    got = smooth_grad(linear, images(), 3, grid=(4, 6))
    equal(got, per_patch(linear.weight[3:4].abs()).expand(3, 4, 6), 1e-3)


def test_smooth_grad_averages_gradients_before_it_takes_their_size():
    """Where the gradient flips its sign within the noise, it averages out."""

    class Tent(nn.Module):
        def forward(self, x):
            return (x - 0.5).abs().sum(dim=(1, 2, 3))[:, None]

    x = torch.full((1, 3, 8, 16), 0.5)
    x[..., 8:] = 1.0
    flat, slope = smooth_grad(Tent(), x, 0, grid=(1, 2), samples=64)[0, 0]
    assert slope == 192 and flat < 0.2 * slope


def test_noise_is_the_same_every_time_and_leaves_the_dice_of_the_user_alone():
    vit = model()
    first = smooth_grad(vit, images(), 1, cache=False)
    state = torch.manual_seed(5).get_state()
    equal(smooth_grad(vit, images(), 1, cache=False), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_noise_comes_from_dice_of_its_own_on_the_cpu(monkeypatch):
    """The dice of a device would draw another map there."""
    x, vit = images()[:1], model()
    noise = torch.randn(4, *x.shape[1:], generator=torch.Generator().manual_seed(7))
    noisy = (x + 0.15 * float(x.max() - x.min()) * noise).requires_grad_()
    (gradient,) = torch.autograd.grad(vit(noisy)[:, 1].sum(), noisy)
    monkeypatch.setattr(torch, "manual_seed", None)
    got = smooth_grad(vit, x, 1, samples=4, seed=7, cache=False)
    equal(got, per_patch(gradient.mean(dim=0, keepdim=True).abs()), 1e-5)


@pytest.mark.parametrize("baseline", [None, 0.5])
def test_integrated_gradients_are_complete(baseline):
    """They sum to f(x) - f(baseline): with 64 steps within 1 % of the largest such difference."""
    shapes = labkit.load("shapes-vit")
    x = data.shapes("test", 2).images
    with torch.no_grad():
        nothing = attribution.baseline_images(x, baseline)
        gap = shapes(x)[:, 3] - shapes(nothing)[:, 3]
    found = integrated_gradients(shapes, x, 3, baseline=baseline, steps=64).sum(dim=(1, 2))
    equal(found, gap, 0.01 * float(gap.abs().max()), "the sum of the map and the change of the logit")


@pytest.mark.parametrize("method", TAKING_AWAY)
def test_replacing_pixels_by_themselves_changes_nothing(method):
    equal(method(model(), images(), 2, baseline=images()), torch.zeros(3, 4, 6), 1e-6)


def test_each_pixel_belongs_to_one_patch_in_all_channels():
    mask = patch_mask((4, 6), images())
    assert mask.shape == (1, 1, 32, 48)
    assert mask.flatten().bincount().tolist() == [64] * 24
    assert mask[0, 0, 8:16, 40:48].unique().tolist() == [11]


def test_ablating_a_patch_by_hand():
    x, vit = images(), model(registers=1)
    changed = x.clone()
    changed[1, :, 16:24, 32:40] = x[1].mean(dim=(1, 2))[:, None, None]
    with torch.no_grad():
        fall = vit(x)[1, 4] - vit(changed)[1, 4]
    equal(patch_ablation(vit, x, 4)[1, 2, 4], fall, 1e-5)


def test_cells_that_do_not_divide_the_image_are_refused():
    with pytest.raises(LabkitError, match=r"\(32, 48\) pixels do not divide into \(5, 6\) cells"):
        patch_ablation(model(), images(), grid=(5, 6))
    conv = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(LabkitError, match=r"Name the cells to explain: grid=\(rows, columns\)"):
        patch_ablation(conv, images())
    assert patch_ablation(conv, images(), grid=(2, 3)).shape == (3, 2, 3)


@pytest.mark.parametrize("method", EVERY)
def test_a_model_in_training_is_asked_in_evaluation_mode(method):
    training = nn.Sequential(nn.Dropout(0.5), Linear(), nn.Dropout(0.5))
    first = method(training, images(), 1, grid=(4, 6), cache=False)
    assert training.training and training[0].training
    equal(first, method(training.eval(), images(), 1, grid=(4, 6), cache=False))


def test_progress_is_shown_when_asked_for(capsys):
    patch_ablation(model(), images(), progress=True)
    assert "patch ablation: 100%" in capsys.readouterr().err
    patch_ablation(model(), images(), cache=False)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("method", EVERY)
def test_what_was_computed_once_is_read(method, folder, monkeypatch):
    first = method(model(), images(), 1)
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setattr(attribution, "reduce", None)  # nothing can be computed from here on
    equal(method(model(), images(), 1), first)
    with pytest.raises(TypeError):
        method(model(), images(), 1, cache=False)


def test_whatever_changes_the_key_changes(folder):
    x = images()
    other_weights, slim = model(), tokens.attach(model(), tokens.Keep(0.5), [1])
    other_weights.head.bias.data[0] += 1e-6
    asked = [
        {},
        {"target": 2},
        {"images": x + 1e-6},
        {"baseline": 0.5},
        {"grid": (2, 3)},
        {"model": other_weights},
        {"model": slim},
        {"model": tokens.attach(model(), tokens.Keep(0.6), [1])},
    ]
    for change in asked:
        patch_ablation(**{"model": model(), "images": x, "target": 1} | change)
    occlusion(model(), x, 1, window=1)
    smooth_grad(model(), x, 1, seed=1)
    assert len(list(folder.iterdir())) == len(asked) + 2


def test_nothing_is_stored_when_asked_not_to_or_when_the_model_has_no_value(folder):
    patch_ablation(model(), images(), cache=False)
    slim = tokens.attach(model(), tokens.Keep(0.5, lambda evidence, prefix: evidence.k[:, 0, prefix:, 0]), [1])
    patch_ablation(slim, images())
    assert cache.key(slim) is None and cache.key(model()) == cache.key(model())
    assert not folder.exists()


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_file_is_computed_again(damage, folder):
    first = patch_ablation(model(), images(), 1)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[:-9], "flip": whole[:-1] + bytes([whole[-1] ^ 1]), "empty": b""}[damage])
    equal(patch_ablation(model(), images(), 1), first)
    assert file.read_bytes() == whole and list(folder.iterdir()) == [file]


def test_a_cache_that_cannot_be_written_costs_only_time(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(paths, "CACHE", tmp_path / "file")
    assert patch_ablation(model(), images(), 1).shape == (3, 4, 6)
