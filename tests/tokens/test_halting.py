"""Halting: probabilities add up to one, who halted is gone, and training sees what use computes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

import labkit
from labkit.cost import block_macs, count
from labkit.data.batch import ImageSet
from labkit.distill import DistilledViT
from labkit.errors import LabkitError
from labkit.tokens import Keep, Shrink, attach
from labkit.tokens.halting import HaltingViT, depths, halting_loss, ponder_loss, prior_loss, probabilities
from labkit.train import Recipe, train
from labkit.vit import ViT
from tests import checks
from tests.weights import normal, randomized

IMAGES = normal(3, 3, 32, 32)
BATCH = ImageSet(IMAGES, torch.tensor([0, 3, 1]))


def model(**kwargs) -> ViT:
    return randomized(ViT(32, 8, 5, dim=32, depth=5, heads=2, **kwargs))


def halting(**kwargs) -> HaltingViT:
    """Tokens halt in every one of the five blocks; the class tokens in blocks 5, 3 and 5."""
    return HaltingViT(model(**kwargs), scale=0.5, shift=-2.0)


@pytest.mark.parametrize("kwargs", [{}, {"registers": 2}, {"layer_scale": 0.5}], ids=str)
def test_who_never_halts_is_the_plain_model(kwargs):
    plain = model(**kwargs)
    slim = HaltingViT(plain, shift=-math.inf)
    checks.exact_limit(slim, plain, IMAGES, tol=0.0)
    checks.exact_limit(copy.deepcopy(slim).train(), plain, IMAGES, tol=1e-12)
    assert all(step.sizes is None for step in slim.observe(IMAGES).steps)


def test_where_tokens_could_halt_and_do_not_the_answer_is_a_mean_and_not_the_plain_one():
    """Every h is sigmoid(-3): after four blocks 0.19 is spent, nobody has left, and 0.81 is the last state's."""
    plain, h = model(), 1 / (1 + math.exp(3))
    slim = HaltingViT(plain, scale=0.0, shift=-3.0)
    seen, whole = slim.observe(IMAGES), plain.observe(IMAGES)
    assert (depths(seen) == 5).all()
    for ours, theirs in zip(seen.steps[:-1], whole.steps[:-1], strict=True):
        checks.equal(ours.x, theirs.x, 1e-12)
    states = torch.stack([step.x[:, 0] for step in whole.steps])
    weights = torch.tensor([h, h, h, h, 1 - 4 * h], dtype=torch.float64)
    mean = torch.einsum("l,lbd->bd", weights, states)
    checks.equal(seen.steps[-1].x[:, 0], mean, 1e-12)
    checks.equal(seen.steps[-1].x[:, 1:], whole.steps[-1].x[:, 1:], 1e-12)
    checks.equal(slim(IMAGES), plain.read(mean[:, None]), 1e-12)
    assert (slim(IMAGES) - plain(IMAGES)).abs().max() > 1e-2


def by_hand(slim: HaltingViT, image: torch.Tensor) -> tuple[torch.Tensor, list[int], list[list[float]]]:
    """One image, block by block, with Python's numbers: the logits, where each token halts, its probabilities."""
    plain = model()
    x, grid = plain.embed(image[None])
    shares, last = [[] for _ in range(17)], [0] * 17
    alive, mean = list(range(17)), torch.zeros(1, 1, 32).double()
    for number, block in enumerate(plain.blocks, start=1):
        x = block(x, grid).x
        halting = {}
        for place, token in enumerate(alive):
            h = 1 / (1 + math.exp(-(slim.scale * x[0, place, 0].item() + slim.shift)))
            halting[token] = number == 5 or sum(shares[token]) + h >= 1 - slim.eps
            shares[token].append(h)
        for token in alive:
            if last[token] == 0 and (halting[token] or halting[0]):
                shares[token][-1], last[token] = 1 - sum(shares[token][:-1]), number
        mean = mean + shares[0][-1] * x[:, :1]
        if last[0]:
            break
        x = x[:, [place for place, token in enumerate(alive) if last[token] == 0]]
        alive = [token for token in alive if last[token] == 0]
    return plain.read(mean)[0], last, [share + [0.0] * (5 - len(share)) for share in shares]


