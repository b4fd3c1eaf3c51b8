"""Several scales through one model: scale 1 is the model, tiles are stitched without loss, the price is Σ s²."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from labkit import tokens
from labkit.errors import LabkitError
from labkit.patching.scales import multiscale_forward, patch_features
from labkit.patching.tiles import tile, untile
from labkit.vit import PatchEmbed, ViT
from tests import checks
from tests.weights import normal, randomized

SIZE, DIM = (16, 24), 16


def vit() -> ViT:
    return randomized(ViT(SIZE, 8, 5, DIM, 2, 2, registers=1))


@pytest.mark.paper("S317")
def test_one_scale_is_the_plain_model():
    model, images = vit(), normal(2, 3, *SIZE)
    x, grid = multiscale_forward(model, images, (1,), size=SIZE)
    full = model.set_impl("plain").features(images)
    checks.equal(x, model.norm(full)[:, 2:], 1e-12)
    assert grid == (2, 3)


@pytest.mark.paper("S317")
def test_cutting_and_stitching_feature_maps_loses_nothing():
    maps = normal(2, DIM, 6, 9)
    assert torch.equal(untile(tile(maps, (2, 3)), (3, 3)), maps)


@pytest.mark.paper("S317")
@pytest.mark.parametrize("scale", [2, 3])
def test_without_attention_tiles_are_one_large_image(scale):
    embed = randomized(nn.Sequential(PatchEmbed(4, 3, DIM)))
    images = normal(2, 3, scale * SIZE[0], scale * SIZE[1])
    x, (h, w) = multiscale_forward(embed, images, (scale,), size=SIZE)
    large, (rows, columns) = embed(images)
    assert (rows, columns) == (scale * h, scale * w) == (scale * 4, scale * 6)
    maps = rearrange(large, "b (h w) d -> b d h w", h=rows)
    checks.equal(x, F.avg_pool2d(maps, scale).flatten(2).transpose(1, 2), 1e-12)


def test_with_attention_tiles_are_not_one_large_image():
    """The control: a tile's tokens do not see the others', a large image's do."""
    model, images = vit(), normal(2, 3, 2 * SIZE[0], 2 * SIZE[1])
    x, _ = multiscale_forward(model, images, (2,), size=SIZE)
    large, grid = patch_features(model, images)
    pooled = F.avg_pool2d(rearrange(large, "b (h w) d -> b d h w", h=grid[0]), 2).flatten(2).transpose(1, 2)
    assert (x - pooled).abs().max() > 0.01


@pytest.mark.paper("S317")
def test_scales_stand_side_by_side_and_cost_their_squares():
    model, images = vit().float(), normal(2, 3, *SIZE).float()
    one, _ = multiscale_forward(model, images, (1,), size=SIZE)
    two, _ = multiscale_forward(model, images, (2,), size=SIZE)
    both, grid = multiscale_forward(model, images, (1, 2), size=SIZE)
    assert both.shape == (2, 6, 2 * DIM) and grid == (2, 3)
    checks.equal(both, torch.cat([one, two], dim=2))
    n, patch = 2 + 6, 6 * 3 * 64 * DIM
    base = 2 * (patch + 2 * (12 * n * DIM**2 + 2 * n**2 * DIM))  # two images, two blocks
    checks.cost_law(base * (1 + 4 + 9), lambda x: multiscale_forward(model, x, (1, 2, 3), size=SIZE), images)


def test_it_stays_differentiable_and_follows_the_input():
    model = vit()
    checks.follows_dtype_and_device(_Scales(model), normal(2, 3, *SIZE))
    checks.batch_independent(_Scales(model), normal(2, 3, *SIZE), 1e-10)
    images = normal(1, 3, *SIZE).requires_grad_(True)
    _Scales(model)(images).square().sum().backward()
    assert (images.grad != 0).all()


@pytest.mark.parametrize("scales", [(), (0, 1), (1.5,)])
def test_scales_that_are_no_whole_numbers_are_refused(scales):
    with pytest.raises(LabkitError, match="not a list of whole numbers from 1 up"):
        multiscale_forward(vit(), normal(1, 3, *SIZE), scales, size=SIZE)


def test_a_model_that_drops_tokens_has_no_map():
    slim = tokens.attach(vit(), tokens.Keep(0.5), [0])
    with pytest.raises(LabkitError, match="drops or merges tokens"):
        multiscale_forward(slim, normal(1, 3, *SIZE), size=SIZE)


class _Scales(nn.Module):
    def __init__(self, model: ViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, images):
        return multiscale_forward(self.model, images, (1, 2), size=SIZE)[0]
