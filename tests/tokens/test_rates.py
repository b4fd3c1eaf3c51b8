"""Learned rates: probabilities that are counts, masks that are cuts, gradients that are true, budgets that are met."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from labkit import cost
from labkit.data.batch import ImageSet
from labkit.errors import LabkitError
from labkit.evidence import Evidence
from labkit.tokens import Keep, KeepShare, Merge, attach
from labkit.tokens.rates import (
    DiffRate,
    KeepCount,
    attach_rates,
    budget_loss,
    fixed_macs,
    learned_schedule,
    rate_loss,
    rates,
    tokens_left,
)
from labkit.tokens.schedule import attach_schedule, blocks_macs
from labkit.tokens.score import attention_received, class_attention, highest, key_norm, known
from labkit.train import Recipe, train
from labkit.vit import ViT
from tests import checks
from tests.weights import normal, randomized

IMAGES = normal(3, 3, 32, 32)
FAMILY = [
    {},
    {"registers": 2, "impl": "plain"},
    {"layer_scale": 0.5},
    {"pool": "avg", "class_token": True},
    {"pool": "avg"},
]


def model(**kwargs) -> ViT:
    return randomized(ViT(32, 8, 5, dim=32, depth=4, heads=2, **kwargs), std=0.1)


def slimmed(plain: ViT, merge: bool = False) -> ViT:
    """With rates in every block but the first: 12, 9 and 4 patches stay."""
    slim = attach_rates(plain, merge=merge, score=class_attention if plain.prefix else attention_received)
    for rate, count in zip(rates(slim)[1:], (12, 9, 4), strict=True):
        aim(rate, count)
    return slim.double()


@torch.no_grad()
def aim(rate: DiffRate, count: int) -> None:
    """Rough logits with which the rate keeps that many."""
    noise = torch.randn(len(rate.counts), generator=torch.Generator().manual_seed(count))
    for tilt in torch.linspace(-3, 3, 121):
        rate.logits.copy_(noise + tilt * (rate.counts - count) - (rate.counts - count + 0.5).abs())
        if int(rate.mask().sum()) == count:
            return
    raise AssertionError(f"no tilt gives {count}")


@pytest.mark.paper("S312")
@pytest.mark.parametrize("patches, granularity", [(16, 1), (16, 3), (16, 5), (196, 1), (196, 4), (7, 100), (1, 1)])
def test_probabilities_fall_with_the_rank_and_add_up_to_the_expected_count(patches, granularity):
    rate = DiffRate(patches, granularity).double()
    torch.nn.init.normal_(rate.logits, std=3, generator=torch.Generator().manual_seed(0))
    counts = torch.arange(patches, 0, -granularity)
    assert rate.counts.equal(counts) and counts[-1] >= 1
    shares = rate.logits.softmax(0)
    probability = rate.token_probability()
    for rank in range(patches):
        checks.equal(probability[rank], shares[counts > rank].sum(), 1e-12)
    assert (probability.diff() <= 0).all()
    checks.equal(probability.sum(), (shares * counts).sum(), 1e-12)
    checks.equal(rate.expected(), (shares * counts).sum(), 1e-12)
    assert rate.mask().sum() == (shares * counts).sum().ceil()


def test_an_expected_count_that_is_an_integer_is_not_rounded_up():
    """Without a preference (n + 1) / 2 are kept, though the sum of the probabilities may be a little more."""
    odd = range(1, 400, 2)
    assert [DiffRate(n).settled().count for n in odd] == [(n + 1) // 2 for n in odd]


@pytest.mark.paper("S312")
@pytest.mark.parametrize("granularity", [1, 4])
def test_a_sure_rate_is_hard_top_k_pruning(granularity):
    plain = model()
    for place, k in enumerate(range(16, 0, -granularity)):
        rate = DiffRate(16, granularity).double()
        with torch.no_grad():
            rate.logits[place] = 1000.0
        hard = (torch.arange(16) < k).double()
        checks.equal(rate.mask(), hard)
        checks.equal(rate.token_probability(), hard)
        ours, top = (attach(plain, reducer, [1]).eval() for reducer in (rate, Keep(k / 16)))
        checks.equal(ours(IMAGES), top(IMAGES))
        checks.equal(ours.train()(IMAGES), top(IMAGES), 1e-12)


@pytest.mark.paper("S312")
def test_the_mask_is_exactly_0_or_1_and_its_gradient_that_of_the_probabilities():
    rate, weights = DiffRate(196, 3), normal(196).float()
    for seed in range(20):
        torch.nn.init.normal_(rate.logits, std=seed / 4, generator=torch.Generator().manual_seed(seed))
        mask, probability = rate.mask(), rate.token_probability()
        assert mask.equal((torch.arange(196) < probability.sum().sub(1e-3).ceil()).float())
        gradients = [torch.autograd.grad((weights * v).sum(), rate.logits)[0] for v in (mask, probability)]
        checks.equal(gradients[0], gradients[1])
        assert gradients[0].abs().max() > 1e-3


@pytest.mark.paper("S312")
@pytest.mark.parametrize("kwargs", FAMILY, ids=str)
@pytest.mark.parametrize("merge", [False, True])
def test_masks_in_training_are_removal_at_inference(kwargs, merge):
    slim = slimmed(model(**kwargs), merge)
    p = slim.prefix
    away = slim.eval().observe(IMAGES)
    assert [step.x.shape[1] - p for step in away.steps] == [16, 12, 9, 4]
    masked = slim.train().observe(IMAGES)
    assert all(step.x.shape[1] - p == 16 for step in masked.steps)
    checks.equal(masked.logits, away.logits, 1e-12)
    for gathered, step in zip(away.steps[1:], masked.steps[1:], strict=True):
        there = step.how.there
        assert ((there == 0) | (there == 1)).all() and (there[:, :p] == 1).all()
        assert (there.sum(1) == gathered.x.shape[1]).all() and ((step.sizes > 0) == (there > 0)).all()
        checks.equal(step.x[there > 0], gathered.x.flatten(0, 1), 1e-12)
        sizes = torch.ones(3, gathered.x.shape[1]) if gathered.sizes is None else gathered.sizes
        checks.equal(step.sizes[there > 0], sizes.flatten(), 1e-12)
    assert (away.steps[-1].sizes is not None) == merge
    single = copy.deepcopy(slim).float()
    checks.equal(single.train()(IMAGES.float()), single.eval()(IMAGES.float()), 1e-5)


@pytest.mark.paper("S312")
def test_with_other_reducers_before_it_masks_are_removal_too():
    """What was merged before goes along by its size, and an empty place is nobody's."""
    own = KeepShare(0.9, known(normal(3, 16).mul(2).softmax(dim=1)))
    for before in (Merge(3), own):
        for merge in (False, True):
            slim = slimmed(model(), merge)
            slim.blocks[0].reducer = before
            for block in slim.blocks[1:]:
                block.reducer.score = key_norm  # which an empty place has as well
            checks.equal(slim.train()(IMAGES), slim.eval()(IMAGES), 1e-12)
            seen = slim.observe(IMAGES).steps
            kept = seen[0].sizes.sum(dim=1)
            assert seen[-1].sizes.sum(dim=1).equal(kept) == merge
    assert len(kept.unique()) > 1  # every image has its own number


