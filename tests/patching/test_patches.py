"""Patchify three ways, back again, its law of cost, and what a token of d numbers must lose."""

from __future__ import annotations

import pytest
import torch
from timm.layers import PatchEmbed as TimmPatchEmbed
from torch import nn

from labkit.cost import count
from labkit.errors import LabkitError
from labkit.patching.patches import (
    cut,
    cut_by_convolution,
    cut_by_loops,
    patch_embed,
    patch_sweep,
    pca_errors,
    uncut,
    vit_macs,
)
from labkit.vit import PatchEmbed, ViT
from tests import checks
from tests.weights import normal, randomized

WAYS = [cut, cut_by_loops, cut_by_convolution]


@pytest.mark.parametrize("way", WAYS)
def test_a_patch_is_its_pixels_channel_by_channel_and_row_by_row(way):
    image = torch.arange(2 * 4 * 6).view(1, 2, 4, 6).double()  # pixel = 24 channel + 6 row + column
    tokens = way(image, (2, 3))
    assert tokens.shape == (1, 4, 12)
    assert tokens[0, 1].tolist() == [3, 4, 5, 9, 10, 11, 27, 28, 29, 33, 34, 35]
    assert tokens[0, 2].tolist() == [12, 13, 14, 18, 19, 20, 36, 37, 38, 42, 43, 44]


@pytest.mark.paper("S183")
@pytest.mark.parametrize("patch", [1, 2, 4, (2, 6)])
def test_the_three_ways_are_one_and_nothing_is_lost(patch):
    images = normal(2, 3, 8, 12)
    p, q = (patch, patch) if isinstance(patch, int) else patch
    for way in WAYS:
        checks.equal(way(images, patch), nn.functional.unfold(images, (p, q), stride=(p, q)).mT, what=way.__name__)
        checks.equal(uncut(way(images, patch), patch, (8 // p, 12 // q)), images, what="the images and the way back")
        checks.follows_dtype_and_device(lambda x, way=way: way(x, patch), images.float())


@pytest.mark.paper("S183")
@pytest.mark.parametrize("bias", [True, False])
def test_cut_and_linear_is_the_convolution_ours_and_timms(bias):
    ours = randomized(PatchEmbed(4, 3, 10, bias))
    timms = TimmPatchEmbed(None, 4, 3, 10, bias=bias).double()
    timms.load_state_dict(ours.state_dict())
    images = normal(2, 3, 8, 12)
    written_out = patch_embed(images, 4, ours.proj.weight, ours.proj.bias)
    checks.equal(written_out, ours(images)[0], 1e-12, "cut + linear and our PatchEmbed")
    checks.equal(written_out, timms(images), 1e-12, "cut + linear and timm's PatchEmbed")
    checks.equal_gradients(lambda x: patch_embed(x, 4, ours.proj.weight), lambda x: ours(x)[0], images)


@pytest.mark.paper("S183")
@pytest.mark.parametrize(("image", "patch"), [(32, 8), (32, 4), (32, 2), ((16, 24), 4)])
def test_the_law_of_cost_is_what_the_counter_counts(image, patch):
    vit = ViT(image, patch, 10, 24, 2, 3)
    vit.last = "full"
    assert vit_macs(image, patch, 24, 2, classes=10) == count(vit, image).macs


@pytest.mark.paper("S183")
def test_an_image_of_224_has_50176_tokens_of_one_pixel_and_the_law_is_quadratic():
    assert cut(torch.zeros(1, 3, 224, 224), 1).shape == (1, 50_176, 3)
    n, patches, depth, dim = torch.arange(1, 5) ** 2, torch.arange(1, 5), 3, 8
    macs = torch.tensor([vit_macs(12 * int(p), 12, dim, depth) for p in patches]).double()
    design = torch.stack([torch.ones(4), n, n**2], dim=1).double()
    fit = torch.linalg.lstsq(design, macs[:, None]).solution
    checks.equal(design @ fit, macs[:, None], 1e-6 * macs.max(), "the counts and a quadratic in N")
    assert round(float(fit[2])) == 2 * depth * dim


@pytest.mark.paper("S183")
@pytest.mark.parametrize(("patch", "dim", "rank"), [(2, 5, 5), (2, 20, 12), (4, 20, 20)])
def test_no_projection_beats_the_principal_components(patch, dim, rank):
    images = normal(6, 3, 16, 16).cumsum(dim=-1).cumsum(dim=-2)  # neighbours are alike, as in pictures
    errors, patches = pca_errors(images, patch), cut(images, patch).flatten(0, 1)
    centred = patches - patches.mean(dim=0)
    _, values, axes = torch.linalg.svd(centred, full_matrices=False)
    best = centred @ axes[:rank].T @ axes[:rank]
    checks.equal(errors[rank], (centred - best).square().mean(), 1e-9, "the law and the error of the best projection")
    checks.equal(errors[0], centred.square().mean(), 1e-9, "without a number, the error and the variance")
    weight = normal(3 * patch**2, dim)
    assert torch.linalg.matrix_rank(weight) == rank
    codes = centred @ weight
    decoded = codes @ torch.linalg.lstsq(codes, centred, driver="gelsd").solution
    assert (centred - decoded).square().mean() >= errors[rank] - 1e-12
    assert (errors.diff() <= 0).all() and len(errors) == 3 * patch**2 + 1
    assert errors[-1] == 0 and float(values[-1]) > 0


def test_with_fewer_patches_than_numbers_they_span_all_there_is():
    images = normal(1, 3, 8, 16)
    errors = pca_errors(images, 8)  # two patches: one direction apart from their mean
    assert len(errors) == 193 and errors[0] > 0.1
    checks.equal(errors[1:], torch.zeros(192), 1e-12, "all errors but the first and zero")


def test_a_sweep_halves_the_patch_and_finds_more_tokens_more_cost_and_less_loss():
    images = normal(64, 3, 16, 16).cumsum(dim=-1)
    rows = patch_sweep(images, (8, 4, 2, 1), dim=8, depth=2)
    assert [row.tokens for row in rows] == [4, 16, 64, 256]
    assert [row.numbers for row in rows] == [192, 48, 12, 3] and [row.rank for row in rows] == [8, 8, 8, 3]
    assert [row.macs for row in rows] == sorted(row.macs for row in rows)
    losses = [row.error for row in rows]
    assert losses == sorted(losses, reverse=True) and losses[0] > 0 == losses[-1]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: cut(torch.zeros(1, 3, 9, 8), 4), "9x8 is not divisible by the patch size 4x4"),
        (lambda: cut(torch.zeros(3, 8, 8), 4), r"expected \(batch, 3, height, width\)"),
        (lambda: cut(torch.zeros(1, 3, 8, 8), 0), "A size of 0x0 holds no pixel"),
        (lambda: uncut(torch.zeros(1, 4, 12), 2, (2, 3)), "are no 2x3 patches of 2x2 pixels"),
        (lambda: uncut(torch.zeros(1, 4, 13), 2, (2, 2)), r"expected \(batch, 4, channels \* 4\)"),
    ],
)
def test_what_does_not_fit_is_a_sentence(make, sentence):
    with pytest.raises(LabkitError, match=sentence):
        make()
