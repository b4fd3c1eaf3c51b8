"""Learned dropping: what is masked in training is what is gone in use, the draws obey their law, and it learns."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from labkit.cost import block_macs, count
from labkit.data.batch import ImageSet
from labkit.distill import deit_loss
from labkit.errors import LabkitError
from labkit.tokens import KeepShare, attach
from labkit.tokens.learned import Draws, LearnedDrop, Predictor, at_least_one, dropping_loss, ratio_loss
from labkit.tokens.merge import Merge
from labkit.tokens.score import known
from labkit.train import Recipe, classify, epochs, train
from labkit.vit import ViT
from tests import checks
from tests.weights import normal, randomized

IMAGES = normal(3, 3, 32, 32)
BATCH = ImageSet(IMAGES, torch.tensor([0, 3, 1]))
MODELS = [{}, {"registers": 2}, {"pool": "avg"}, {"pool": "avg", "class_token": True}, {"layer_scale": 0.5}]


def model(**kwargs) -> ViT:
    return randomized(ViT(32, 8, 5, dim=32, depth=3, heads=2, **kwargs))


def slim(*keeps: float, **kwargs) -> ViT:
    net = ViT(32, 8, 5, dim=32, depth=3, heads=2, **kwargs)
    for layer, keep in enumerate(keeps):
        net = attach(net, LearnedDrop(32, keep), [layer])
    return randomized(net, std=0.3)


class Best(nn.Module):
    """In place of the draws: noise alike for all, such that the `count` best of those still there are drawn."""

    def __init__(self, reducer: LearnedDrop, count: int) -> None:
        super().__init__()
        self.count = count
        reducer.predictor.register_forward_hook(self.look)
        reducer.draws = self

    def look(self, module, inputs, logits) -> None:
        sizes = inputs[1]
        self.logits = logits.detach() if sizes is None else logits.detach().masked_fill(sizes == 0, -torch.inf)

    def forward(self, shape: torch.Size) -> torch.Tensor:
        falling = self.logits.sort(dim=1, descending=True).values
        between = (falling[:, self.count - 1] + falling[:, self.count]) / 2
        return (-between).sigmoid()[:, None].expand(shape)


@pytest.mark.parametrize("kwargs", MODELS, ids=str)
def test_at_full_budget_nothing_changes(kwargs):
    plain = model(**kwargs)
    full = randomized(LearnedDrop(32, 1.0))
    for layers in (range(3), "entry"):
        checks.equal(attach(plain, full, layers)(IMAGES), plain(IMAGES), 0.0)


def test_in_use_the_best_are_kept_in_order_and_ties_go_to_the_earlier():
    net = slim(0.7, 0.7, registers=1)
    reducers = [block.reducer for block in net.blocks[:2]]
    logits = []
    for reducer in reducers:
        reducer.predictor.register_forward_hook(lambda module, inputs, out: logits.append(out))
    steps = net.observe(IMAGES).steps
    assert [step.x.shape[1] for step in steps] == [2 + 11, 2 + 8, 2 + 8]
    for step, found, many in zip(steps, logits, (11, 8), strict=False):
        kept = step.map.argmax(dim=-1)
        assert kept[:, :2].tolist() == 3 * [[0, 1]]
        assert kept[:, 2:].equal(found.topk(many).indices.sort().values + 2) and step.sizes is None
    nn.init.zeros_(reducers[0].predictor.judge[-1].weight)
    assert net.observe(IMAGES).steps[0].map.argmax(dim=-1).tolist() == 3 * [list(range(13))]


@pytest.mark.parametrize("impl", ["plain", "fast"])
@pytest.mark.parametrize("kwargs", MODELS, ids=str)
def test_masked_in_training_is_gone_in_use(kwargs, impl):
    """The same network, the same choice: also what the second predictor thinks of who is left is the same."""
    net = slim(0.7, 0.7, **kwargs).set_impl(impl)
    used = net.observe(IMAGES)
    first, second = (Best(net.blocks[layer].reducer, many) for layer, many in enumerate((11, 8)))
    gathered = net(IMAGES), second.logits
    seen = net.train().observe(IMAGES)
    assert [step.x.shape[1] for step in seen.steps] == 3 * [16 + net.prefix]
    checks.equal(seen.logits, gathered[0], 1e-10)
    there = seen.steps[1].sizes > 0
    assert there.sum(dim=1).tolist() == 3 * [8 + net.prefix]
    checks.equal(seen.steps[2].x[there], used.steps[2].x.flatten(0, 1), 1e-10, "the tokens still there and the kept")
    left = seen.steps[0].sizes[:, net.prefix :] > 0
    checks.equal(second.logits[left], gathered[1].flatten(), 1e-10, "what the second predictor says")
    assert (seen.logits - model(**kwargs)(IMAGES)).abs().max() > 1e-3
    checks.equal(first.logits.shape, (3, 16))


def test_it_is_the_same_in_single_precision_and_in_front_of_the_first_block():
    plain = model().float()
    for layers in ([0], "entry"):
        reducer = randomized(LearnedDrop(32, 0.5), std=0.3).float()
        net = attach(plain, reducer, layers)
        Best(reducer, 8)
        used = net.eval()(IMAGES.float())
        masked = net.train()(IMAGES.float())
        checks.equal(masked, used, 1e-5)
        assert (used - plain.eval()(IMAGES.float())).abs().max() > 1e-2


def test_who_was_dropped_stays_dropped_and_somebody_always_stays():
    net = slim(0.5, 0.5, 0.5, pool="avg").train()
    for _ in range(5):
        steps = net.observe(IMAGES).steps
        for before, after in pairwise(steps):
            assert (after.sizes <= before.sizes).all()
            assert ((after.sizes == 0) | (after.sizes == 1)).all()
    for block in net.blocks:
        block.reducer.predictor.judge[-1].bias.data.fill_(-1e3)
    last = net.observe(IMAGES)
    assert last.steps[-1].sizes.sum(dim=1).tolist() == [1.0] * 3 and last.logits.isfinite().all()
    kept = torch.tensor([[True, False, True], [False, False, False]])
    assert at_least_one(kept, torch.tensor([[0.0, 9, 0], [1, 3, 2]])).tolist() == [[1, 0, 1], [0, 1, 0]]


def test_a_patch_is_drawn_as_likely_as_gumbel_softmax_draws_it():
    torch.manual_seed(0)
    drop, logits = LearnedDrop(32, 0.5), torch.tensor([-2.0, -0.5, 0.0, 1.0, 3.0]).expand(20000, -1)
    often = drop.draw(logits, None, 0).mean(dim=0)
    checks.equal(often, logits[0].sigmoid(), 0.015)  # four standard deviations
    choices = torch.stack([logits, torch.zeros_like(logits)], dim=-1)
    checks.equal(often, F.gumbel_softmax(choices, hard=True)[..., 0].mean(dim=0), 0.02)


def test_the_gradient_of_a_decision_is_that_of_the_sigmoid_that_was_cut():
    torch.manual_seed(0)
    drop, twin = LearnedDrop(32, 0.5), Draws()
    twin.load_state_dict(drop.draws.state_dict())
    logits = normal(4, 9).requires_grad_()
    there = drop.draw(logits, None, 0)
    assert ((there == 0) | (there == 1)).all() and 0.2 < there.mean() < 0.8
    gumbel = twin(logits.shape).logit()
    soft = torch.stack([logits + gumbel, torch.zeros_like(logits)], dim=-1).softmax(dim=-1)[..., 0]
    weights = normal(4, 9)
    ours, theirs = (torch.autograd.grad((drawn * weights).sum(), logits)[0] for drawn in (there, soft))
    checks.equal(ours, theirs, 1e-12)


def test_gradients_reach_every_predictor_through_attention_alone():
    """No ratio loss, no head that reads the mean: only what the class token sees tells the predictors apart."""
    for kwargs in ({}, {"pool": "avg"}):
        checks.gradients_flow(slim(0.5, 0.5, **kwargs).train(), IMAGES)
    plain = slim(0.5, 0.5).train().set_impl("plain")
    fast = copy.deepcopy(plain).set_impl("fast")
    for net in (plain, fast):
        net(IMAGES).square().sum().backward()
    for ours, theirs in zip(plain.parameters(), fast.parameters(), strict=True):
        checks.equal(ours.grad, theirs.grad, 1e-8)


def test_the_common_half_is_the_mean_over_those_still_there():
    predictor = randomized(Predictor(8), std=0.7)
    x, sizes = normal(2, 6, 8), torch.tensor([[1.0, 0, 2, 1, 0, 1], [1, 1, 1, 1, 1, 0]]).double()
    there = sizes[0] > 0
    twice = torch.cat([x[:1, there], x[:1, 2:3]], dim=1)  # the third counts for two
    checks.equal(predictor(x, sizes)[0, there], predictor(twice, None)[0, :4], 1e-12)
    checks.equal(predictor(x[1:, :5], None)[0], predictor(x, sizes)[1, :5], 1e-12)
    changed = x.clone()
    changed[0, 1] *= -1.0
    checks.equal(predictor(changed, sizes)[0, there], predictor(x, sizes)[0, there], 1e-12)
    changed[0, 0] *= -1.0
    assert (predictor(changed, sizes)[0, 2:4] - predictor(x, sizes)[0, 2:4]).abs().min() > 1e-4


def test_the_ratio_loss_is_the_square_of_what_is_too_much():
    net = slim(0.75, 0.5).train()
    Best(net.blocks[0].reducer, 10), Best(net.blocks[1].reducer, 8)
    expected = ((10 / 16 - 0.75) ** 2 + (8 / 16 - 0.375) ** 2) / 2
    checks.equal(ratio_loss(net, net.observe(IMAGES)), torch.tensor(expected), 1e-12)
    entry = attach(model(), randomized(LearnedDrop(32, 0.25)), "entry").train()
    Best(entry.entry, 8)
    checks.equal(ratio_loss(entry, entry.observe(IMAGES)), torch.tensor(1 / 16), 1e-12)
    Best(entry.entry, 4)
    checks.equal(ratio_loss(entry, entry.observe(IMAGES)), torch.tensor(0.0), 1e-12)


def test_the_ratio_loss_raises_every_logit_where_too_few_are_kept():
    net = slim(0.9).train()
    Best(net.blocks[0].reducer, 4)
    bias = net.blocks[0].reducer.predictor.judge[-1].bias
    ratio_loss(net, net.observe(IMAGES)).backward()
    assert bias.grad.item() < -1e-3


def test_the_loss_is_made_of_its_parts():
    net, teacher = slim(0.5).train(), model()
    torch.manual_seed(0)

    def parts() -> tuple[torch.Tensor, torch.Tensor]:
        net.blocks[0].reducer.draws.seed.fill_(7)
        seen = net.observe(IMAGES)
        return seen.logits.float(), ratio_loss(net, seen)

    def value(*args) -> torch.Tensor:
        net.blocks[0].reducer.draws.seed.fill_(7)
        loss, logits = dropping_loss(*args)(net, BATCH)
        checks.equal(logits, parts()[0])
        return loss

    logits, ratio = parts()
    checks.equal(value(), F.cross_entropy(logits, BATCH.labels) + 2 * ratio, 1e-6)
    soft = deit_loss(logits, logits, BATCH.labels, teacher(IMAGES).float(), "soft", 0.3, 1.0)
    checks.equal(value(teacher, 0.3, 5.0), soft + 5 * ratio, 1e-6)
    value(teacher.train(), 0.3).backward()
    assert teacher.training and all(p.grad is None for p in teacher.parameters())
    assert net.blocks[0].reducer.predictor.read[1].weight.grad.any()


def test_what_it_costs():
    """n (1 + 1/2 + 1/8) d² + n d / 4 for the predictor, and less for every token that it drops."""
    net = slim(0.7, 0.5)
    n, expected = 17, 16 * 32 * 3 * 64 + 32 * 5
    for left in (12, 7, None):
        rows = 1 if left is None else None
        parts = block_macs(n, 32, rows=rows)
        expected += sum(parts.values()) - parts["mlp"]
        expected += block_macs(left or n, 32, rows=rows)["mlp"]
        if left is not None:
            expected += (n - 1) * (32 * 32 + 32 * 16 + 16 * 8 + 8)
            n = left
    assert count(net).macs == expected


def test_deit_small_at_keep_70_percent_costs_two_thirds():
    with torch.device("meta"):
        net = ViT(224, 16, 1000, 384, 12, 6)
        for layer in (3, 6, 9):
            net = attach(net, LearnedDrop(384, 0.7), [layer])
    net.last = "full"
    cost = count(net)
    assert round(cost.macs / 1e9, 2) == 3.08 and round(cost.macs / 4.599e9, 2) == 0.67
    assert 0.03 < cost.parts["other"]["macs"] / cost.macs < 0.04  # the three predictors


def test_each_module_draws_its_own_and_the_seed_in_front_of_the_model_says_all():
    def draws() -> list[torch.Tensor]:
        torch.manual_seed(3)
        first, second = LearnedDrop(32, 0.5).draws, LearnedDrop(32, 0.5).draws
        return [draw(torch.Size((2, 50))) for draw in (first, second, first)]

    once, again = draws(), draws()
    checks.equal(once, again)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert torch.corrcoef(torch.stack([once[i].flatten(), once[j].flatten()]))[0, 1].abs() < 0.3


def hidden(count: int, seed: int) -> tuple[ImageSet, torch.Tensor]:
    """Noise, and one patch of sixteen is brighter in one channel: that is the class; and which patch it is."""
    draw = torch.Generator().manual_seed(seed)
    labels, place = (torch.randint(high, (count,), generator=draw) for high in (3, 16))
    images = 0.3 * torch.randn(count, 3, 4, 8, 4, 8, generator=draw)
    images[torch.arange(count), labels, place // 4, :, place % 4] += 1.0
    return ImageSet(images.reshape(count, 3, 32, 32), labels), place


def trained(seed: int = 0) -> ViT:
    torch.manual_seed(seed)
    net = ViT(32, 8, 3, dim=32, depth=2, heads=2)
    train(net, epochs(hidden(1024, 0)[0], 64), Recipe(steps=60, lr=3e-3), loss=classify())
    return net


def test_it_learns_to_keep_the_patch_that_tells():
    teacher, (images, place) = trained(), hidden(256, 1)
    net = attach(copy.deepcopy(teacher), LearnedDrop(32, 0.25), [0])
    train(net, epochs(hidden(1024, 0)[0], 64, seed=1), Recipe(steps=50, lr=3e-3), loss=dropping_loss(teacher))
    with torch.no_grad():
        seen = net.observe(images.images)
    kept = seen.steps[0].map.sum(dim=1)[:, 1:]
    assert kept.sum(dim=1).eq(4).all()
    assert kept.gather(1, place[:, None]).mean() > 0.8  # by chance 0.25
    assert (seen.logits.argmax(dim=-1) == images.labels).float().mean() > 0.9  # by chance 0.33


def test_a_killed_run_draws_on_as_if_nothing_had_happened(tmp_path):
    data, recipe = hidden(64, 0)[0], Recipe(steps=6, precision="bfloat16")

    def run(folder, stop=None):
        def watch(rows):
            if rows[-1]["step"] == stop:
                raise KeyboardInterrupt

        torch.manual_seed(0)
        net = attach(ViT(32, 8, 3, dim=32, depth=2, heads=2), LearnedDrop(32, 0.5), [0])
        train(net, epochs(data, 8), recipe, loss=dropping_loss(), folder=folder, every=2, watch=watch)
        return net.state_dict()

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", stop=4)
    torch.rand(5)  # what else was drawn does not matter
    resumed = run(tmp_path / "killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_an_image_alone_and_in_company_and_in_other_precisions():
    net = slim(0.5, 0.5)
    checks.batch_independent(net, IMAGES, 1e-10)
    checks.follows_dtype_and_device(net, IMAGES)
    checks.follows_dtype_and_device(net.train(), IMAGES)


def test_it_goes_on_from_merged_tokens_and_leaves_empty_places_out():
    merged = attach(model(), Merge(4), [0])
    net = attach(merged, randomized(LearnedDrop(32, 0.5), std=0.3), [1])
    sizes = net.observe(IMAGES).steps[1].sizes
    assert sizes.shape == (3, 7) and sizes[:, 1:].max() > 1
    assert net.train()(IMAGES).isfinite().all()
    scores = (torch.arange(16) < torch.tensor([[4], [10], [16]])).double()
    some = attach(model(), KeepShare(1.0, known(scores)), [0])
    for keep, left in ((1.0, [4, 10, 16]), (0.5, [4, 8, 8])):
        net = attach(some, randomized(LearnedDrop(32, keep), std=0.3), [1])
        assert net.observe(IMAGES).steps[1].sizes[:, 1:].sum(dim=1).tolist() == left


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: LearnedDrop(32, 0), "keep=0 is not a share; expected a number above 0"),
        (lambda: LearnedDrop(30, 0.5), "Width 30 does not divide into quarters"),
        (lambda: attach(model(), LearnedDrop(64, 0.5).double(), [0])(IMAGES), "of width 64, and these have 32"),
        (lambda: dropping_loss()(slim(0.5), BATCH), r"call model.train\(\) first"),
        (lambda: dropping_loss()(model().train(), BATCH), "has no LearnedDrop to train"),
        (lambda: dropping_loss()(slim(0.5).train(), ImageSet(IMAGES)), "needs labels"),
    ],
)
def test_bad_input(call, sentence):
    with pytest.raises(LabkitError, match=sentence):
        call()


def test_a_teacher_that_would_learn_along_is_refused():
    plain = model()
    net = attach(plain, LearnedDrop(32, 0.5).double(), [0]).train()
    with pytest.raises(LabkitError, match=r"shares weights with the student .* pass copy.deepcopy"):
        dropping_loss(plain)(net, BATCH)
