"""From tokens back to pixels: exact where nothing was lost, and the best linear guess where something was."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from labkit.errors import LabkitError
from labkit.patching.overlap import OverlapPatchEmbed
from labkit.patching.patches import cut
from labkit.patching.reconstruct import least_squares, pca_bound, psnr, reconstruct
from labkit.patching.t2t import TokensToToken
from labkit.vit import PatchEmbed
from tests import checks
from tests.weights import normal, randomized

SIZE = (8, 12)


def pictures(n: int = 12) -> torch.Tensor:
    """Neighbouring pixels are alike, and the mean is far from black."""
    return 0.3 * normal(n, 3, *SIZE).cumsum(dim=-1).cumsum(dim=-2) + 5


def decibels(images, others) -> float:
    return -10 * math.log10((images - others).square().mean())


@pytest.mark.parametrize("like", [None, pictures()])
@pytest.mark.parametrize("embed", [PatchEmbed(2, 3, 12), PatchEmbed((4, 2), 3, 30, bias=False)])
def test_nothing_is_lost_when_a_token_has_as_many_numbers_as_its_patch(embed, like):
    embed, images = randomized(embed), pictures()
    checks.equal(reconstruct(embed(images)[0], embed, SIZE, like=like), images, 1e-6, "the images and back")


@pytest.mark.parametrize(
    "tokeniser",
    [
        PatchEmbed(4, 3, 10),
        OverlapPatchEmbed(3, 4, 3, norm=nn.Identity),
        OverlapPatchEmbed(90, 5, 4, norm=nn.Identity),
        TokensToToken(16, ((3, 2, 1), (3, 2, 1)), width=None),
    ],
)
def test_it_is_the_least_squares_image_of_least_norm(tokeniser):
    tokeniser, images = randomized(tokeniser), pictures(2)
    tokens = tokeniser(images)[0]
    black = torch.zeros(1, 3, *SIZE, dtype=torch.float64)
    matrix = torch.func.jacrev(lambda image: tokeniser(image)[0].flatten())(black).flatten(1)
    made = tokeniser(black)[0].flatten()
    expected = (tokens.flatten(1) - made) @ torch.linalg.pinv(matrix).T
    for way in (reconstruct, least_squares):
        checks.equal(way(tokens, tokeniser, SIZE).flatten(1), expected, 1e-6, way.__name__)
    assert reconstruct(tokens.float(), tokeniser.float(), SIZE).dtype == torch.float32


def test_no_token_knows_the_pixels_that_a_crop_ignores():
    embed, images = randomized(PatchEmbed(5, 3, 80)), pictures(2)
    embed.crop = True
    seen = reconstruct(embed(images)[0], embed, SIZE)
    checks.equal(seen[..., :5, :10], images[..., :5, :10], 1e-6, "the whole patches")
    assert seen.shape == images.shape and not seen[..., 5:, :].any() and not seen[..., 10:].any()


def test_knowing_the_patches_it_is_the_regression_of_the_pixels_on_the_tokens():
    images, embed = pictures(), randomized(PatchEmbed(2, 3, 5))
    patches, tokens = cut(images, 2).flatten(0, 1), embed(images)[0].detach().flatten(0, 1)
    known = torch.cat([tokens, torch.ones(len(tokens), 1)], dim=1)
    expected = known @ torch.linalg.lstsq(known, patches).solution
    seen = reconstruct(embed(images)[0], embed, SIZE, like=images)
    checks.equal(cut(seen, 2).flatten(0, 1), expected, 1e-6, "the decoded patches and their regression")


@pytest.mark.paper("S183")
@pytest.mark.parametrize("d", [2, 6, 11])
def test_knowing_the_patches_helps_and_the_principal_components_are_the_bound(d):
    images, embed = pictures(), randomized(PatchEmbed(2, 3, d))
    plain, informed = (decibels(images, reconstruct(embed(images)[0], embed, SIZE, like=x)) for x in (None, images))
    assert plain < informed < pca_bound(images, 2, d)
    patches = cut(images, 2).flatten(0, 1)
    axes = torch.linalg.svd(patches - patches.mean(dim=0), full_matrices=False)[2]
    with torch.no_grad():
        embed.proj.weight.copy_((normal(d, d) @ axes[:d]).view_as(embed.proj.weight))
    reached = decibels(images, reconstruct(embed(images)[0], embed, SIZE, like=images))
    assert reached == pytest.approx(pca_bound(images, 2, d), abs=1e-3)


def test_an_overlapping_embedding_of_the_same_number_of_tokens_is_seen_too():
    images = pictures(2)
    few, many = (randomized(OverlapPatchEmbed(d, 5, 2, norm=nn.Identity)) for d in (4, 12))
    seen = [psnr(images, reconstruct(embed(images)[0], embed, SIZE), peak=10) for embed in (few, many)]
    assert (seen[0] + 3 < seen[1]).all()


def test_psnr_in_decibels_and_each_image_for_itself():
    black = torch.zeros(3, 3, 4, 4)
    others = black + torch.tensor([0.1, 0.01, 0.0])[:, None, None, None]
    checks.equal(psnr(black, others), torch.tensor([20.0, 40.0, torch.inf]), 1e-4)
    checks.equal(psnr(black, others, peak=10), torch.tensor([40.0, 60.0, torch.inf]), 1e-4)


def test_the_bound_grows_with_the_token_and_ends_at_infinity():
    images = pictures()
    bounds = [pca_bound(images, 2, d) for d in range(14)]
    assert bounds == sorted(bounds) and bounds[11] < bounds[12] == bounds[13] == math.inf


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda e, x: reconstruct(e(x)[0], e, (8, 16)), "are no 2x4 patches of 4x4 pixels"),
        (lambda e, x: least_squares(e(x)[0], e, (8, 16)), r"makes \(1, 8, 10\) of images of 8x16"),
        (lambda e, x: reconstruct(x, OverlapPatchEmbed(8, 3, 2), SIZE), "OverlapPatchEmbed is not affine"),
        (lambda e, x: reconstruct(x, TokensToToken(8), (16, 16)), "TokensToToken is not affine"),
        (
            lambda e, x: reconstruct(x, OverlapPatchEmbed(8, 3, 2), SIZE, like=x),
            "whole patches of a PatchEmbed, got OverlapPatchEmbed at 8x12",
        ),
        (lambda e, x: psnr(x, x[..., 1:]), "do not compare with"),
        (lambda e, x: pca_bound(x, 4, -1), "at least 0 numbers, not -1"),
    ],
)
def test_what_does_not_fit_is_a_sentence(make, sentence):
    with pytest.raises(LabkitError, match=sentence):
        make(PatchEmbed(4, 3, 10).double(), pictures(1))
