"""PYRA: plain merging while nothing is learned, weights of rank one, and a backbone that stays as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from labkit.cost import count
from labkit.data.batch import ImageSet
from labkit.distill import DistilledViT
from labkit.errors import LabkitError
from labkit.evidence import Evidence
from labkit.tokens import KeepShare, Merge, attach
from labkit.tokens.pyra import PYRA, adapt
from labkit.tokens.score import known
from labkit.train import Recipe, train
from labkit.vit import ViT
from tests import checks
from tests.weights import normal, randomized

IMAGES = normal(3, 3, 32, 32)
MODELS = [{}, {"registers": 2}, {"pool": "avg"}, {"layer_scale": 0.5}]


def model(**kwargs) -> ViT:
    return randomized(ViT(32, 8, 5, dim=32, depth=3, heads=2, **kwargs), std=0.1)


def learned(r: int, dim: int = 32) -> PYRA:
    return randomized(PYRA(dim, r), 0.5)


def parts(seed: int = 0, n: int = 13, d: int = 32) -> tuple[Tensor, Evidence]:
    """Tokens (2, n, d), and the evidence by which they are merged."""
    numbers = normal(3, 2, n, d).roll(seed, 0)
    return numbers[0], Evidence(numbers[1][:, None], numbers[2][:, None])


@pytest.mark.paper("S279")
@pytest.mark.parametrize("kwargs", MODELS, ids=str)
@pytest.mark.parametrize("r", [1, 5, 100])
def test_at_zero_it_is_plain_merging_to_the_last_bit(kwargs, r):
    plain = model(**kwargs)
    merged, adapted = attach(plain, Merge(r), range(3)), adapt(plain, [r] * 3)
    checks.equal(adapted(IMAGES), merged(IMAGES), 0.0)
    for ours, theirs in zip(adapted.observe(IMAGES).steps, merged.observe(IMAGES).steps, strict=True):
        checks.equal((ours.x, ours.map, ours.sizes), (theirs.x, theirs.map, theirs.sizes), 0.0)
    adapted.blocks[0].reducer.token.data.copy_(normal(32))
    assert (adapted(IMAGES) - merged(IMAGES)).abs().max() > 1e-6


@pytest.mark.paper("S279")
@pytest.mark.parametrize("kwargs", MODELS, ids=str)
def test_without_pairs_it_is_the_backbone(kwargs):
    plain = model(**kwargs)
    checks.equal(adapt(plain, [0] * 3)(IMAGES), plain(IMAGES), 1e-12)
    checks.equal(adapt(plain, [None] * 3)(IMAGES), plain(IMAGES), 0.0)


@pytest.mark.paper("S279")
def test_the_weights_are_an_outer_product():
    """The weight of token i and channel j is t[i] c[j], of rank one; what multiplies the tokens, 1 + t c, has two."""
    pyra, source, pairs = learned(6), normal(2, 6, 32) + 3, normal(2, 6, 32)
    token, channel = pyra.weights(pairs)
    assert token.shape == (2, 6, 1) and channel.shape == (2, 1, 32)
    assert token.abs().max() < 1 and channel.min() > 0 and channel.max() < 2
    weights = pyra.modulate(source, pairs) / source - 1
    for i in range(2):
        checks.equal(weights[i], torch.outer(token[i, :, 0], channel[i, 0]), 1e-12)
    assert torch.linalg.matrix_rank(weights, rtol=1e-8).tolist() == [1, 1]
    assert torch.linalg.matrix_rank(1 + weights, rtol=1e-8).tolist() == [2, 2]
    assert weights.abs().min() > 1e-4


@pytest.mark.paper("S279")
def test_a_block_has_three_numbers_a_channel_and_one_a_pair():
    """The check's O(d) is 3 d + r: the channels' vector has one number for each pair, as many as half the tokens."""
    for dim, r in ((32, 5), (384, 16), (768, 0)):
        assert sum(p.numel() for p in PYRA(dim, r).parameters()) == 3 * dim + r


@pytest.mark.paper("S279")
@pytest.mark.parametrize("sized", [False, True])
def test_it_is_the_authors_rule_one_pair_at_a_time(sized):
    """Token by token: only who moves is re-scaled, by what it and the one that it joins are together."""
    (x, seen), pyra, r = parts(), learned(4), 4
    sizes = torch.randint(1, 5, (2, 13), generator=torch.Generator().manual_seed(2)).double()
    out, groups = pyra.reduce(x, seen, sizes if sized else None, prefix=2)
    for i in range(2):
        s = sizes[i] if sized else torch.ones(13).double()
        alike = torch.cosine_similarity(seen.k[i, 0][:, None], seen.k[i, 0], dim=-1)
        edges = sorted((max((alike[a, b].item(), b) for b in range(3, 13, 2)), a) for a in range(2, 13, 2))[::-1]
        pairs = [(a, b) for (_, b), a in edges[:r]]
        sums = [pyra.norm(s[a] * x[i, a] + s[b] * x[i, b]) for a, b in pairs]
        channel = 2 * sum(c * v for c, v in zip(pyra.channel, sums, strict=True)).sigmoid()
        tokens = [2 * (v @ pyra.token).sigmoid() - 1 for v in sums]
        moved = {a: x[i, a] * (1 + t * channel) for (a, _), t in zip(pairs, tokens, strict=True)}
        stay = [j for j in range(13) if j not in moved]
        for place, j in enumerate(stay):
            joined = [a for a, b in pairs if b == j]
            mean = (s[j] * x[i, j] + sum(s[a] * moved[a] for a in joined)) / (s[j] + sum(s[a] for a in joined))
            checks.equal(out[i, place], mean, 1e-12)
            if not joined:
                checks.equal(out[i, place], x[i, j], 1e-14)
    assert groups.count == 9 and any(len([a for a, b in pairs if b == j]) for j in stay)


@pytest.mark.paper("S279")
def test_who_is_not_merged_is_untouched_and_patches_are_counted():
    plain = model(registers=1)
    adapted = adapt(plain, [4, 3, 2])
    for block in adapted.blocks:
        block.reducer.token.data.copy_(normal(32))
    steps = adapted.observe(IMAGES).steps
    assert [step.x.shape[1] for step in steps] == [14, 11, 9]
    for step in steps:
        checks.equal(step.sizes.sum(1), torch.full((3,), 18.0), 1e-12)
        checks.rows_sum_to_one(step.map, 1e-6)
        checks.equal(step.map[:, :2], torch.eye(2, step.map.shape[2]).expand(3, -1, -1))
    x, seen = parts()
    out, groups = learned(5).reduce(x, seen, None, 1)
    alone = (groups.matrix() > 0).sum(-1) == 1
    checks.equal(out[alone], groups.mean(x)[alone], 0.0)
    assert 0 < alone.sum() < alone.numel()
    assert (out - groups.mean(x))[~alone].abs().amax(-1).min() > 1e-4


@pytest.mark.paper("S279")
def test_the_backbone_gets_no_gradient_and_the_trainable_share_is_the_formulas():
    """L blocks of 3 d + r numbers and a head of (d + 1) classes, of all."""
    plain = model()
    adapted = adapt(plain, [5, 4, None])
    adapted(IMAGES).square().sum().backward()
    trained = {name for name, p in adapted.named_parameters() if p.grad is not None}
    pyra = {f"blocks.{i}.reducer.{part}" for i in (0, 1) for part in ("norm.weight", "norm.bias", "token", "channel")}
    assert trained == pyra | {"head.weight", "head.bias"}
    assert {name for name, p in adapted.named_parameters() if p.requires_grad} == trained
    share = (2 * 3 * 32 + 5 + 4 + 33 * 5) / (sum(p.numel() for p in plain.parameters()) + 2 * 3 * 32 + 5 + 4)
    sizes = [(p.numel(), p.requires_grad) for p in adapted.parameters()]
    assert sum(n for n, grows in sizes if grows) / sum(n for n, _ in sizes) == share
    assert all(p.requires_grad and p.grad is None for p in plain.parameters())  # the original is as it was
    assert not {p.data_ptr() for p in plain.parameters()} & {p.data_ptr() for p in adapted.parameters()}


def test_a_small_or_base_vit_trains_a_thousandth_of_itself():
    """The heads aside; 12 blocks, 16 pairs each."""
    for dim, heads, share in ((384, 6, 6.5e-4), (768, 12, 3.3e-4)):
        with torch.device("meta"):
            adapted = adapt(ViT(224, 16, 0, dim, 12, heads), [16] * 12)
        numbers = [(p.numel(), p.requires_grad) for p in adapted.parameters()]
        trained = sum(n for n, grows in numbers if grows)
        assert trained == 12 * (3 * dim + 16)
        assert trained / sum(n for n, _ in numbers) == pytest.approx(share, rel=0.02)


@pytest.mark.paper("S279")
def test_training_moves_what_is_trained_and_nothing_else():
    """At zero only `token` learns, since the channels' weights are multiplied by it; after one step all do."""
    plain = model()
    adapted = adapt(plain, [5, 4, None])
    checks.gradients_flow(attach(plain, learned(5), [0]), IMAGES)
    adapted(IMAGES).square().sum().backward()
    first = adapted.blocks[0].reducer
    assert first.token.grad.any() and not first.channel.grad.any() and not first.norm.weight.grad.any()
    adapted.float()
    before = copy.deepcopy(adapted.state_dict())
    batch = ImageSet(IMAGES.float(), torch.tensor([0, 3, 4]), names=tuple("abcde"))
    train(adapted, lambda step, done: batch, Recipe(steps=4, lr=1e-2))
    moved = {name for name, now in adapted.state_dict().items() if not torch.equal(now, before[name])}
    assert moved == {name for name, p in adapted.named_parameters() if p.requires_grad}


