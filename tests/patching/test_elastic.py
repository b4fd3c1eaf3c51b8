"""Boxes instead of a grid: on the grid nothing changes; anywhere else tokens are a set with places of their own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.layers import build_sincos2d_pos_embed
from torch import Tensor

from labkit.errors import LabkitError
from labkit.patching.elastic import (
    ElasticPatchEmbed,
    box_posenc,
    elastic_patches,
    elasticity_score,
    grid_boxes,
    sampled,
    sincos,
)
from labkit.patching.patches import cut
from labkit.vit import ViT
from tests import checks
from tests.weights import normal, randomized

P, DIM, SIZE = 6, 16, (12, 18)


def vit() -> ViT:
    patching = ElasticPatchEmbed(P, DIM)
    return randomized(ViT(SIZE, classes=5, dim=DIM, depth=2, heads=2, patching=patching, positions=False))


def boxes(n: int, seed: int = 0) -> Tensor:
    """Random boxes that stick out of the image here and there."""
    draw = torch.rand(2, n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    start = draw[..., :2] * torch.tensor(SIZE) - 2
    return torch.cat([start, start + 1.3 + 9 * draw[..., 2:]], dim=-1)


@pytest.mark.paper("S256")
def test_boxes_on_the_grid_are_patchify():
    images = normal(2, 3, *SIZE)
    patches = elastic_patches(images, grid_boxes(images, P), P)
    assert torch.equal(patches.flatten(2), cut(images, P))
    embed = randomized(ElasticPatchEmbed(P, DIM))
    place = box_posenc(grid_boxes(images, P), DIM, P)
    checks.equal(embed(images)[0] - place, embed.embed(images)[0], 1e-12)


@pytest.mark.paper("S256")
def test_places_on_the_grid_are_the_two_dimensional_waves():
    """At the centres of the grid, counted in patches, `sincos` is timm's table; the box's two corners are two of them.

    The check asks for the waves of the centre alone. They cannot tell a box from a larger one around the same
    centre, so the encoding holds both corners, as the paper's four-dimensional one does, and is stronger.
    """
    grid = grid_boxes(normal(1, 3, *SIZE), P)
    table = build_sincos2d_pos_embed([2, 3], DIM // 2, interleave_sin_cos=True, dtype=torch.float64)
    centres = (grid[:, :2] + grid[:, 2:]) / (2 * P) - 0.5
    checks.equal(sincos(centres, DIM // 2), table, 1e-6)
    checks.equal(box_posenc(grid, DIM, P), torch.cat([table, table], dim=1), 1e-6)
    around = grid + torch.tensor([-3.0, -3, 3, 3])
    checks.equal((around[:, :2] + around[:, 2:]) / 2, (grid[:, :2] + grid[:, 2:]) / 2)
    assert (box_posenc(around, DIM, P) - box_posenc(grid, DIM, P)).abs().amax(dim=1).min() > 0.1


@pytest.mark.paper("S256")
def test_tokens_are_a_set():
    model, images, some = vit(), normal(2, 3, *SIZE), boxes(7)
    order = torch.tensor([4, 2, 0, 6, 5, 1, 3])
    logits, shuffled = (sampled(model, lambda _, b=b: b)(images) for b in (some, some[:, order]))
    checks.equal(logits, shuffled, 1e-12)
    assert (logits - sampled(model, lambda _: boxes(7, seed=1))(images)).abs().max() > 0.01


@pytest.mark.paper("S256")
@pytest.mark.parametrize("scale", [2, 4])
def test_a_larger_box_on_an_enlarged_image_is_the_same_patch(scale):
    images = normal(2, 3, *SIZE)
    large = images.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
    original = elastic_patches(images, grid_boxes(images, P), P)
    fine = elastic_patches(large, scale * grid_boxes(images, P), scale * P)
    checks.equal(F.interpolate(fine.flatten(0, 1), (P, P), mode="area").view_as(original), original, 1e-12)
    coarse = elastic_patches(large, scale * grid_boxes(images, P), P, samples=scale // 2)
    checks.equal(coarse, original, 1e-12)


def test_too_few_samples_skip_pixels():
    images = torch.zeros(1, 1, 8, 8)
    images[..., ::4, ::4] = 1.0  # points of a 4 by 4 lattice fall between these
    whole = torch.tensor([[0.0, 0, 8, 8]])
    assert elastic_patches(images, whole, 2).sum() == 0
    checks.equal(elastic_patches(images, whole, 2, samples=2), torch.full((1, 1, 1, 2, 2), 1 / 16))


@pytest.mark.paper("S256")
@pytest.mark.parametrize("n", [0, 1, 5])
def test_missing_and_repeated_boxes_are_accepted(n):
    model, images = vit(), normal(2, 3, *SIZE)
    few = sampled(model, lambda images: grid_boxes(images, P)[:n])
    assert few(images).shape == (2, 5) and few.embed(images)[0].shape[1] == 1 + n
    twice = elastic_patches(images, grid_boxes(images, P)[[0, 0, 3]], P)
    checks.equal(twice[:, 0], twice[:, 1])


@pytest.mark.paper("S256")
def test_boxes_can_be_learned():
    images, start = normal(1, 2, 6, 7).requires_grad_(True), boxes(2)[:1].requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x, b: elastic_patches(x, b, 2, samples=2), (images, start))


def test_between_pixels_it_is_bilinear_and_outside_the_border_repeats():
    ramp = (10 * torch.arange(4.0)[:, None] + torch.arange(5.0)).expand(1, 1, 4, 5)
    (patch,) = elastic_patches(ramp, torch.tensor([[0.25, 1.5, 2.25, 3.5]]), 2)[0]
    checks.equal(patch[0], torch.tensor([[2.5 + 1.5, 2.5 + 2.5], [12.5 + 1.5, 12.5 + 2.5]]) - 0.0, 1e-5)
    (outside,) = elastic_patches(ramp, torch.tensor([[-9.0, -9, -7, -7]]), 2)[0]
    assert (outside == ramp[0, 0, 0, 0]).all()


def test_the_score_is_the_share_of_the_accuracy_that_is_left():
    model, images = vit(), normal(8, 3, *SIZE)
    labels = model(images).argmax(dim=1)
    assert elasticity_score(model, lambda images: grid_boxes(images, P), images, labels) == 1
    elsewhere = sampled(model, lambda images: grid_boxes(images, P)[:1])(images).argmax(dim=1)
    assert 0 < (elsewhere == labels).double().mean() < 1
    share = elasticity_score(model, lambda images: grid_boxes(images, P)[:1], images, labels)
    assert share == (elsewhere == labels).double().mean()
    checks.equal(model(images).argmax(dim=1), labels)  # the model itself looks where it looked


def test_it_learns_and_follows_its_input():
    embed = ElasticPatchEmbed(P, DIM)
    checks.gradients_flow(embed, normal(2, 3, *SIZE).float())
    checks.follows_dtype_and_device(embed, normal(2, 3, *SIZE).float())
    checks.batch_independent(lambda x: embed(x)[0], normal(2, 3, *SIZE).float())


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: elastic_patches(torch.zeros(1, 3, 8, 8), torch.tensor([[0.0, 0, 8, 0]]), 4), "left < right"),
        (lambda: elastic_patches(torch.zeros(1, 3, 8, 8), torch.zeros(1, 2), 4), "top, left, bottom, right"),
        (lambda: ElasticPatchEmbed(8, 12), "multiple of 8, not 12"),
        (lambda: sincos(torch.zeros(2), 6), "multiple of 4, not 6"),
        (lambda: grid_boxes(torch.zeros(1, 3, 10, 8), 4), "10x8 is not divisible by the patch size 4"),
        (lambda: sampled(ViT(8, 4, 5, 16, 1, 2), boxes), "Only a model with patching=ElasticPatchEmbed"),
        (lambda: elasticity_score(vit(), lambda _: boxes(3), normal(2, 3, *SIZE), torch.tensor(-1)), "right on none"),
    ],
)
def test_what_does_not_fit_is_a_sentence(make, sentence):
    with pytest.raises(LabkitError, match=sentence):
        make()
