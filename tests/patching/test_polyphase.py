"""The grid that the content chooses: every shift gives the same tokens, moved, and the same prediction."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from einops import rearrange

from labkit.errors import LabkitError
from labkit.patching.polyphase import Anchored, polyphase_anchor, shift_consistency
from labkit.positions.conditional import PEG
from labkit.vit import PatchEmbed, ViT
from tests import checks
from tests.weights import normal, randomized

SIZE, STRIDE, DIM = (8, 12), (4, 3), 16
SHIFTS = list(product(range(SIZE[0]), range(SIZE[1])))


def vit(anchored: bool = True, **options) -> ViT:
    embed = PatchEmbed(STRIDE, 3, DIM)
    patching = Anchored(embed, STRIDE) if anchored else embed
    options = {"pool": "avg", "positions": False} | options
    model = randomized(ViT(SIZE, classes=10, dim=DIM, depth=2, heads=2, patching=patching, **options))
    return model


@pytest.mark.paper("S349")
def test_every_shift_gives_the_same_tokens_on_a_shifted_grid():
    embed, images = randomized(Anchored(PatchEmbed(STRIDE, 3, DIM), STRIDE)), normal(2, 3, *SIZE)
    grid = (SIZE[0] // STRIDE[0], SIZE[1] // STRIDE[1])
    _, phase = polyphase_anchor(images, STRIDE)
    tokens = rearrange(embed(images)[0], "b (h w) d -> b h w d", h=grid[0])
    for shift in SHIFTS:
        moved = images.roll(shift, (-2, -1))
        _, new_phase = polyphase_anchor(moved, STRIDE)
        total = phase + torch.tensor(shift)
        assert torch.equal(new_phase, total % torch.tensor(STRIDE)), shift
        steps = total // torch.tensor(STRIDE)
        expected = torch.stack([t.roll(s.tolist(), (0, 1)) for t, s in zip(tokens, steps, strict=True)])
        checks.equal(embed(moved)[0], expected.flatten(1, 2), 1e-12, f"shifted by {shift}")


@pytest.mark.paper("S349")
def test_the_anchor_is_the_shift_that_brings_the_best_phase_to_the_corner():
    images = normal(2, 3, *SIZE)
    images[0, :, 2::4, 1::3] += 9
    images[1, :, 0::4, 2::3] -= 9
    anchored, phase = polyphase_anchor(images, STRIDE)
    assert phase.tolist() == [[2, 1], [0, 2]]
    assert torch.equal(anchored[0], images[0].roll((-2, -1), (-2, -1)))
    assert torch.equal(anchored[1], images[1].roll((0, -2), (-2, -1)))
    again, zero = polyphase_anchor(anchored, STRIDE)
    assert torch.equal(again, anchored) and not zero.any()
    lowest = polyphase_anchor(images, STRIDE, lambda phases: -phases.norm(dim=-1))[1]
    assert not torch.equal(lowest, phase)


@pytest.mark.paper("S349")
def test_pooled_logits_do_not_see_a_shift_and_plain_ones_do():
    images = normal(2, 3, *SIZE)
    ours, plain = vit(), vit(anchored=False)
    logits = ours(torch.cat([images.roll(shift, (-2, -1)) for shift in SHIFTS]))
    checks.equal(logits, ours(images).repeat(len(SHIFTS), 1), 1e-12)
    assert (plain(images.roll(1, -1)) - plain(images)).abs().max() > 1e-3
    checks.equal(plain(images.roll(STRIDE, (-2, -1))), plain(images), 1e-12)  # a whole patch moves whole tokens


@pytest.mark.paper("S349")
@pytest.mark.parametrize("options", [{}, {"pool": "class"}, {"position": PEG(DIM, padding="circular")}], ids=str)
def test_predictions_are_all_consistent_without_absolute_positions(options):
    images, shifts = normal(8, 3, *SIZE), SHIFTS[1::5]
    assert (shift_consistency(vit(**options), images, shifts) == 1).all()
    assert shift_consistency(vit(anchored=False, **options), images, shifts).min() < 1


@pytest.mark.paper("S349")
@pytest.mark.parametrize("options", [{"positions": True}, {"position": PEG(DIM)}], ids=["table", "zero padding"])
def test_absolute_positions_break_it(options):
    images, model = normal(8, 3, *SIZE), vit(**options)
    assert (model(images.roll(STRIDE, (-2, -1))) - model(images)).abs().max() > 1e-3


def test_consistency_is_counted_for_each_shift():
    def bright_corner(images):
        return torch.stack([images[:, 0, 0, 0], torch.zeros(len(images))], dim=1)

    images = torch.full((2, 1, 2, 2), -1.0)
    images[0, 0, 0, 0] = images[1, 0, 0, 1] = 1.0
    shares = shift_consistency(bright_corner, images, [(0, 0), (0, 1), (1, 0), (2, 2)])
    assert shares.tolist() == [1.0, 0.0, 0.5, 1.0]


def test_it_learns_and_follows_its_input_and_works_on_maps():
    ours, images = Anchored(PatchEmbed(STRIDE, 3, DIM), STRIDE), normal(2, 3, *SIZE).float()
    checks.gradients_flow(ours, images)
    checks.follows_dtype_and_device(ours, images)
    checks.batch_independent(lambda x: ours(x)[0], images)
    checks.cost_law(SIZE[0] * SIZE[1] * 3 * DIM * 2, ours, images)  # that of the patches
    maps = normal(2, DIM, 6, 6)
    anchored, _ = polyphase_anchor(maps, 2)
    checks.equal(polyphase_anchor(maps.roll((1, 3), (-2, -1)), 2)[0].sum(dim=(2, 3)), anchored.sum(dim=(2, 3)), 1e-12)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: polyphase_anchor(torch.zeros(1, 3, 10, 8), 4), "10x8 is not divisible by the patch size 4x4"),
        (lambda: shift_consistency(vit(), normal(1, 3, *SIZE), []), "No shift was given"),
    ],
)
def test_what_does_not_fit_is_a_sentence(make, sentence):
    with pytest.raises(LabkitError, match=sentence):
        make()