def test_it_is_what_the_definition_says():
    slim = halting()
    trained = copy.deepcopy(slim).train()
    logits, seen = slim(IMAGES), trained.observe(IMAGES)
    shares, last = probabilities(trained, seen)
    assert [last.unique().tolist(), last[:, 0].tolist()] == [[2, 3, 4, 5], [5, 3, 5]]
    for i, image in enumerate(IMAGES):
        expected, blocks, spent = by_hand(slim, image)
        checks.equal(logits[i], expected, 1e-10)
        assert last[i].tolist() == blocks
        checks.equal(shares[:, i].T, torch.tensor(spent, dtype=torch.float64), 1e-10)
    checks.equal(shares.sum(dim=0), torch.ones(3, 17), 1e-12)


@pytest.mark.parametrize("kwargs", [{}, {"registers": 2}, {"layer_scale": 0.5}], ids=str)
def test_training_with_masks_is_use_with_gathers(kwargs):
    slim = halting(**kwargs)
    used = slim.observe(IMAGES)
    trained = slim.train().observe(IMAGES)
    assert {step.x.shape[1] for step in trained.steps} == {16 + slim.prefix}
    assert used.steps[0].x.shape[1] > used.steps[2].x.shape[1]
    checks.equal(trained.logits, used.logits, 1e-12)
    checks.equal(slim(IMAGES), slim.eval()(IMAGES), 1e-12)
    checks.equal(depths(trained), depths(used))
    for masked, gathered in zip(trained.steps[:-1], used.steps[:-1], strict=True):
        for i in range(3):
            n = gathered.x.shape[1] if gathered.sizes is None else int(gathered.sizes[i].sum())
            checks.equal(masked.x[i][masked.sizes[i] == 1], gathered.x[i, :n], 1e-12)


def test_each_image_keeps_its_own_number_and_in_a_batch_nothing_changes():
    slim = halting()
    steps = slim.observe(IMAGES).steps
    assert any(step.sizes is not None and len(set(step.sizes.sum(dim=1).tolist())) == 3 for step in steps)
    checks.batch_independent(slim, IMAGES, 1e-12)
    order = torch.tensor([2, 0, 1])
    checks.equal(slim(IMAGES[order]), slim(IMAGES)[order], 1e-12)
    checks.deterministic(slim, IMAGES)


def test_where_the_class_token_halts_the_image_is_done():
    slim = halting()
    gone = depths(slim.observe(IMAGES))[1, 1:]
    assert gone.max() == 3 and depths(slim.observe(IMAGES))[0, 1:].max() == 5
    steps = slim.observe(IMAGES[1:2]).steps
    assert [step.x.shape[1] for step in steps[2:]] == [1, 1, 1] and steps[1].x.shape[1] > 1


def test_it_costs_what_flows():
    slim = halting()
    seen, d = slim.observe(torch.zeros(1, 3, 32, 32).double()), 32
    counts = [17, *(step.x.shape[1] for step in seen.steps[:-1])]
    assert counts[-1] < counts[2] < 17
    blocks = sum(sum(block_macs(n, d).values()) for n in counts[:-1])
    law = 16 * d * 3 * 64 + 5 * d + blocks + sum(block_macs(counts[-1], d, rows=1).values())
    assert count(slim, 32).macs == law < count(model(), 32).macs
    assert sum(p.numel() for p in slim.parameters()) == sum(p.numel() for p in model().parameters())


def test_a_token_that_reaches_the_bound_exactly_halts():
    """In the authors' code it would neither halt nor go on, and what was left of it would be lost."""
    states = [step.x[:, :1] for step in model().observe(IMAGES).steps]
    for eps, number, mean in ((0.5, 1, states[0]), (0.0, 2, (states[0] + states[1]) / 2)):
        slim = HaltingViT(model(), scale=0.0, shift=0.0, eps=eps)  # h = ½
        checks.equal(slim(IMAGES), model().read(mean), 1e-12)
        shares, last = probabilities(slim.train(), slim.observe(IMAGES))
        assert (last == number).all() and (shares[:number] == 1 / number).all() and not shares[number:].any()


def test_ponder_loss_counts_blocks_and_what_was_left():
    shares = torch.tensor([[0.2, 1.0, 0.5], [0.3, 0.0, 0.5], [0.5, 0.0, 0.0]]).double()[:, None]
    assert ponder_loss(shares, torch.tensor([[3.0, 1.0, 2.0]])).item() == pytest.approx((3.5 + 2 + 2.5) / 3)
    slim = halting().train()
    shares, last = probabilities(slim, slim.observe(IMAGES))
    gradient = torch.autograd.grad(ponder_loss(shares, last), slim.blocks[0].mlp.fc2.bias)[0]
    assert gradient[0] < 0 and gradient.isfinite().all()  # a larger first channel halts sooner


