"""Tokens to token: soft splits can be undone, and without overlap and attention they are one big patch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from labkit.errors import LabkitError
from labkit.patching.patches import cut
from labkit.patching.t2t import LightAttention, TokensToToken, soft_merge, soft_split
from labkit.vit import PatchEmbed, ViT
from tests import checks
from tests.weights import normal, randomized

SPLITS = [(7, 4, 2), (3, 2, 1), (4, 4, 0), (3, 3, 1)]


@pytest.mark.paper("S123")
@pytest.mark.parametrize(("kernel", "stride", "padding"), SPLITS)
@pytest.mark.parametrize("size", [(32, 32), (16, 44), (17, 13)])
def test_the_count_of_tokens(kernel, stride, padding, size):
    tokens, grid = soft_split(normal(2, 3, *size), kernel, stride, padding)
    assert grid == tuple((side + 2 * padding - kernel) // stride + 1 for side in size)
    assert tokens.shape == (2, grid[0] * grid[1], 3 * kernel**2)


@pytest.mark.paper("S123")
@pytest.mark.parametrize(("kernel", "stride", "padding"), SPLITS)
def test_folding_and_dividing_by_the_overlap_is_the_way_back(kernel, stride, padding):
    # the last pixels are in a square when the stride ends at the border
    size = (stride * 4 + kernel - 2 * padding, stride * 6 + kernel - 2 * padding)
    images = normal(2, 3, *size)
    tokens, _ = soft_split(images, kernel, stride, padding)
    checks.equal(soft_merge(tokens, size, kernel, stride, padding), images, 1e-12, "the images and the way back")
    torn = tokens + normal(*tokens.shape)
    nearest = soft_merge(torn, size, kernel, stride, padding)
    error = torn - soft_split(nearest, kernel, stride, padding)[0]
    slope = nn.functional.fold(error.mT, size, kernel, padding=padding, stride=stride)
    checks.equal(slope, torch.zeros_like(images), 1e-12, "the gradient of the squared error and zero")


def test_what_no_square_covers_stays_zero():
    images = normal(1, 3, 9, 10) + 9
    back = soft_merge(soft_split(images, 3, 3)[0], (9, 10), 3, 3)
    checks.equal(back[..., :9], images[..., :9], 1e-12)
    assert not back[..., 9:].any()


@pytest.mark.paper("S123")
@pytest.mark.parametrize("sides", [(4, 2, 2), (2, 3), (4,)])
def test_without_overlap_and_attention_a_token_is_the_pixels_of_one_big_patch(sides):
    whole = int(torch.tensor(sides).prod())
    t2t = TokensToToken(1, [(k, k, 0) for k in sides], width=None).double()
    t2t.project = nn.Identity()
    size = (2 * whole, 3 * whole)
    numbered = torch.arange(2 * 3 * size[0] * size[1]).view(2, 3, *size).double()
    ours, grid = t2t(numbered)
    patches = cut(numbered, whole)
    assert grid == (2, 3) and ours.shape == patches.shape
    order = (ours[0, 0][:, None] == patches[0, 0][None]).int().argmax(dim=1)
    assert order.unique().numel() == 3 * whole**2
    checks.equal(ours, patches[..., order], what="every token and its patch in one fixed order")
    assert len(sides) == 1 or not torch.equal(ours, patches)


@pytest.mark.paper("S123")
def test_with_a_projection_that_is_a_patch_embedding():
    t2t, plain = randomized(TokensToToken(10, [(2, 2, 0), (3, 3, 0)], width=None)), PatchEmbed(6, 3, 10).double()
    with torch.no_grad():
        pixels = torch.eye(3 * 6 * 6, dtype=torch.float64).view(-1, 3, 6, 6)
        plain.proj.weight.copy_((t2t(pixels)[0][:, 0] - t2t.project.bias).T.view(10, 3, 6, 6))
        plain.proj.bias.copy_(t2t.project.bias)
    checks.exact_limit(lambda x: t2t(x)[0], lambda x: plain(x)[0], normal(2, 3, 12, 18), tol=1e-12)


def test_the_papers_splits_make_a_token_of_16_pixels():
    t2t = TokensToToken(24, width=8)
    x, grid = t2t(torch.zeros(2, 3, 64, 96))
    assert grid == (4, 6) and x.shape == (2, 24, 24)
    assert [stage.qkv.in_features for stage in t2t.stages] == [147, 72] and t2t.project.in_features == 72


def test_the_light_attention_mixes_all_tokens_and_minds_no_order():
    stage, x = randomized(LightAttention(12, 8)), normal(2, 9, 12)
    checks.permutation_equivariant(stage, x, tol=1e-12)
    moved = x.clone()
    moved[:, 0] += normal(12)
    assert ((stage(moved) - stage(x)).abs() > 1e-9).all(dim=-1).all()
    with torch.no_grad():
        for layer in (stage.proj, stage.mlp.fc2):
            nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    checks.equal(stage(x), stage.qkv(stage.norm1(x))[..., 16:], 1e-12, "without mixing and MLP, the layer and v")


def test_its_cost():
    def light(n: int, before: int, dim: int) -> int:
        return n * dim * (3 * before + 3 * dim) + 2 * n * n * dim

    macs = light(8 * 12, 147, 6) + light(4 * 6, 54, 6) + 2 * 3 * 54 * 10
    checks.cost_law(macs, TokensToToken(10, width=6), torch.zeros(1, 3, 32, 48))


def test_a_vit_takes_it():
    vit = ViT(32, 16, 5, 16, 2, 2, patching=TokensToToken(16, width=8))
    assert vit.grid == (2, 2) and vit(torch.zeros(2, 3, 32, 48)).shape == (2, 5)
    checks.gradients_flow(vit, normal(2, 3, 32, 48).float())
    checks.follows_dtype_and_device(vit.patch_embed, normal(2, 3, 32, 32).float())
    checks.batch_independent(lambda x: vit.patch_embed(x)[0], normal(2, 3, 32, 32).float())


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: TokensToToken(8)(torch.zeros(1, 1, 32, 32)), r"expected \(batch, 3, height, width\)"),
        (lambda: soft_split(torch.zeros(1, 3, 4, 8), 7, 4, 1), "A kernel of 7 does not fit into 4x8"),
        (lambda: soft_merge(torch.zeros(1, 5, 27), (6, 6), 3, 3), "are no split of 6x6 pixels"),
        (lambda: soft_merge(torch.zeros(1, 4, 26), (6, 6), 3, 3), r"expected \(batch, 4, channels \* 9\)"),
    ],
)
def test_what_does_not_fit_is_a_sentence(make, sentence):
    with pytest.raises(LabkitError, match=sentence):
        make()
