"""Overlapping patches: as many as the strides, timm's PVT v2, and without overlap the plain embedding."""

from __future__ import annotations

import pytest
import torch
from timm.models.pvt_v2 import OverlapPatchEmbed as TimmOverlapPatchEmbed
from torch import nn

from labkit.errors import LabkitError
from labkit.patching.overlap import OverlapPatchEmbed, token_grid
from labkit.vit import PatchEmbed, ViT
from tests import checks
from tests.weights import normal, randomized

SHAPES = [(7, 4, None), (3, 2, 1), (15, 8, None), (8, 8, 0), (6, 4, 0)]


@pytest.mark.parametrize(("kernel", "stride", "padding"), SHAPES)
def test_the_formula_of_the_grid(kernel, stride, padding):
    embed, size = OverlapPatchEmbed(6, kernel, stride, padding), (37, 52)
    x, grid = embed(torch.zeros(2, 3, *size))
    assert grid == tuple(embed.proj(torch.zeros(1, 3, *size)).shape[-2:]) and x.shape == (2, grid[0] * grid[1], 6)
    assert grid == token_grid(size, kernel, stride, kernel // 2 if padding is None else padding)


def test_grids_that_are_known():
    assert token_grid((224, 224), 7, 4, 3) == (56, 56) and token_grid((224, 160), 16, 16) == (14, 10)
    assert token_grid((5, 7), 5, 2) == (1, 2)


def test_without_overlap_it_is_the_patch_embedding():
    embed, plain = (randomized(m) for m in (OverlapPatchEmbed(6, 4, 4, 0, norm=nn.Identity), PatchEmbed(4, 3, 6)))
    images = normal(2, 3, 8, 12)
    checks.exact_limit(lambda x: embed(x)[0], lambda x: plain(x)[0], images, tol=1e-12)
    checks.equal_gradients(lambda x: embed(x)[0], lambda x: plain(x)[0], images)
    assert embed(images)[1] == plain(images)[1]


@pytest.mark.parametrize(("kernel", "stride"), [(7, 4), (3, 2)])
def test_it_is_timms(kernel, stride):
    ours = randomized(OverlapPatchEmbed(8, kernel, stride))
    timms = TimmOverlapPatchEmbed(kernel, stride, 3, 8).double()
    timms.load_state_dict(ours.state_dict())
    checks.equal(ours(normal(2, 3, 16, 24))[0], timms(normal(2, 3, 16, 24)).flatten(1, 2), 1e-12)


def test_a_pixel_at_an_edge_reaches_both_neighbours_and_only_them():
    embed = OverlapPatchEmbed(6, 7, 4, norm=nn.Identity).double()
    reached = []
    for column in (5, 7, 8):
        image = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
        image[..., 5, column] = 1
        changed = (embed(image)[0] - embed(torch.zeros_like(image))[0]).abs().sum(dim=-1).view(4, 4)
        reached.append(changed.any(dim=0).nonzero().flatten().tolist())
    assert reached == [[1, 2], [1, 2], [2]]


def test_its_cost_is_the_square_of_the_overlap():
    images = torch.zeros(1, 3, 32, 48)
    checks.cost_law(8 * 12 * 3 * 7**2 * 16, OverlapPatchEmbed(16, 7, 4), images)
    checks.cost_law(8 * 12 * 3 * 4**2 * 16, OverlapPatchEmbed(16, 4, 4, 0), images)


def test_a_vit_takes_it():
    vit = ViT(32, 8, 5, 16, 2, 2, patching=OverlapPatchEmbed(16, 15, 8))
    assert vit.grid == (4, 4) and vit(torch.zeros(2, 3, 32, 48)).shape == (2, 5)
    checks.gradients_flow(vit, normal(2, 3, 32, 32).float())
    checks.follows_dtype_and_device(vit.patch_embed, normal(2, 3, 32, 32).float())
    checks.batch_independent(lambda x: vit.patch_embed(x)[0], normal(2, 3, 32, 32).float())


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: OverlapPatchEmbed(6, 3, 4), "A kernel of 3 with a stride of 4 skips pixels"),
        (lambda: OverlapPatchEmbed(6, 7, 4, 0)(torch.zeros(1, 3, 5, 16)), "A kernel of 7 does not fit into 5x16"),
        (lambda: OverlapPatchEmbed(6)(torch.zeros(1, 1, 8, 8)), r"expected \(batch, 3, height, width\)"),
    ],
)
def test_what_does_not_fit_is_a_sentence(make, sentence):
    with pytest.raises(LabkitError, match=sentence):
        make()