@pytest.mark.paper("S312")
@pytest.mark.parametrize("kwargs", FAMILY, ids=str)
@pytest.mark.parametrize("merge", [False, True])
def test_at_full_budget_nothing_changes(kwargs, merge):
    plain = model(**kwargs)
    slim = attach_rates(plain, merge=merge, score=class_attention if plain.prefix else attention_received)
    for rate in rates(slim)[1:]:
        rate.logits.data[0] = 1000.0
    slim = slim.double()
    checks.equal(slim.eval()(IMAGES), plain(IMAGES), 0.0)
    checks.equal(slim.train()(IMAGES), plain(IMAGES), 1e-12)
    assert [step.x.shape[1] for step in slim.eval().observe(IMAGES).steps] == 4 * [16 + plain.prefix]
    assert budget_loss(slim, 1.0).item() == 0


def test_merging_is_the_mean_over_the_most_similar_that_stay():
    """Against the definition, one token at a time."""
    x, scores, sizes = normal(2, 14, 6), normal(2, 12).abs(), normal(2, 14).abs() + 1
    seen = Evidence(*normal(2, 2, 1, 14, 3))
    out, groups = KeepCount(4, True, known(scores)).reduce(x, seen, sizes, 2)
    assert out.shape == (2, 6, 6)
    for i in range(2):
        order = (scores[i].argsort(descending=True) + 2).tolist()
        stay = [0, 1, *sorted(order[:4])]
        members = {token: [token] for token in stay}
        for token in order[4:]:
            closest = max(stay[2:], key=lambda other: F.cosine_similarity(x[i, token], x[i, other], dim=0))
            members[closest].append(token)
        for place, token in enumerate(stay):
            parts, weight = x[i, members[token]], sizes[i, members[token]]
            checks.equal(out[i, place], (weight[:, None] * parts).sum(0) / weight.sum(), 1e-12)
            checks.equal(groups.sizes(sizes)[i, place], weight.sum(), 1e-12)
            checks.equal(groups.matrix()[i, place, members[token]], weight / weight.sum(), 1e-6)
    alone, few = KeepCount(4, False, known(scores)).reduce(x, seen, None, 2)
    checks.equal(alone, x.take_along_dim(highest(scores, 4, 2)[..., None], 1))
    assert not few.joins
    assert KeepCount(20, True, known(scores)).reduce(x, seen, None, 2)[0].equal(x)


