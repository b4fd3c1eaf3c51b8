"""A stem of small convolutions: timm's layers, and a patch embedding once its kernels no longer overlap."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer_hybrid import ConvStem as TimmConvStem
from torch import nn

from labkit.errors import LabkitError
from labkit.patching.conv_stem import ConvStem
from labkit.vit import PatchEmbed, ViT
from tests import checks
from tests.weights import normal, randomized

DIM = 16


def test_its_convolutions_norms_and_bends_are_timms():
    stem = randomized(ConvStem(8, DIM))
    timms = (
        TimmConvStem(depth=4, channels=(4, 8, 16, 16), stride=(2, 2, 2, 1), kernel_size=(3, 3, 3, 1)).double().eval()
    )
    timms.load_state_dict(dict(zip(timms.state_dict(), stem.state_dict().values(), strict=True)))
    images = normal(2, 3, 16, 24)
    checks.equal(stem(images)[0], timms(images).flatten(2).mT, 1e-12, "our stem and timm's")


@pytest.mark.parametrize("patch", [2, 4, 8])
def test_without_overlap_norms_and_bends_it_is_the_patch_embedding(patch):
    stem, plain = randomized(ConvStem(patch, DIM)), PatchEmbed(patch, 3, DIM).double()
    convs = [layer for layer in stem.layers if isinstance(layer, nn.Conv2d)]
    assert [conv.stride[0] for conv in convs] == [2] * (patch.bit_length() - 1) + [1]
    stem.layers = nn.Sequential(*convs)
    images, pixels = normal(2, 3, 2 * patch, 3 * patch), torch.eye(3 * patch * patch, dtype=torch.float64)
    with torch.no_grad():
        for conv in convs[:-1]:
            conv.weight[:, :, 0] = 0
            conv.weight[:, :, :, 0] = 0
        bias = convs[-1].bias
        plain.proj.bias.copy_(bias)
        plain.proj.weight.copy_((stem(pixels.view(-1, 3, patch, patch))[0][:, 0] - bias).T.view_as(plain.proj.weight))
        checks.exact_limit(lambda x: stem(x)[0], lambda x: plain(x)[0], images, tol=1e-12)
        assert stem(images)[1] == plain(images)[1] == (2, 3)


def test_the_receptive_field_is_wider_than_the_patch():
    stem, image = randomized(ConvStem(8, DIM)), normal(1, 3, 32, 32).requires_grad_(True)
    stem(image)[0][0, 5].sum().backward()
    touched = image.grad.abs().sum(dim=(0, 1)).nonzero()
    assert touched.min(dim=0).values.tolist() == [1, 1] and touched.max(dim=0).values.tolist() == [15, 15]


def test_its_cost():
    def macs(places: int, before: int, after: int) -> int:
        return places * 9 * before * after

    total = macs(16 * 24, 3, 4) + macs(8 * 12, 4, 8) + macs(4 * 6, 8, 16) + 4 * 6 * 16 * 16
    checks.cost_law(total, ConvStem(8, 16).eval(), torch.zeros(1, 3, 32, 48))


def test_a_vit_takes_it():
    vit = ViT(32, 8, 5, DIM, 2, 2, patching=ConvStem(8, DIM))
    assert vit.grid == (4, 4) and vit(torch.zeros(2, 3, 32, 48)).shape == (2, 5)
    checks.gradients_flow(vit, normal(2, 3, 32, 32).float())
    checks.follows_dtype_and_device(vit.patch_embed.eval(), normal(2, 3, 32, 32).float())
    checks.batch_independent(lambda x: vit.patch_embed(x)[0], normal(2, 3, 32, 32).float())


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ConvStem(12, DIM), "12 is no patch size of 2, 4, 8, 16"),
        (lambda: ConvStem(1, DIM), "1 is no patch size"),
        (lambda: ConvStem(16, 12), "12 / 8 channels"),
        (lambda: ConvStem(8, DIM)(torch.zeros(1, 3, 20, 16)), "20x16 is not divisible by the patch size 8"),
        (lambda: ConvStem(8, DIM)(torch.zeros(1, 1, 16, 16)), r"expected \(batch, 3, height, width\)"),
    ],
)
def test_what_does_not_fit_is_a_sentence(make, sentence):
    with pytest.raises(LabkitError, match=sentence):
        make()
