"""The patchwise MLP stem: no patch sees another, so hiding may come first; at heart it is a PatchEmbed."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer_hybrid import ConvStem
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.patching.hmlp import HMLPStem
from labkit.vit import PatchEmbed, ViT
from tests import checks
from tests.weights import normal, randomized

DIM, PATCH = 16, 8
HIDDEN = torch.tensor([[0, 1, 0], [1, 1, 0]], dtype=torch.bool)  # on a grid of 2 by 3 patches
VISIBLE = ~HIDDEN.flatten()


def hide(images: Tensor, patch: int, value: float = 0.0) -> Tensor:
    return images.masked_fill(HIDDEN.repeat_interleave(patch, 0).repeat_interleave(patch, 1), value)


@pytest.mark.paper("S226")
@pytest.mark.parametrize("patch", [8, 16])
@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_hiding_before_or_after_the_stem_is_the_same(patch, value):
    stem, images = randomized(HMLPStem(patch, DIM)), normal(2, 3, 2 * patch, 3 * patch)
    before, after = stem(hide(images, patch, value))[0], stem(images)[0]
    checks.equal(before[:, VISIBLE], after[:, VISIBLE], what="the visible patches")
    assert not torch.equal(before[:, ~VISIBLE], after[:, ~VISIBLE])


@pytest.mark.paper("S226")
def test_hiding_before_or_after_an_overlapping_stem_is_not_the_same():
    stem, images = randomized(ConvStem(channels=DIM)), normal(2, 3, 2 * PATCH, 3 * PATCH)
    before, after = (stem(x).flatten(2).transpose(1, 2) for x in (hide(images, PATCH), images))
    with pytest.raises(AssertionError, match="the visible patches differ"):
        checks.equal(before[:, VISIBLE], after[:, VISIBLE], 0.01, "the visible patches")


def test_in_training_the_batch_statistics_still_tell():
    stem, images = randomized(HMLPStem(PATCH, DIM)).train(), normal(2, 3, 2 * PATCH, 3 * PATCH)
    before, after = stem(hide(images, PATCH))[0], stem(images)[0]
    with pytest.raises(AssertionError, match="the visible patches differ"):
        checks.equal(before[:, VISIBLE], after[:, VISIBLE], 0.01, "the visible patches")


@pytest.mark.paper("S226")
@pytest.mark.parametrize(("patch", "strides"), [(4, [4]), (8, [4, 2]), (16, [4, 2, 2])])
def test_without_norms_and_bends_it_is_the_patch_embedding(patch, strides):
    stem = randomized(HMLPStem(patch, DIM))
    convs = [layer for layer in stem.proj if isinstance(layer, nn.Conv2d)]
    assert [conv.stride[0] for conv in convs] == [conv.kernel_size[0] for conv in convs] == strides
    kinds = [nn.Conv2d, nn.BatchNorm2d, nn.GELU] * len(convs)
    assert [type(layer) for layer in stem.proj] == kinds[:-1]
    stem.proj = nn.Sequential(*convs)
    plain = PatchEmbed(patch, 3, DIM).double()
    with torch.no_grad():
        pixels = torch.eye(3 * patch * patch, dtype=torch.float64).reshape(-1, 3, patch, patch)
        bias = stem(torch.zeros(1, 3, patch, patch, dtype=torch.float64))[0][0, 0]
        plain.proj.bias.copy_(bias)
        plain.proj.weight.copy_((stem(pixels)[0][:, 0] - bias).T.reshape(plain.proj.weight.shape))
        ours, theirs = (f(normal(2, 3, 2 * patch, 3 * patch)) for f in (stem, plain))
    checks.equal(ours[0], theirs[0], 1e-12, "the stem and the patch embedding")
    assert ours[1] == theirs[1] == (2, 3)


@pytest.mark.parametrize(("patch", "macs"), [(8, lambda d: 48 * d + d * d), (16, lambda d: 192 * d + 2 * d * d)])
def test_its_cost_for_each_patch(patch, macs):
    images = torch.zeros(1, 3, 2 * patch, 3 * patch)
    checks.cost_law(6 * macs(DIM), HMLPStem(patch, DIM).eval(), images)


def test_a_vit_takes_it_in_place_of_its_patch_embedding():
    vit = randomized(ViT(32, 8, 5, DIM, 2, 2, patching=HMLPStem(8, DIM).eval()))
    assert vit.grid == (4, 4) and vit(normal(2, 3, 32, 32)).shape == (2, 5)
    checks.batch_independent(lambda x: vit.patch_embed(x)[0], normal(2, 3, 32, 32), tol=1e-12)
    checks.gradients_flow(vit.float().train(), normal(2, 3, 32, 32).float())


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: HMLPStem(14, DIM), "choose a patch size of 4, 8, 16 or 32"),
        (lambda: HMLPStem(8, 18), "18 is no multiple of 4"),
        (lambda: HMLPStem(8, DIM)(torch.zeros(1, 3, 20, 16)), "20x16 is not divisible by the patch size 8"),
        (lambda: HMLPStem(8, DIM)(torch.zeros(1, 1, 16, 16)), r"expected \(batch, 3, height, width\)"),
    ],
)
def test_what_does_not_fit_is_a_sentence(make, sentence):
    with pytest.raises(LabkitError, match=sentence):
        make()
