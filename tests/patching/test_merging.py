"""Merging two by two: timm's Swin layer, a convolution of stride 2, and at the end one large patch."""

from __future__ import annotations

import pytest
import torch
from timm.models.swin_transformer import PatchMerging as TimmPatchMerging
from torch import nn

from labkit.cost import block_macs
from labkit.errors import LabkitError
from labkit.patching.merging import PatchMerging, Pyramid
from labkit.vit import PatchEmbed, ViT
from tests import checks
from tests.weights import normal, randomized


@pytest.mark.parametrize("grid", [(4, 6), (5, 6), (4, 7), (3, 3), (1, 1)])
@pytest.mark.parametrize("out", [None, 10])
def test_it_is_timms_on_even_and_odd_grids(grid, out):
    ours, timms = randomized(PatchMerging(6, out)), TimmPatchMerging(6, out).double()
    timms.load_state_dict(ours.state_dict())
    maps = normal(2, *grid, 6)
    x, merged = ours(maps.flatten(1, 2), grid)
    assert merged == ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
    checks.equal(x, timms(maps).flatten(1, 2), 1e-12, "our merging and timm's")


def test_without_its_norm_it_is_a_convolution_of_stride_two():
    merging, maps = randomized(PatchMerging(6, norm=nn.Identity)), normal(2, 4, 6, 6)
    weight = torch.zeros(12, 6, 2, 2, dtype=torch.float64)
    for column in range(2):
        for row in range(2):  # the four tokens lie side by side column by column
            part = 6 * (2 * column + row)
            weight[:, :, row, column] = merging.reduction.weight[:, part : part + 6]
    expected = nn.functional.conv2d(maps.permute(0, 3, 1, 2), weight, stride=2).flatten(2).mT
    checks.equal(merging(maps.flatten(1, 2), (4, 6))[0], expected, 1e-12)


def test_its_cost():
    checks.cost_law(6 * 4 * 10 * 20, lambda x: PatchMerging(10)(x, (4, 6)), torch.zeros(1, 24, 10))


@pytest.mark.parametrize("floors", [1, 2])
def test_a_pyramid_without_blocks_and_norms_is_the_patch_embedding(floors):
    patch, images = 2 * 2**floors, normal(2, 3, 16, 24)
    pyramid = randomized(Pyramid(8, 2, [0] * floors, norm=nn.Identity))
    plain = PatchEmbed(patch, 3, 8).double()
    with torch.no_grad():
        pixels = torch.eye(3 * patch**2, dtype=torch.float64).view(-1, 3, patch, patch)
        bias = pyramid(torch.zeros(1, 3, patch, patch, dtype=torch.float64))[0][0, 0]
        plain.proj.bias.copy_(bias)
        plain.proj.weight.copy_((pyramid(pixels)[0][:, 0] - bias).T.reshape(plain.proj.weight.shape))
        checks.exact_limit(lambda x: pyramid(x)[0], lambda x: plain(x)[0], images, tol=1e-12)
        assert pyramid(images)[1] == plain(images)[1] == (16 // patch, 24 // patch)


def test_the_cost_of_a_pyramid():
    blocks = sum(block_macs(96, 4).values()) + 2 * sum(block_macs(24, 8).values())
    macs = 96 * 12 * 4 + blocks + 96 * 4 * 8 + 24 * 8 * 16
    checks.cost_law(macs, Pyramid(16, 2, (1, 2)), torch.zeros(1, 3, 16, 24))


def test_a_vit_takes_it():
    vit = ViT(32, 8, 5, 16, 2, 2, patching=Pyramid(16, 2, (1, 1)))
    assert vit.grid == (4, 4) and vit(torch.zeros(2, 3, 32, 48)).shape == (2, 5)
    checks.gradients_flow(vit, normal(2, 3, 32, 32).float())
    checks.follows_dtype_and_device(vit.patch_embed, normal(2, 3, 32, 32).float())
    checks.batch_independent(lambda x: vit.patch_embed(x)[0], normal(2, 3, 32, 32).float())


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: PatchMerging(4)(torch.zeros(1, 11, 4), (3, 4)), "11 tokens do not fill a grid of 3x4"),
        (lambda: Pyramid(18, 2, (1, 1)), "2 mergings cannot end at a width of 18"),
        (lambda: Pyramid(16, 4)(torch.zeros(1, 3, 18, 16)), "18x16 is not divisible by the patch size 4"),
    ],
)
def test_what_does_not_fit_is_a_sentence(make, sentence):
    with pytest.raises(LabkitError, match=sentence):
        make()