def test_both_heads_of_a_distilled_vit_are_trained():
    adapted = adapt(randomized(DistilledViT(32, 8, 5, dim=32, depth=3, heads=2)), [2, None, None])
    trained = {name.split(".")[0] for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained == {"blocks", "head", "head_dist"}


@pytest.mark.paper("S279")
def test_it_costs_two_products_of_the_pairs_more_than_merging():
    plain = model()
    for r, pairs in ((0, 0), (5, 5), (100, 8)):
        more = count(attach(plain, learned(r), [0])).macs - count(attach(plain, Merge(r), [0])).macs
        assert more == 2 * pairs * 32


def test_empty_places_weigh_nothing():
    """After a reducer that keeps a number of its own for each image, what lies in an empty place is of no account."""
    slim = attach(attach(model(), KeepShare(0.5, known(normal(3, 16).exp())), [0]), learned(3), [1])
    seen = slim.observe(IMAGES)
    assert (seen.steps[0].sizes == 0).any()
    checks.equal(seen.steps[1].sizes.sum(1), seen.steps[0].sizes.sum(1), 1e-12)
    (x, evidence), sizes = parts(), torch.ones(2, 13).double()
    sizes[:, 9:] = 0
    other = torch.cat([x[:, :9], 7 * x[:, 9:].flip(2)], dim=1)
    first, second = (learned(4).reduce(tokens, evidence, sizes, 1) for tokens in (x, other))
    there = first[1].sizes(sizes) > 0
    checks.equal(first[0][there], second[0][there], 1e-12)
    assert not first[0][~there].any()


def test_order_of_the_batch_ties_precisions_and_company():
    slim = attach(model(), learned(5), [0])
    checks.batch_independent(slim, IMAGES, 1e-10)
    checks.equal(slim(IMAGES.flip(0)), slim(IMAGES).flip(0), 1e-10)
    checks.equal(slim.train()(IMAGES), slim.eval()(IMAGES), 1e-12)
    checks.follows_dtype_and_device(slim, IMAGES)
    ties, _ = parts()
    same = Evidence(torch.ones(2, 1, 13, 4), torch.ones(2, 1, 13, 4))
    checks.deterministic(lambda: learned(3).reduce(ties, same, None, 1)[0])
    kept = learned(3).reduce(ties, same, None, 1)[1].home[0]
    assert kept.tolist() == Merge(3).reduce(ties, same, None, 1)[1].home[0].tolist()


def test_bad_input_is_a_sentence():
    with pytest.raises(LabkitError, match="r=-1 merges no pairs"):
        PYRA(32, -1)
    with pytest.raises(LabkitError, match="made for tokens of width 16; these have 32"):
        attach(model(), learned(3, dim=16), [0])(IMAGES)
    with pytest.raises(LabkitError, match="The schedule has 2 amounts and the model 3 blocks"):
        adapt(model(), [4, 4])
    odd = model()
    odd.blocks[0].attn = nn.Identity()
    with pytest.raises(LabkitError, match="PYRA finds its pairs by the keys of plain attention"):
        adapt(odd, [4, 4, 4])
