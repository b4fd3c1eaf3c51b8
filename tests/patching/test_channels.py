"""Tokens of single channels: a sum of kernels, a set of channels, random subsets, and channels that are absent."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
import torch

from labkit.errors import LabkitError
from labkit.patching.channels import ChannelPatchEmbed, hierarchical_channel_sample, present_forward
from labkit.vit import PatchEmbed, ViT
from tests import checks
from tests.weights import normal, randomized

C, DIM, PATCH, SIZE, N = 4, 16, 4, (8, 12), 6


def vit(tied: bool = True, **options) -> ViT:
    patching = ChannelPatchEmbed(SIZE, PATCH, DIM, C, tied)
    return randomized(
        ViT(SIZE, classes=5, dim=DIM, depth=2, heads=2, channels=C, patching=patching, positions=False, **options)
    )


def holding(model: ViT, channels: tuple[int, ...]) -> ViT:
    model.patch_embed.holds = channels
    return model


@pytest.mark.paper("S308")
@pytest.mark.parametrize("tied", [False, True])
def test_the_channels_tokens_add_up_to_the_patch_embedding(tied):
    """With a kernel for each channel this is any PatchEmbed; a shared one is a PatchEmbed with repeated kernels."""
    ours, images = randomized(ChannelPatchEmbed(SIZE, PATCH, DIM, C, tied=tied)), normal(2, C, *SIZE)
    plain = PatchEmbed(PATCH, C, DIM).double()
    with torch.no_grad():
        ours.bias.zero_(), ours.channel_embed.zero_(), ours.pos_embed.zero_(), plain.proj.bias.zero_()
        plain.proj.weight.copy_(ours.weight.expand(C, -1, -1, -1, -1)[:, :, 0].transpose(0, 1))
        x, grid = ours(images)
        checks.equal(x.unflatten(1, (C, N)).sum(dim=1), plain(images)[0], 1e-12)
    assert grid == (C * 2, 3) and ours.weight.shape[0] == (1 if tied else C)


@pytest.mark.paper("S308")
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_tokens_grow_with_the_channels_and_attention_with_their_square(channels):
    model = holding(vit(pool="avg").float(), tuple(range(channels)))
    n = channels * N
    linear = n * PATCH**2 * DIM + 2 * 12 * n * DIM**2 + 5 * DIM
    checks.cost_law(linear + 2 * 2 * n**2 * DIM, model, torch.zeros(1, channels, *SIZE))


@pytest.mark.paper("S308", "S330")
@pytest.mark.parametrize("tied", [True, False])
def test_the_order_of_the_channels_does_not_matter(tied):
    model, images, order = vit(tied), normal(2, C, *SIZE), (2, 0, 3, 1)
    x, logits = model.patch_embed(images)[0].unflatten(1, (C, N)), model(images)
    shuffled = holding(model, order)
    checks.equal(shuffled.patch_embed(images[:, order])[0].unflatten(1, (C, N)), x[:, order])
    checks.equal(shuffled(images[:, order]), logits, 1e-12)
    with pytest.raises(AssertionError, match="differ"):  # without their embeddings it matters
        checks.equal(holding(model, (0, 1, 2, 3))(images[:, order]), logits, 1e-3)


@pytest.mark.paper("S308")
def test_subset_sizes_are_uniform_and_so_are_the_members():
    draw, times = torch.Generator().manual_seed(0), 4000
    drawn = [tuple(hierarchical_channel_sample(C, draw).tolist()) for _ in range(times)]
    sizes, members = Counter(map(len, drawn)), Counter(c for subset in drawn for c in subset)
    spread = 4 * (times * 0.25) ** 0.5  # four standard deviations at most
    assert all(abs(sizes[m] - times / C) < spread for m in range(1, C + 1)) and len(sizes) == C
    assert all(abs(members[c] - times * (C + 1) / (2 * C)) < spread for c in range(C)) and len(members) == C
    assert set(drawn) == {subset for m in range(1, C + 1) for subset in combinations(range(C), m)}


def test_in_training_a_random_subset_is_shown_and_otherwise_everything():
    embed = ChannelPatchEmbed(SIZE, PATCH, DIM, C, sample=True)
    embed.holds = (3, 1, 0)
    images = normal(2, 3, *SIZE).float()
    full, seen = embed.eval()(images)[0].unflatten(1, (3, N)), set()
    torch.manual_seed(0)
    for _ in range(20):
        x, grid = embed.train()(images)
        x = x.unflatten(1, (-1, N))
        kept = tuple(i for i in range(3) if any(torch.allclose(x[:, j], full[:, i]) for j in range(x.shape[1])))
        assert len(kept) == x.shape[1] == grid[0] // 2
        seen.add(kept)
    assert len(seen) > 4


def test_positions_are_common_to_all_channels_and_are_resampled():
    embed = randomized(ChannelPatchEmbed(SIZE, PATCH, DIM, C))
    with torch.no_grad():
        embed.channel_embed.zero_()
    x, grid = embed(torch.zeros(1, C, 12, 16, dtype=torch.float64))
    x = x.unflatten(1, (C, 12))
    assert grid == (C * 3, 4)
    checks.equal(x, x[:, :1].expand_as(x))
    assert x[0, 0].std(dim=0).min() > 0


@pytest.mark.paper("S330")
@pytest.mark.parametrize("options", [{}, {"registers": 1}, {"pool": "avg"}], ids=str)
def test_padded_and_masked_is_as_without_padding(options):
    model, images = vit(**options), 10 * normal(3, C, *SIZE)
    present = torch.tensor([[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1]], dtype=torch.bool)
    together = present_forward(model, images, present)
    for i, here in enumerate(present):
        alone = holding(model, tuple(here.nonzero()[:, 0].tolist()))(images[i : i + 1, here])
        checks.equal(together[i : i + 1], alone, 1e-12, f"image {i}")
        holding(model, tuple(range(C)))


@pytest.mark.paper("S330")
def test_absent_channels_get_no_attention_and_no_gradient():
    model, images = vit().set_impl("plain"), normal(2, C, *SIZE).requires_grad_(True)
    present = torch.tensor([[1, 0, 1, 0], [1, 0, 0, 1]], dtype=torch.bool)
    steps = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, step: steps.append(step))
    present_forward(model, images, present).square().sum().backward()
    for step in steps:
        absent = torch.cat([torch.zeros(2, 1, dtype=torch.bool), ~present.repeat_interleave(N, 1)], dim=1)
        attn = step.evidence.attention()
        assert (attn.transpose(1, 3)[absent] == 0).all() and (attn.transpose(1, 3)[~absent] > 0).all()
        checks.rows_sum_to_one(attn)
    assert len(steps) == 2
    assert (images.grad[~present] == 0).all() and (images.grad[present] != 0).any(dim=(1, 2)).all()
    unused = ~present.any(dim=0)
    gradient = model.patch_embed.channel_embed.grad
    assert unused.tolist() == [False, True, False, False]
    assert (gradient[unused] == 0).all() and (gradient[~unused] != 0).all()


def test_gradients_flow_and_dtype_follows():
    patching = ChannelPatchEmbed(SIZE, PATCH, DIM, C, tied=False)
    checks.gradients_flow(patching, normal(2, C, *SIZE).float())
    checks.follows_dtype_and_device(patching, normal(2, C, *SIZE).float())
    checks.batch_independent(lambda x: patching(x)[0], normal(2, C, *SIZE).float())


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: vit()(normal(1, 3, *SIZE)), r"expected \(batch, 4, height, width\)"),
        (lambda: vit()(normal(1, C, 9, 12)), "9x12 is not divisible by the patch size 4x4"),
        (lambda: present_forward(vit(), normal(1, C, *SIZE), torch.zeros(1, C).bool()), "a True for each image"),
        (lambda: present_forward(vit(), normal(2, C, *SIZE), torch.ones(1, C).bool()), r"must be \(2, 4\)"),
    ],
)
def test_what_does_not_fit_is_a_sentence(make, sentence):
    with pytest.raises(LabkitError, match=sentence):
        make()