@pytest.mark.parametrize("merge", [False, True])
def test_the_gradient_of_the_masks_is_what_a_part_of_a_token_changes(merge):
    """Against finite differences: a mask that is a little less than 1 or more than 0, at every rank of every rate."""
    slim = slimmed(model(pool="avg", class_token=True), merge).train()
    every, weights = rates(slim)[1:], normal(3, 5)
    hard = [rate.mask().detach() for rate in every]

    def loss(masks: list[torch.Tensor]) -> torch.Tensor:
        for rate, mask in zip(every, masks, strict=True):
            rate.mask = lambda mask=mask: mask
        return (weights * slim(IMAGES)).sum()

    masks = [mask.clone().requires_grad_(True) for mask in hard]
    gradients = torch.autograd.grad(loss(masks), masks)
    reached, eps = 0, 1e-6
    for i, mask in enumerate(hard):
        for rank in range(16):
            moved = [m.clone() for m in hard]
            moved[i][rank] += -eps if mask[rank] else eps
            change = (loss(moved) - loss(hard)) / (moved[i][rank] - mask[rank])
            checks.equal(gradients[i][rank], change, 1e-4, f"rate {i}, rank {rank}")
            reached += int(gradients[i][rank].abs() > 1e-3)
    assert reached > 25


@pytest.mark.paper("S312")
@pytest.mark.parametrize("merge", [False, True])
def test_the_gradient_of_the_budget_changes_its_sign_at_the_target(merge):
    slim = slimmed(model(), merge)
    price = (fixed_macs(slim) + blocks_macs(slim, [17, 13, 10, 5])) / cost.count(model()).macs
    assert budget_loss(slim, price).item() < 1e-12
    for share, sign in ((price + 0.1, 1), (price + 1e-3, 1), (price - 1e-3, -1), (price - 0.1, -1)):
        slim.zero_grad()
        value = budget_loss(slim, share)
        checks.equal(value, (price - share) ** 2, 1e-6)
        value.backward()
        for rate in rates(slim)[1:3]:  # a step down the gradient moves the count to the target
            step = copy.deepcopy(rate)
            step.logits.data -= 1e-3 * rate.logits.grad / rate.logits.grad.norm()
            assert (step.expected() - rate.expected()) * sign > 1e-5


