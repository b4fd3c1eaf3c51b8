"""One model for all patch sizes: timm's resampling, the same tokens for larger patches, the nearest for smaller."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.layers.patch_embed import resample_patch_embed

from labkit.errors import LabkitError
from labkit.patching.conv_stem import ConvStem
from labkit.patching.flexi import FlexiEmbed, flexible, resize_matrix, resize_weights
from labkit.patching.patches import cut
from labkit.vit import PatchEmbed, ViT
from tests import checks
from tests.weights import normal, randomized


def small(**options) -> ViT:
    return randomized(ViT(32, 8, 5, 16, 2, 2, **options))


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (12, 12), (16, 16), (5, 11)])
def test_the_weights_are_timms(size):
    weight = normal(10, 3, 8, 8)
    checks.equal(resize_weights(weight, size), resample_patch_embed(weight, list(size)), 2e-5)


def test_the_matrix_resizes():
    image = normal(2, 3, 8, 6)
    resized = F.interpolate(image, (5, 9), mode="bicubic", antialias=True)
    checks.equal((image.flatten(2) @ resize_matrix((8, 6), (5, 9)).T).view(2, 3, 5, 9), resized, 1e-12)


@pytest.mark.parametrize("size", [(9, 9), (12, 16), (24, 24)])
def test_a_larger_patch_has_the_token_of_the_original(size):
    weight, patches = normal(10, 3, 8, 8), normal(7, 3, 8, 8)
    enlarged = F.interpolate(patches, size, mode="bicubic", antialias=True)
    tokens = enlarged.flatten(1) @ resize_weights(weight, size).flatten(1).T
    checks.equal(tokens, patches.flatten(1) @ weight.flatten(1).T, 1e-9, "the tokens of the patch, enlarged or not")
    resized_like_images = F.interpolate(weight, size, mode="bicubic", antialias=True)
    assert (enlarged.flatten(1) @ resized_like_images.flatten(1).T - tokens).abs().max() > 1


@pytest.mark.parametrize("size", [(4, 4), (6, 3)])
def test_a_smaller_patch_has_the_nearest_token(size):
    weight, matrix = normal(10, 3, 8, 8), resize_matrix((8, 8), size)
    missing = resize_weights(weight, size).flatten(2) @ matrix - weight.flatten(2)
    assert missing.abs().max() > 0.1
    checks.equal(missing @ matrix.T, torch.zeros(10, 3, size[0] * size[1]), 1e-9, "the gradient of the error and zero")


def test_at_its_own_size_it_is_the_plain_embedding():
    flexi, plain = (randomized(kind(8, 3, 16)) for kind in (FlexiEmbed, PatchEmbed))
    images = normal(2, 3, 16, 24)
    checks.exact_limit(lambda x: flexi(x)[0], lambda x: plain(x)[0], images, tol=0)
    vit = small()
    checks.exact_limit(flexible(vit, 8), vit, normal(2, 3, 32, 32), tol=0)


@pytest.mark.parametrize("patch", [4, 16, (8, 4)])
def test_the_view_shares_all_but_the_patches(patch):
    vit, images = small(), normal(2, 3, 32, 48)
    before = vit(images)
    view = flexible(vit, patch)
    x, grid = view.patch_embed(images)
    p, q = (patch, patch) if isinstance(patch, int) else patch
    assert grid == (32 // p, 48 // q) and view(images).shape == (2, 5) and not view.patch_embed.training
    weight = resample_patch_embed(vit.patch_embed.proj.weight, [p, q])
    expected = cut(images, patch) @ weight.flatten(1).T + vit.patch_embed.proj.bias
    checks.equal(x, expected, 1e-5, "the tokens of the view and of timm's weights")
    own = {name for name, p in view.named_parameters() if all(p is not q for q in vit.parameters())}
    assert own == {"patch_embed.proj.weight"}
    checks.equal(vit(images), before, 0.0, "the model before and after")


def test_an_image_enlarged_patch_by_patch_has_the_same_logits():
    vit, images = small(), normal(2, 3, 32, 32)
    patches = images.unfold(2, 8, 8).unfold(3, 8, 8).flatten(0, 3)  # (b c h w, 8, 8)
    larger = F.interpolate(patches[:, None], (12, 12), mode="bicubic", antialias=True).view(2, 3, 4, 4, 12, 12)
    enlarged = larger.permute(0, 1, 2, 4, 3, 5).reshape(2, 3, 48, 48)
    checks.equal(flexible(vit, 12)(enlarged), vit(images), 1e-9, "the logits at the larger and at the own patch size")


def test_one_kernel_learns_at_every_patch_size():
    vit = small(patching=FlexiEmbed(8, 3, 16)).float()
    images, tokens = normal(2, 3, 32, 32).float(), []
    for patch in (4, 8, (16, 8)):
        vit.patch_embed.patch = patch
        tokens.append(vit.patch_embed(images)[0].shape[1])
        checks.gradients_flow(vit, images)
        checks.follows_dtype_and_device(vit, images)
        checks.equal(vit(images), flexible(small(patching=_plain(vit)), patch).float()(images), 1e-5)
    assert tokens == [64, 16, 8]


def _plain(vit: ViT) -> PatchEmbed:
    plain = PatchEmbed(8, 3, 16)
    plain.load_state_dict(vit.patch_embed.state_dict())
    return plain


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: flexible(ViT(32, 8, 5, 16, 1, 2, patching=ConvStem(8, 16)), 4), "A ConvStem has no patch weights"),
        (lambda: flexible(small(), 0), "A size of 0x0 holds no pixel"),
        (lambda: flexible(small(), 5)(normal(1, 3, 32, 32)), "32x32 is not divisible by the patch size 5x5"),
    ],
)
def test_what_does_not_fit_is_a_sentence(make, sentence):
    with pytest.raises(LabkitError, match=sentence):
        make()
