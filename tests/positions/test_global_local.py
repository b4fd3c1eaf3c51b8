"""Positions that stretch with the image, positions that do not, and two sizes that should agree."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from labkit.errors import LabkitError
from labkit.positions.global_local import GlobalPosition, LocalAttention, scale_consistency_loss
from labkit.positions.sinusoidal import encode
from labkit.vit import Attention
from tests import checks
from tests.weights import normal, randomized

DIM, HEADS, GRID = 16, 4, (4, 6)


@pytest.mark.paper("S089")
@pytest.mark.parametrize("grid", [GRID, (7, 3), (1, 5)])
def test_it_is_fixed_waves_and_a_convolution_on_any_grid(grid):
    position, n = randomized(GlobalPosition(DIM)), grid[0] * grid[1]
    places = [
        (2 * math.pi * (i + 1) / grid[0], 2 * math.pi * (j + 1) / grid[1])
        for i in range(grid[0])
        for j in range(grid[1])
    ]
    waves = encode(torch.tensor(places), DIM).double()
    image = waves.T.unflatten(1, grid)[None]
    conv = F.conv2d(image, position.conv.weight, position.conv.bias, padding=1, groups=DIM)
    x = normal(2, n, DIM)
    checks.equal(
        position(x, grid) - x, conv.flatten(2).transpose(1, 2).expand(2, -1, -1), 1e-6, "waves and a convolution"
    )


@pytest.mark.paper("S089")
def test_the_waves_stretch_with_the_image():
    small, large = (GlobalPosition(DIM).waves((k * 4, k * 6)).reshape(k * 4, k * 6, DIM) for k in (1, 3))
    checks.equal(large[2::3, 2::3], small, 1e-6, "the same shares of the image at three times its size")


@pytest.mark.paper("S089")
def test_parameters_do_not_depend_on_the_grid_and_the_local_term_starts_at_zero():
    assert sum(p.numel() for p in GlobalPosition(DIM).parameters()) == 10 * DIM
    ours, plain = LocalAttention(DIM, HEADS).double(), Attention(DIM, HEADS, impl="plain").double()
    plain.load_state_dict(ours.state_dict(), strict=False)
    local = sum(p.numel() for p in ours.parameters()) - sum(p.numel() for p in plain.parameters())
    assert local == 10 * DIM // HEADS
    for grid in (GRID, (5, 3)):
        x = normal(2, 1 + grid[0] * grid[1], DIM)
        checks.equal(ours.attend(x, grid=grid, prefix=1)[0], plain(x), what="before training, with and without it")


@pytest.mark.paper("S089")
def test_the_local_term_moves_with_the_image_and_is_a_convolution_of_the_values():
    attn, grid = randomized(LocalAttention(DIM, HEADS)), (6, 7)
    values = normal(2, HEADS, 42, DIM // HEADS)
    nothing = torch.zeros(2, HEADS, 42, 42, dtype=torch.float64)

    def local(v):
        return attn.mix(nothing, v.flatten(2, 3), grid, 0).unflatten(2, grid)

    image = values.unflatten(2, grid)
    moved, later = local(image.roll((2, 3), dims=(2, 3))), local(image).roll((2, 3), dims=(2, 3))
    checks.equal(moved[:, :, 3:-1, 4:-1], later[:, :, 3:-1, 4:-1], 1e-12, "the interior, shift first, or last")
    one_head = image[:, 1].movedim(-1, 1)
    conv = F.conv2d(one_head, attn.local_weight, attn.local_bias, padding=1, groups=DIM // HEADS)
    checks.equal(local(image)[:, 1], conv.movedim(1, -1), 1e-12, "one head and the convolution of its values")


def test_the_class_token_has_no_neighbourhood():
    attn, x = randomized(LocalAttention(DIM, HEADS)), normal(2, 26, DIM)
    v = attn.project(x)[2]
    nothing = torch.zeros(2, HEADS, 26, 26, dtype=torch.float64)
    near = attn.mix(nothing, v, GRID, 2)
    assert (near[:, :, :2] == 0).all()
    alone = attn.mix(nothing[:, :, 2:, 2:], v[:, :, 2:], GRID, 0)
    checks.equal(near[:, :, 2:], alone, 1e-12, "the patches' neighbourhood behind a class token and without one")


@pytest.mark.paper("S089")
def test_the_loss_is_zero_exactly_when_the_predictions_agree():
    hi, lo = normal(2, 3, 5)
    assert scale_consistency_loss(hi, hi + 7.0).abs() < 1e-12, "the same prediction, whatever is added to all logits"
    assert scale_consistency_loss(hi, lo) > 0.1
    p, q = hi.softmax(dim=1), lo.softmax(dim=1)
    checks.equal(scale_consistency_loss(hi, lo), (p * (p / q).log()).sum(dim=1).mean(), 1e-12, "the loss and KL")


@pytest.mark.paper("S089")
def test_the_high_resolution_teaches_and_does_not_learn():
    hi, lo = (logits.requires_grad_(True) for logits in normal(2, 3, 5).unbind())
    scale_consistency_loss(hi, lo).backward()
    assert hi.grad is None
    checks.equal(lo.grad, (lo.softmax(dim=1) - hi.softmax(dim=1)) / 3, 1e-12, "the gradient and the difference")


def test_what_does_not_fit_is_a_sentence():
    with pytest.raises(LabkitError, match="choose a multiple of 4"):
        GlobalPosition(18)
    with pytest.raises(LabkitError, match=r"have shapes \(2, 5\) and \(2, 4\)"):
        scale_consistency_loss(torch.zeros(2, 5), torch.zeros(2, 4))