def test_prior_loss_is_the_divergence_from_the_bell():
    shares = normal(6, 2, 7).softmax(dim=0)
    for depth in (2.0, 4.5):
        bell = torch.tensor([math.exp(-((i - depth) ** 2) / 2) for i in range(1, 7)], dtype=torch.float64)
        bell = bell / bell.sum()
        where = shares.mean(dim=(1, 2))
        checks.equal(prior_loss(shares, depth), (bell * (bell / where).log()).sum(), 1e-12)
        assert prior_loss(bell[:, None, None].expand(6, 2, 7), depth).abs() < 1e-12 < prior_loss(shares, depth)
    late = torch.zeros(6, 1, 1).double()
    late[-1] = 1
    assert prior_loss(late, 2.0).isfinite()


def test_the_loss_and_its_gradients():
    slim = halting().train()
    value, logits = halting_loss(depth=3, ponder=0.1, prior=0.2)(slim, BATCH)
    shares, last = probabilities(slim, slim.observe(IMAGES))
    spent = 0.1 * ponder_loss(shares, last) + 0.2 * prior_loss(shares, 3)
    checks.equal(value, F.cross_entropy(logits.double(), BATCH.labels) + spent, 1e-6)
    checks.gradients_flow(slim, IMAGES)


def test_training_brings_the_depth_down():
    torch.manual_seed(0)
    slim = HaltingViT(ViT(32, 8, 5, dim=32, depth=5, heads=2), scale=4.0, shift=-4.0)
    images = torch.rand(8, 3, 32, 32)
    batch = ImageSet(images, torch.arange(8) % 5)
    before = depths(slim.eval().observe(images))[:, 1:].mean()
    log = train(slim, lambda *_: batch, Recipe(steps=80, lr=3e-3), loss=halting_loss(2.0, 1e-2, 1.0), every=10)
    after = depths(slim.observe(images))[:, 1:].mean()
    assert before > 4.9 and after < 4
    assert log.rows[-1]["loss"] < log.rows[0]["loss"]


def test_the_trace_tells_where_each_patch_was_last_seen():
    slim = halting()
    traced = labkit.trace(slim, IMAGES)
    seen = torch.stack([traced.provenance[layer].sum(dim=1) for layer in range(5)])
    checks.equal(seen.sum(dim=0), depths(slim.observe(IMAGES))[:, 1:], 1e-6)


def test_it_goes_with_a_reducer_in_front_but_with_none_inside():
    plain = attach(model(), Shrink((4, 4), (2, 2)), "entry")
    slim = HaltingViT(plain, scale=0.5, shift=-2.0)
    used = slim.observe(IMAGES)
    assert used.steps[0].x.shape[1] <= 5
    checks.equal(slim.train()(IMAGES), used.logits, 1e-12)
    inside = attach(halting(), Keep(0.5), [2])
    with pytest.raises(LabkitError, match="reduces its tokens already"):
        inside(IMAGES)


def test_the_copy_shares_its_weights_and_leaves_the_model_alone():
    plain = model()
    before = plain(IMAGES)
    slim = HaltingViT(plain, scale=0.5, shift=-2.0)
    assert all(a is b for a, b in zip(plain.parameters(), slim.parameters(), strict=True))
    assert (slim(IMAGES) - before).abs().max() > 1e-2
    checks.equal(plain(IMAGES), before)
    checks.equal(copy.deepcopy(slim)(IMAGES), slim(IMAGES))


def test_precisions():
    slim = halting()
    checks.follows_dtype_and_device(slim, IMAGES)
    checks.follows_dtype_and_device(slim.train(), IMAGES)
    single = copy.deepcopy(slim).float()
    checks.equal(single(IMAGES.float()), single.eval()(IMAGES.float()), 1e-5)


def test_what_cannot_halt_is_refused():
    for wrong in (model(pool="avg"), DistilledViT(32, 8, 5, dim=32, depth=2, heads=2)):
        with pytest.raises(LabkitError, match=r'Halting needs a plain ViT .*pool="class"'):
            HaltingViT(wrong)
    with pytest.raises(LabkitError, match=r"eps=1\.5 is not a rest"):
        HaltingViT(model(), eps=1.5)
    with pytest.raises(LabkitError, match=r"call model\.train\(\) first"):
        halting_loss(3)(halting(), BATCH)
