"""Channel maps as tokens: the transpose of a hybrid's, one token for each filter, whatever the size of the image."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from labkit.errors import LabkitError
from labkit.patching.patterns import InvertedEncoder, PatternTokens
from labkit.vit import Block, ViT
from tests import checks
from tests.weights import normal, randomized

K, DIM, SIZE = 6, 16, (4, 3)
LENGTH, VARIATES = 10, 5


def stem() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GELU(), nn.Conv2d(8, K, 3, 2, 1))


def patterns() -> PatternTokens:
    return PatternTokens(stem(), SIZE, DIM)


@pytest.mark.paper("S180")
@pytest.mark.parametrize("size", [(16, 12), (32, 24), (40, 17)])
def test_there_are_as_many_tokens_as_maps_for_every_image_size(size):
    x, grid = patterns()(normal(2, 3, *size).float())
    assert x.shape == (2, K, DIM) and grid == (1, K)


@pytest.mark.paper("S180")
def test_permuted_filters_permute_the_tokens_and_leave_a_positionless_pool_unchanged():
    model = randomized(ViT((16, 12), 4, 5, DIM, 2, 2, pool="avg", positions=False, patching=patterns()))
    images, order = normal(2, 3, 16, 12), torch.tensor([3, 0, 5, 1, 4, 2])
    x, logits = model.patch_embed(images)[0], model(images)
    last = model.patch_embed.cnn[-1]
    with torch.no_grad():
        last.weight.copy_(last.weight[order]), last.bias.copy_(last.bias[order])
    checks.equal(model.patch_embed(images)[0], x[:, order], 1e-12)
    checks.equal(model(images), logits, 1e-12)


@pytest.mark.paper("S180")
def test_before_the_projection_they_are_the_transpose_of_a_hybrids_tokens():
    ours, images = randomized(patterns()), normal(2, 3, 16, 12)
    ours.proj = nn.Identity()
    hybrid = ours.cnn(images).flatten(2).transpose(1, 2)  # (b, places, maps), as timm's HybridEmbed
    checks.equal(ours(images)[0], hybrid.transpose(1, 2))


@pytest.mark.paper("S180")
def test_a_token_sees_the_whole_image():
    images = normal(1, 3, 16, 12).requires_grad_(True)
    for token in randomized(patterns())(images)[0][0]:
        (gradient,) = torch.autograd.grad(token.sum(), images, retain_graph=True)
        assert (gradient != 0).all()


def test_larger_maps_are_averaged():
    ours = randomized(PatternTokens(nn.Identity(), SIZE, DIM))
    maps = normal(2, K, 3 * SIZE[0], 2 * SIZE[1])
    checks.equal(ours(maps)[0], ours(nn.functional.avg_pool2d(maps, (3, 2)))[0], 1e-12)


def test_gradients_flow_and_dtype_follows():
    images = normal(2, 3, 16, 12).float()
    ours = patterns()
    checks.gradients_flow(ours, images)
    checks.follows_dtype_and_device(ours, images)
    checks.batch_independent(lambda x: ours(x)[0], images)


def inverted(**options) -> InvertedEncoder:
    return randomized(InvertedEncoder(LENGTH, DIM, 2, 2, **options))


@pytest.mark.paper("S134")
def test_it_is_a_standard_encoder_of_the_transposed_input():
    """torch's own encoder layers with the same weights, fed with variates as tokens."""
    ours, x = inverted(horizon=3), normal(2, LENGTH, VARIATES)
    tokens = ours.embed.proj(x.transpose(1, 2))
    for block in ours.blocks:
        tokens = _torch_layer(block)(tokens)
    checks.equal(ours(x), ours.head(ours.norm(tokens)).transpose(1, 2), 1e-12)
    assert ours(x).shape == (2, 3, VARIATES) and inverted()(x).shape == x.shape


@pytest.mark.paper("S134")
def test_variates_have_no_order_and_any_number_of_them_will_do():
    model = inverted()
    checks.permutation_equivariant(lambda x: model(x.transpose(1, 2)).transpose(1, 2), normal(2, VARIATES, LENGTH))
    count = sum(p.numel() for p in model.parameters())
    assert all(model(normal(1, LENGTH, v)).shape[-1] == v for v in (1, 2, 11))
    assert count == sum(p.numel() for p in model.parameters())


@pytest.mark.paper("S134")
@pytest.mark.parametrize(("length", "variates"), [(10, 5), (40, 5), (10, 20)])
def test_attention_costs_the_variates_squared_whatever_the_length(length, variates):
    model, v = InvertedEncoder(length, DIM, 2, 2), variates
    attention = 2 * 2 * v**2 * DIM
    checks.cost_law(attention + 2 * 12 * v * DIM**2 + 2 * v * length * DIM, model, torch.zeros(1, length, v))


def test_an_inverted_encoder_learns_and_follows_its_input():
    checks.gradients_flow(inverted().float(), normal(2, LENGTH, VARIATES).float())
    checks.follows_dtype_and_device(inverted(), normal(2, LENGTH, VARIATES))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: patterns()(torch.zeros(1, 3, 8, 8)), "maps are 2x2, smaller than the 4x3"),
        (lambda: inverted()(normal(1, LENGTH + 1, 2)), r"expected \(batch, 10, variates\)"),
        (lambda: inverted()(normal(LENGTH, 2)), r"shape \(10, 2\)"),
    ],
)
def test_what_does_not_fit_is_a_sentence(make, sentence):
    with pytest.raises(LabkitError, match=sentence):
        make()


def _torch_layer(block: Block) -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        DIM, 2, 4 * DIM, 0.0, "gelu", batch_first=True, norm_first=True, dtype=torch.float64
    ).eval()
    names = {"self_attn.in_proj_": block.attn.qkv, "self_attn.out_proj.": block.attn.proj}
    names |= {"linear1.": block.mlp.fc1, "linear2.": block.mlp.fc2, "norm1.": block.norm1, "norm2.": block.norm2}
    layer.load_state_dict({name + p: getattr(m, p) for name, m in names.items() for p in ("weight", "bias")})
    return layer
