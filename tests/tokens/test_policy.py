"""Policies: the gradient by reward against the exact one, the limits, the counts, and that trial and error finds it."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from labkit.cost import block_macs, count
from labkit.data.batch import ImageSet
from labkit.errors import LabkitError
from labkit.tokens import KeepShare, attach, packed
from labkit.tokens.policy import (
    PolicyDrop,
    decisions,
    keep_map,
    kept_share,
    log_probability,
    policy_loss,
    reinforce_loss,
    reward,
)
from labkit.tokens.score import known
from labkit.train import Recipe, epochs, train
from labkit.vit import ViT
from tests import checks
from tests.tokens.test_learned import MODELS, hidden, trained
from tests.weights import normal, randomized

IMAGES = normal(3, 3, 32, 32)
BATCH = ImageSet(IMAGES, torch.tensor([0, 3, 1]))


def model(**kwargs) -> ViT:
    return randomized(ViT(32, 8, 5, dim=32, depth=3, heads=2, **kwargs))


def slim(policies: int, heads: int = 2, side: int = 32, **kwargs) -> ViT:
    net = ViT(side, 8, 5, dim=32, depth=3, heads=2, **kwargs)
    net = randomized(net)
    for layer in range(policies):
        policy = randomized(PolicyDrop(32, heads), std=0.5)
        policy.vote.bias.data.fill_(-0.5)
        net = attach(net, policy, [layer])
    return net


class Imposed(nn.Module):
    """In place of the draws: these masks (b, patches) and no others."""

    def __init__(self, masks: torch.Tensor) -> None:
        super().__init__()
        self.masks = masks

    def forward(self, shape: torch.Size) -> torch.Tensor:
        assert self.masks.shape == shape
        return 1.0 - self.masks.double()


class Greedy(nn.Module):
    """In place of the draws: what would be kept in use."""

    def __init__(self, policy: PolicyDrop) -> None:
        super().__init__()
        policy.vote.register_forward_hook(self.look)

    def look(self, module, inputs, votes) -> None:
        self.kept = votes.sigmoid().mean(dim=-1) >= 0.5

    def forward(self, shape: torch.Size) -> torch.Tensor:
        return 1.0 - self.kept.double()


def masks_of(n: int) -> torch.Tensor:
    """All (2^n, n)."""
    return torch.tensor(list(product([False, True], repeat=n)))


def score_function_gradient(logp: torch.Tensor, rewards: torch.Tensor, baseline, parameters) -> list[torch.Tensor]:
    """Σ p(mask) ∇ reinforce_loss(mask): what the loss does on average, without drawing."""
    total = [torch.zeros_like(p) for p in parameters]
    for i in range(len(logp)):
        base = baseline[i : i + 1] if isinstance(baseline, torch.Tensor) else baseline
        loss = reinforce_loss(logp[i : i + 1], rewards[i : i + 1], base)
        for sum_, gradient in zip(total, torch.autograd.grad(loss, parameters, retain_graph=True), strict=True):
            sum_ += logp[i].exp().item() * gradient
    return total


@pytest.mark.paper("S007")
@pytest.mark.parametrize("baseline", [0.0, 0.7, -3.0])
@pytest.mark.parametrize("n", [1, 3, 8])
def test_the_score_function_gradient_is_that_of_the_exact_expected_reward(n, baseline):
    """Any reward of all 2^n masks; the worst difference is near 1e-16."""
    logits = normal(n).requires_grad_()
    masks, rewards = masks_of(n), normal(2**n, 1)[:, 0]
    logp = log_probability(logits.sigmoid().expand(2**n, n), masks).sum(dim=1)
    checks.equal(logp.exp().sum(), torch.ones(()), 1e-12)
    exact = torch.autograd.grad((logp.exp() * rewards).sum(), logits, retain_graph=True)[0]
    summed = score_function_gradient(logp, rewards, baseline, [logits])[0]
    checks.equal(-summed, exact, 1e-14)
    assert exact.abs().max() > 1e-3


@pytest.mark.paper("S007")
@pytest.mark.parametrize("baseline", [0.0, 0.7])
def test_so_it_is_through_the_whole_model_with_two_policies(baseline):
    """Every pair of decisions about four patches, the second about those whom the first has left.

    The probabilities that the model reports sum to one, the empty mask (of which the likeliest stays) among them.
    """
    net = slim(2, side=16, pool="avg").train()
    policies = [block.reducer for block in net.blocks[:2]]
    pairs = torch.tensor([(*a, *b) for a in masks_of(4).tolist() for b in masks_of(4).tolist()])
    policies[0].draws, policies[1].draws = Imposed(pairs[:, :4]), Imposed(pairs[:, 4:])
    seen = net.observe(2 * normal(1, 3, 16, 16).expand(len(pairs), -1, -1, -1))
    first, second = decisions(seen)
    left = first.there > 0
    distinct = (~pairs[:, 4:] | left).all(dim=1)  # nothing is asked about a patch that is gone
    logp = (first.log_probability + second.log_probability)[distinct]
    checks.equal(logp.exp().sum(), torch.ones(()), 1e-12)
    labels = torch.full((len(pairs),), int(seen.logits.argmax(dim=-1).mode().values))
    rewards = reward(seen.logits, labels, kept_share(seen, 0).double(), 0.5)[distinct]
    assert (rewards == -0.5).any() and rewards.unique().numel() > 3
    parameters = [p for policy in policies for p in policy.parameters()]
    exact = torch.autograd.grad((logp.exp() * rewards).sum(), parameters, retain_graph=True)
    summed = score_function_gradient(logp, rewards, baseline, parameters)
    checks.equal([-g for g in summed], list(exact), 1e-13)
    assert all(g.abs().max() > 1e-5 for g in exact)


@pytest.mark.paper("S007")
@pytest.mark.parametrize("kwargs", MODELS, ids=str)
def test_to_keep_all_is_the_plain_model(kwargs):
    """In use to the last bit; masked by ones, attention adds log(1 + 1e-15) to every score."""
    plain = model(**kwargs)
    policy = PolicyDrop(32, 3).double()
    policy.vote.bias.data.fill_(60.0)
    for layers in (range(3), "entry"):
        net = attach(plain, policy, layers)
        checks.equal(net.eval()(IMAGES), plain(IMAGES), 0.0)
        checks.equal(net.train()(IMAGES), plain(IMAGES), 1e-12)
        assert kept_share(net.observe(IMAGES), plain.prefix).eq(1).all()


@pytest.mark.paper("S007")
def test_tokens_only_become_fewer_in_training_and_in_use():
    net = slim(3, registers=1)
    sizes = [step.sizes for step in net.observe(IMAGES).steps]
    counts = [(s > 0).sum(dim=1) if s is not None else None for s in sizes]
    assert counts[0].unique().numel() > 1 and counts[0].max() < 18  # every image has its own number
    for before, after in pairwise(counts):
        assert (after <= before).all()
    steps = net.train().observe(IMAGES).steps
    for before, after in pairwise(steps):
        assert (after.sizes <= before.sizes).all() and after.x.shape == before.x.shape
    shares = [how.there[:, 2:].mean(dim=1) for how in decisions(net.observe(IMAGES))]
    assert all((b <= a).all() for a, b in pairwise(shares))


@pytest.mark.parametrize("impl", ["plain", "fast"])
@pytest.mark.parametrize("kwargs", MODELS, ids=str)
def test_masked_in_training_is_gone_in_use(kwargs, impl):
    net = slim(2, **kwargs).set_impl(impl)
    used = net.observe(IMAGES)
    for block in net.blocks[:2]:
        block.reducer.draws = Greedy(block.reducer)
    seen = net.train().observe(IMAGES)
    checks.equal(seen.logits, used.logits, 1e-10)
    checks.equal(kept_share(seen, net.prefix), kept_share(used, net.prefix), 1e-12)
    there, left = seen.steps[1].sizes > 0, used.steps[1].sizes
    kept = used.steps[2].x if left is None else used.steps[2].x[left > 0]
    checks.equal(seen.steps[2].x[there], kept.reshape(-1, 32), 1e-10)
    assert (seen.logits - model(**kwargs)(IMAGES)).abs().max() > 1e-3


def test_what_is_kept_in_use_are_the_likely_ones_and_one_at_least():
    net = slim(1)
    policy, step = net.blocks[0].reducer, net.observe(IMAGES).steps[0]
    expected = step.how.probability[:, 1:] >= 0.5
    assert (step.how.home[:, 1:] >= 0).equal(expected) and 0.2 < expected.double().mean() < 0.8
    nn.init.zeros_(policy.vote.weight), nn.init.zeros_(policy.vote.bias)
    assert net.observe(IMAGES).steps[0].x.shape[1] == 17  # at one half, all are kept
    policy.vote.bias.data.fill_(-50.0)
    for mode in (False, True):
        how = net.train(mode).observe(IMAGES).steps[0].how
        places = how.home[:, 1:] if not mode else how.there[:, 1:] - 1
        assert (places >= 0).sum(dim=1).tolist() == [1, 1, 1]
    assert net.train()(IMAGES).isfinite().all()


def test_each_head_votes_for_itself():
    policy = randomized(PolicyDrop(8, 3))
    x = normal(2, 5, 8)
    unit = policy.norm(x)
    votes = [(unit @ policy.vote.weight[h] + policy.vote.bias[h]).sigmoid() for h in range(3)]
    checks.equal(policy.probability(x), sum(votes) / 3, 1e-12)


def test_what_is_drawn_follows_the_probability_that_is_reported():
    net = slim(1).train()
    with torch.no_grad():
        x = net.embed(IMAGES[:1])[0].expand(3000, -1, -1)
        how = net.blocks[0].reducer.reduce(x, None, None, 1)[1]
    checks.equal(how.there[:, 1:].mean(dim=0), how.probability[0, 1:], 0.037)  # four standard deviations
    drawn = how.there > 0
    expected = log_probability(how.probability[:, 1:], drawn[:, 1:]).sum(dim=1)
    checks.equal(how.log_probability, expected, 1e-12)
    assert net(IMAGES).ne(net(IMAGES)).any()  # the next draw is another


def test_a_certain_decision_has_finite_gradients():
    for value in (0.0, 1.0):
        probability = torch.full((4,), value, requires_grad=True)
        drawn = torch.tensor([True, False, True, False])
        chance = log_probability(probability, drawn)
        chance.sum().backward()
        assert chance.isfinite().all() and probability.grad.isfinite().all()


def test_the_reward_pays_for_right_answers_with_few_patches():
    logits, labels = torch.eye(3), torch.tensor([0, 1, 0])
    paid = reward(logits, labels, torch.tensor([1.0, 0.5, 0.1]), penalty=0.3)
    checks.equal(paid, torch.tensor([0.0, 0.75, -0.3]), 1e-7)


def test_a_baseline_sends_no_gradient_and_a_reward_neither():
    logp, rewards, base = (normal(4, 1)[:, 0].requires_grad_() for _ in range(3))
    loss = reinforce_loss(logp, rewards, base - 1)
    loss.backward()
    checks.equal(logp.grad, torch.full((4,), -0.25), 1e-12)
    assert rewards.grad is None and base.grad is None


def test_the_loss_is_made_of_its_parts_and_each_teaches_its_own():
    net = slim(2).train()

    def drawn() -> ViT:
        for block in net.blocks[:2]:
            block.reducer.draws.seed.fill_(11)
        return net

    seen = drawn().observe(IMAGES)
    logp = sum(how.log_probability for how in decisions(seen))
    paid = reward(seen.logits, BATCH.labels, kept_share(seen, 1), 0.2)
    entropy = F.cross_entropy(seen.logits.float(), BATCH.labels)
    greedy = net.eval().observe(IMAGES)
    usual = reward(greedy.logits, BATCH.labels, kept_share(greedy, 1), 0.2)
    net.train()
    for baseline, base in ((0.4, 0.4), ("greedy", usual)):
        value, logits = policy_loss(0.2, baseline)(drawn(), BATCH)
        checks.equal(value, entropy - ((paid - base) * logp).mean(), 1e-6)
        checks.equal(logits, seen.logits.float())
    assert net.training and net.blocks[0].reducer.training
    value, _ = policy_loss(0.2, 0.4)(drawn(), BATCH)
    named = dict(net.named_parameters())
    whole = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    alone = torch.autograd.grad(
        F.cross_entropy(drawn()(IMAGES).float(), BATCH.labels), named.values(), allow_unused=True
    )
    for name, both, one in zip(named, whole, alone, strict=True):
        if "reducer" in name:
            assert one is None and both.any(), name
        else:
            checks.equal(both, one, 1e-7, name)


def test_the_map_says_how_long_each_patch_was_kept():
    """Of two policies: both kept it, 1; only the first, between 1/2 and 3/4; none, below 1/4."""
    net = slim(2, registers=1)
    where = keep_map(net, IMAGES)
    seen = net.observe(IMAGES)
    first, second = decisions(seen)
    assert where.shape == (3, 16) and where.unique().numel() > 16
    bands = set()
    for image, patch in product(range(3), range(16)):
        place = first.home[image, 2 + patch].item()
        if place < 0:
            expected, band = first.probability[image, 2 + patch] / 2, "none"
        elif second.home[image, place] < 0:
            expected, band = (1 + second.probability[image, place]) / 2, "one"
        else:
            expected, band = torch.ones(()), "both"
        bands.add(band)
        checks.equal(where[image, patch], expected, 1e-6)
    assert bands == {"none", "one", "both"}
    checks.equal(keep_map(net.train(), IMAGES), where, 1e-12, "in training and in use")
    assert net.training
    entry = attach(model(), randomized(PolicyDrop(32, 2), std=0.5), "entry")
    assert (keep_map(entry, IMAGES) == 1).sum(dim=1).equal(entry.enter(IMAGES)[0].how.home[:, 1:].ge(0).sum(dim=1))


def test_what_it_costs():
    """n d heads for the votes, and less for every token that is dropped; how many, the black image decides."""
    net, black = slim(1, heads=1), torch.zeros(1, 3, 32, 32).double()
    policy = net.blocks[0].reducer
    policy.vote.bias.data -= net.observe(black).steps[0].how.probability[0, 1:].logit().median()
    left = net.observe(black).steps[0].x.shape[1]
    assert left == 10
    expected = 16 * 32 * 3 * 64 + 32 * 5 + 16 * 32
    for n, after, rows in ((17, left, None), (left, left, None), (left, left, 1)):
        parts = block_macs(n, 32, rows=rows)
        expected += sum(parts.values()) - parts["mlp"] + block_macs(after, 32, rows=rows)["mlp"]
    assert count(net).macs == expected


def test_it_learns_to_keep_the_patch_that_tells():
    """In front of the first block no token knows of the others, and without the patch that tells there is nothing left.

    So that is what the policy keeps, but for one class of the three: it learns that who sees nothing may name that.
    """
    net, (images, place) = attach(trained(), PolicyDrop(32, 2), "entry"), hidden(256, 1)
    batches = epochs(hidden(1024, 0)[0], 64, seed=1)
    train(net, batches, Recipe(steps=50, lr=3e-3), loss=policy_loss(penalty=1.0))
    with torch.no_grad():
        seen = net.observe(images.images)
    kept = seen.entry.home[:, 1:] >= 0
    told = kept.gather(1, place[:, None])[:, 0].double()
    _, *two = sorted(told[images.labels == label].mean().item() for label in range(3))
    assert min(two) > 0.9 and kept.double().mean() < 0.5, (two, kept.double().mean())
    assert (seen.logits.argmax(dim=-1) == images.labels).float().mean() > 0.8  # by chance 0.33


def test_a_killed_run_draws_on_as_if_nothing_had_happened(tmp_path):
    data, recipe = hidden(64, 0)[0], Recipe(steps=4, precision="bfloat16")

    def run(folder, stop=None):
        def watch(rows):
            if rows[-1]["step"] == stop:
                raise KeyboardInterrupt

        torch.manual_seed(0)
        net = attach(ViT(32, 8, 3, dim=32, depth=2, heads=2), PolicyDrop(32, 2), [0])
        train(net, epochs(data, 8), recipe, loss=policy_loss(), folder=folder, every=1, watch=watch)
        return net.state_dict()

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", stop=2)
    resumed = run(tmp_path / "killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_an_image_alone_and_in_company_packed_and_in_other_precisions():
    net = slim(2)
    checks.batch_independent(net, IMAGES, 1e-10)
    checks.equal(packed(net, IMAGES, waste=0.01), net(IMAGES), 1e-10)
    checks.equal(net(IMAGES.flip(0)), net(IMAGES).flip(0), 1e-10)
    checks.follows_dtype_and_device(net, IMAGES)
    checks.follows_dtype_and_device(net.train(), IMAGES)


def test_empty_places_are_neither_kept_nor_drawn_about():
    scores = (torch.arange(16) < torch.tensor([[4], [10], [16]])).double()
    net = attach(model(), KeepShare(1.0, known(scores)), [0])
    policy = PolicyDrop(32, 2).double()
    policy.vote.weight.data.zero_()
    policy.vote.bias.data.fill_(0.5)
    net = attach(net, policy.eval(), [1])
    assert net.observe(IMAGES).steps[1].sizes[:, 1:].sum(dim=1).tolist() == [4, 10, 16]
    policy.draws = Imposed(torch.ones(3, 16))
    how = net.train().observe(IMAGES).steps[1].how
    assert how.there[:, 1:].sum(dim=1).tolist() == [4, 10, 16]
    checks.equal(how.log_probability, torch.tensor([4.0, 10, 16]) * torch.tensor(0.5).sigmoid().log(), 1e-6)


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: PolicyDrop(32, 0), "heads=0 cannot vote"),
        (lambda: attach(model(), PolicyDrop(64, 2).double(), [0])(IMAGES), "of width 64, and these have 32"),
        (lambda: policy_loss(baseline="mean"), "baseline='mean' is unknown; choose \"greedy\" or a number"),
        (lambda: policy_loss()(slim(1), BATCH), r"call model.train\(\)"),
        (lambda: policy_loss()(model().train(), BATCH), "has no PolicyDrop; attach one"),
        (lambda: policy_loss()(slim(1).train(), ImageSet(IMAGES)), "needs labels"),
        (lambda: keep_map(model(), IMAGES), "has no PolicyDrop"),
    ],
)
def test_bad_input(call, sentence):
    with pytest.raises(LabkitError, match=sentence):
        call()