def test_a_rate_above_what_arrives_still_learns_from_the_budget():
    slim = slimmed(model(impl="plain"))
    aim(rates(slim)[2], 15)
    assert [int(n) for n in tokens_left(slim)] == [17, 13, 13, 5]
    there = slim.train().observe(IMAGES).steps[2].how.there
    assert there.sum(dim=1).tolist() == [13, 13, 13]
    budget_loss(slim, 0.5).backward()
    assert all(rate.logits.grad.abs().max() > 1e-6 for rate in rates(slim)[1:])


@pytest.mark.paper("S312")
@pytest.mark.parametrize("kwargs", [{}, {"registers": 1, "impl": "plain"}], ids=str)
@pytest.mark.parametrize("merge", [False, True])
def test_the_law_is_what_is_counted(kwargs, merge):
    """To the last MAC: the law, one row of q kᵀ for each score, and the products that find who is most similar."""
    plain = model(**kwargs)
    slim = slimmed(plain, merge)
    after = [int(n) for n in tokens_left(slim)]
    assert after == [n + plain.prefix for n in (16, 12, 9, 4)]
    fused = plain.impl == "fast"
    expected = fixed_macs(plain) + blocks_macs(plain, after)
    asked = (1, 2) if fused else (1, 2, 3)  # fast inference reduces nothing in the last block
    for i in asked:
        stay, gone = after[i] - plain.prefix, after[i - 1] - after[i]
        expected += fused * after[i - 1] * 32 + merge * stay * gone * 32
    assert cost.count(slim).macs == expected
    full = cost.count(plain).macs
    checks.equal(budget_loss(slim, 0.5), ((fixed_macs(plain) + blocks_macs(plain, after)) / full - 0.5) ** 2, 1e-6)
    seen = slim.train().observe(IMAGES)
    assert [17 + plain.prefix - 1, *(int(s.how.there[0].sum()) for s in seen.steps[1:])] == after


@pytest.mark.paper("S312")
@pytest.mark.parametrize("merge", [False, True])
def test_what_was_learned_is_a_schedule_of_plain_numbers(merge):
    plain = model()
    slim = slimmed(plain, merge).eval()
    schedule = learned_schedule(slim)
    assert schedule[0] is None and [kept.count for kept in schedule[1:]] == [12, 9, 4]
    fixed = attach_schedule(plain, lambda kept: kept, schedule)
    checks.equal(fixed(IMAGES), slim(IMAGES))
    assert sum(p.numel() for p in fixed.parameters()) == sum(p.numel() for p in plain.parameters())


def problem(step: int, done: float) -> ImageSet:
    """One patch of 16 is bright, in one of three colours; all others are dark noise."""
    draw = torch.Generator().manual_seed(step)
    images = 0.1 * torch.rand(16, 3, 32, 32, generator=draw)
    labels, places = (torch.randint(high, (16,), generator=draw) for high in (3, 16))
    for image, label, place in zip(images, labels, places, strict=True):
        h, w = 8 * (place // 4), 8 * (place % 4)
        image[label, h : h + 8, w : w + 8] += 2
    return ImageSet(images, labels, names=("r", "g", "b"))


@pytest.fixture(scope="module")
def trained() -> ViT:
    torch.manual_seed(0)
    vit = ViT(32, 8, 3, dim=32, depth=4, heads=2)
    train(vit, problem, Recipe(150, lr=5e-3))
    return vit


@pytest.mark.paper("S312")
@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("share", [0.65, 0.9])
def test_sixty_steps_meet_the_budget_and_frozen_weights_stay(trained, share, merge):
    """It begins at 79 % of the MACs; to 90 % and to 65 % there is a way, and the rates find it."""
    slim = attach_rates(trained, merge=merge)
    before = copy.deepcopy(trained.state_dict())
    slim.requires_grad_(False)
    for rate in filter(None, rates(slim)):
        rate.requires_grad_(True)
    log = train(slim, problem, Recipe(60, lr=0.1), loss=rate_loss(share, 1000.0), every=30)
    trained.requires_grad_(True)
    price = (fixed_macs(slim) + blocks_macs(slim, [int(n) for n in tokens_left(slim)])) / cost.count(trained).macs
    checks.equal(price, share, 0.02)
    assert log.rows[-1]["accuracy"] > 0.9
    assert all(value.equal(before[name]) for name, value in trained.state_dict().items())


def test_the_weights_may_learn_as_well(trained):
    trained = copy.deepcopy(trained)
    slim = attach_rates(trained)
    before = trained.blocks[1].mlp.fc1.weight.clone()
    train(slim, problem, Recipe(3, lr=1e-3), loss=rate_loss(0.5))
    assert not trained.blocks[1].mlp.fc1.weight.equal(before)
    assert rates(slim)[1].logits.abs().max() > 0


@pytest.mark.parametrize("merge", [False, True])
def test_batches_precisions_and_ties(merge):
    slim = slimmed(model(impl="plain", pool="avg", class_token=True), merge)
    checks.gradients_flow(slim.train(), IMAGES)
    checks.batch_independent(slim, IMAGES, 1e-12)
    checks.follows_dtype_and_device(slim, IMAGES)
    checks.batch_independent(slim.eval(), IMAGES, 1e-12)
    checks.follows_dtype_and_device(slim, IMAGES)
    alike = DiffRate(16, score=known(torch.zeros(1, 16)))
    seen = Evidence(*normal(2, 1, 1, 17, 4))
    assert alike.train().reduce(normal(1, 17, 4), seen, None, 1)[1].there[0].tolist() == 10 * [1] + 7 * [0]
    checks.equal(alike.eval().reduce(normal(1, 17, 4), seen, None, 1)[0], normal(1, 17, 4)[:, :10])


def test_the_copy_owns_its_rates_and_state():
    plain = model()
    slim = attach_rates(plain, granularity=4, merge=True)
    names = {name for name, _ in slim.named_parameters()} - {name for name, _ in plain.named_parameters()}
    assert names == {f"blocks.{i}.reducer.logits" for i in (1, 2, 3)}
    assert len(rates(slim)[1].logits) == 4 and rates(slim)[0] is None
    assert all(block.reducer is None for block in plain.blocks)
    assert set(slim.state_dict()) - set(plain.state_dict()) == names


def test_what_cannot_be_is_a_sentence():
    plain = model()
    for patches, granularity in ((0, 1), (16, 0)):
        with pytest.raises(LabkitError, match="expected numbers of at least 1"):
            DiffRate(patches, granularity)
    with pytest.raises(LabkitError, match=r"share=1\.5 is not a share"):
        budget_loss(attach_rates(plain), 1.5)
    mixed = attach_rates(plain)
    mixed.blocks[0].reducer = Keep(0.5)
    for other in (plain, mixed):
        with pytest.raises(LabkitError, match="A budget needs rates, and no other reducers"):
            budget_loss(other, 0.5)
    with pytest.raises(LabkitError, match="expects at most 16 patches, got 36; attach new rates"):
        attach_rates(plain).double()(normal(1, 3, 48, 48))
    with pytest.raises(LabkitError, match="count=0 keeps nothing; expected"):
        attach(plain, KeepCount(0), [0])(IMAGES)
    with pytest.raises(LabkitError, match="use attention_received"):
        attach_rates(model(pool="avg")).double()(IMAGES)
