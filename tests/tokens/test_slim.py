"""Slimming: shares that sum to one, a selection and a permutation as limits, its price, and a teacher that stays."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from labkit.cost import block_macs, count
from labkit.data.batch import ImageSet
from labkit.errors import LabkitError
from labkit.evidence import Groups
from labkit.tokens import Merge, attach
from labkit.tokens.slim import Recalibrated, ReverseTSM, TokenSlimming, recalibrate, recalibration_loss
from labkit.train import Recipe, train
from labkit.vit import ViT
from tests import checks
from tests.weights import normal, randomized

IMAGES = normal(3, 3, 32, 32)
BATCH = ImageSet(IMAGES.float(), torch.tensor([0, 3, 4]), names=tuple("abcde"))


def model(**kwargs) -> ViT:
    return randomized(ViT(32, 8, 5, dim=32, depth=3, heads=2, **kwargs), std=0.1)


def slimming(m: int, std: float = 0.5) -> TokenSlimming:
    return randomized(TokenSlimming(32, m), std)


def taught(x: Tensor, logits: Tensor) -> TokenSlimming:
    """A slimming whose last layer was solved for, so that it says these logits (n, m) of these tokens (1, n, d)."""
    slim = slimming(logits.shape[1])
    features = slim.says[:-1](x[0]).detach()
    with torch.no_grad():
        slim.says[-1].weight.copy_(torch.linalg.lstsq(features, logits).solution.T)
        slim.says[-1].bias.zero_()
        slim.scale.fill_(1.0)
    return slim


@pytest.mark.paper("S354")
def test_rows_sum_to_one_so_outputs_are_inside_the_hull_and_constants_are_fixed():
    x = normal(2, 16, 32)
    out, shares = slimming(5)(x)
    checks.rows_sum_to_one(shares, 1e-12)
    checks.equal(out, shares @ x, 1e-12)
    directions = normal(50, 32).T  # no direction in which a new token is further out than every old one
    assert ((out @ directions).amax(1) <= (x @ directions).amax(1) + 1e-12).all()
    assert ((out @ directions).amin(1) >= (x @ directions).amin(1) - 1e-12).all()
    assert out.std(dim=1).min() > 1e-3  # and they are not all the one mean
    same = normal(2, 1, 32)
    checks.equal(slimming(5)(same.expand(-1, 16, -1))[0], same.expand(-1, 5, -1), 1e-12)


@pytest.mark.paper("S354")
def test_the_order_of_the_patches_changes_nothing():
    """The check says "equivariant"; what it describes, outputs that stay as they are, is invariance."""
    checks.permutation_invariant(lambda x: slimming(5)(x)[0], normal(2, 16, 32), 1e-12)
    slim = attach(model(registers=1), slimming(7), [1])
    x, grid = slim.embed(IMAGES)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    shuffled = torch.cat([x[:, :2], x[:, 2:][:, order]], dim=1)
    first, second = ([step.x for step in slim.steps(tokens, grid)][-1] for tokens in (x, shuffled))
    checks.equal(first, second, 1e-11)
    assert (slim(IMAGES) - model(registers=1)(IMAGES)).abs().max() > 1e-3


@pytest.mark.paper("S354")
@pytest.mark.parametrize("kwargs", [{}, {"registers": 2}, {"pool": "avg"}, {"layer_scale": 0.5}], ids=str)
def test_as_many_tokens_as_before_and_saturated_shares_are_a_permutation_and_the_plain_model(kwargs):
    """Full budget alone is not the identity: m = N tokens are still means, and only one-hot shares give all back."""
    plain, image = model(**kwargs), IMAGES[:1]
    x = plain.blocks[0].mix(plain.embed(image)[0], plain.grid, None, plain.prefix)[0] + plain.embed(image)[0]
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    reducer = taught(x[:, plain.prefix :], 1e3 * torch.eye(16).double()[order])
    out, shares = reducer(x[:, plain.prefix :])
    checks.equal(shares[0], torch.eye(16)[order].T, 0.0)
    checks.equal(out[:, order], x[:, plain.prefix :], 0.0)
    checks.equal(attach(plain, reducer, [0])(image), plain(image), 1e-12)
    assert (attach(plain, slimming(16), [0])(image) - plain(image)).abs().max() > 1e-3


@pytest.mark.paper("S354")
def test_hard_shares_select_tokens():
    x, kept = normal(1, 16, 32), torch.tensor([3, 8, 0, 15, 7])
    logits = torch.zeros(16, 5).double().scatter(0, kept[None], 1e3)
    out, shares = taught(x, logits)(x)
    checks.equal(out, x[:, kept], 0.0)
    checks.equal(shares, Groups.choice(kept[None], 16).matrix(), 0.0)
    soft, sharp = taught(x, logits / 500), taught(x, logits / 500)  # the scale alone goes from soft to hard
    sharp.scale.data.mul_(500)
    assert soft(x)[1].max() < 0.5
    checks.equal(sharp(x)[0], x[:, kept], 1e-12)


@pytest.mark.paper("S354")
def test_it_is_the_papers_formula_one_token_at_a_time():
    x, slim = normal(1, 6, 32), slimming(3)
    norm, first, gelu, second = slim.says
    says = [slim.scale * second(gelu(first(norm(token)))) for token in x[0]]
    for j in range(3):
        amounts = [math.exp(logits[j].item()) for logits in says]
        mean = sum(a * token for a, token in zip(amounts, x[0], strict=True)) / sum(amounts)
        checks.equal(slim(x)[0][0, j], mean, 1e-12)


@pytest.mark.paper("S354")
def test_attention_downstream_costs_the_square_of_the_share():
    """Exactly (m/N)² without a class token; p tokens before the patches make it ((p + m) / (p + N))²."""

    def attention(vit: ViT, layer: int) -> int:
        seen = count(vit).operations
        return sum(step.macs for step in seen if step.part == "attention" and step.name.startswith(f"blocks.{layer}."))

    for kwargs, before, after in (({"pool": "avg"}, 16, 4), ({"pool": "avg", "registers": 2}, 18, 6)):
        plain = model(**kwargs)
        slim = attach(plain, slimming(4), [0])
        assert attention(slim, 0) == attention(plain, 0) > 0
        assert attention(slim, 2) * before**2 == attention(plain, 2) * after**2


@pytest.mark.paper("S354")
def test_deit_small_costs_what_the_law_says():
    """The modules' own price, n d (d/2) + n (d/2) m + m n d each, is in it."""
    with torch.device("meta"):
        plain = ViT(224, 16, 1000, 384, 12, 6)
        slim, stages = plain, {3: 98, 6: 49, 9: 24}
        for layer, m in stages.items():
            slim = attach(slim, TokenSlimming(384, m), [layer])
    slim.last = "full"
    expected, n = 196 * 384 * 3 * 16**2 + 384 * 1000, 196
    for layer in range(12):
        parts = block_macs(1 + n, 384)
        if layer in stages:
            m = stages[layer]
            expected += n * 384 * 192 + n * 192 * m + m * n * 384
            n = m
        expected += parts["qkv"] + parts["attention"] + parts["proj"] + block_macs(1 + n, 384)["mlp"]
    assert count(slim).macs == expected
    assert 0.45 < expected / 4.6e9 < 0.55


def test_prefix_tokens_stay_and_no_patch_is_lost():
    slim = attach(model(registers=2), slimming(6), [1])
    slim.blocks[0].reducer = Merge(4)
    first, second, last = slim.observe(IMAGES).steps
    checks.rows_sum_to_one(second.map, 1e-12)
    checks.equal(second.map[:, :3], torch.eye(3, 15).expand(3, -1, -1))
    assert not second.map[:, 3:, :3].any() and second.x.shape[1] == 3 + 6
    checks.equal(second.sizes[:, :3], torch.ones(3, 3))
    checks.equal(last.sizes.sum(1), torch.full((3,), 19.0), 1e-12)
    before = slim.blocks[1].mix(first.x, slim.grid, first.sizes, 3)[0] + first.x
    out, how = slim.blocks[1].reducer.reduce(before, second.evidence, first.sizes, 3)
    checks.equal(out, how @ before, 1e-12)
    checks.equal(out[:, :3], before[:, :3], 0.0)


def test_a_merged_token_has_the_shares_of_all_its_patches_and_an_empty_place_none():
    x, sizes = normal(2, 6, 32), torch.tensor([1.0, 3, 1, 2, 1, 1]).double()
    spread = x.repeat_interleave(sizes.long(), dim=1)
    checks.equal(slimming(4)(x, sizes.expand(2, -1))[0], slimming(4)(spread)[0], 1e-12)
    there = torch.tensor([1.0, 0, 1, 1, 0, 1]).double().expand(2, -1).clone().requires_grad_()
    out = slimming(4)(x, there)[0]
    checks.equal(out, slimming(4)(x[:, there[0] > 0])[0], 1e-10)
    out.square().sum().backward()
    assert there.grad.isfinite().all() and (there.grad[:, [1, 4]] != 0).all()  # the dropped may come back


@pytest.mark.paper("S354")
def test_the_teacher_is_detached():
    turned, teacher = normal(2, 4, 8).requires_grad_(), (2 * normal(2, 4, 8)).requires_grad_()
    loss = recalibration_loss(turned, teacher)
    loss.backward()
    checks.equal(loss, normal(2, 4, 8).square().mean(), 1e-12)
    checks.equal(turned.grad, -normal(2, 4, 8) / 32, 1e-12)
    assert teacher.grad is None
    plain = model().float()
    student = Recalibrated(attach(copy.deepcopy(plain), slimming(4).float(), [1]))
    value, logits = recalibrate(plain)(student, BATCH)
    value.backward()
    assert all(p.grad is None for p in plain.parameters())
    checks.equal(logits, student(BATCH.images), 1e-5)
    for name, p in student.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), name


@pytest.mark.paper("S354")
def test_the_loss_is_of_labels_tokens_and_logits_and_the_teacher_stays_as_it_was():
    plain = model().float()
    student = Recalibrated(attach(plain, slimming(4).float(), [1]))
    loss = recalibrate(plain, tokens=3.0, logits=0.5)
    ours, theirs = student.model.observe(BATCH.images), plain.observe(BATCH.images)
    apart = [torch.zeros(())] + [
        (student.reverse[i](ours.steps[i].x[:, 1:]) - theirs.steps[i].x[:, 1:]).square().mean() for i in (1, 2)
    ]
    p, q = theirs.logits.softmax(-1), ours.logits.softmax(-1)
    parts = (
        -q.log()[torch.arange(3), BATCH.labels].mean(),
        3.0 * sum(apart) / 3,
        0.5 * (p * (p / q).log()).sum(-1).mean(),
    )
    checks.equal(loss(student, BATCH)[0], sum(parts), 1e-5)
    assert isinstance(student.reverse[0], torch.nn.Identity) and min(parts[1:]) > 1e-3
    plain.head.weight.data.zero_()  # the student shares this weight; the teacher has its own
    value = recalibrate(plain, 3.0, 0.5)(student, BATCH)[0]
    assert (loss(student, BATCH)[0] - value).abs() > 1e-3


@pytest.mark.paper("S354")
def test_turning_back_can_be_learned():
    """Tokens of three kinds, of one of which m = 3 blends are made: from these the places of all 12 come back."""
    torch.manual_seed(0)
    kinds, where = torch.randn(64, 3, 8), torch.arange(12) % 3
    reverse = ReverseTSM(8, 3, 12)
    optimizer = torch.optim.Adam(reverse.parameters(), lr=3e-3)
    teacher = torch.nn.functional.layer_norm(kinds, (8,))[:, where]
    for _ in range(150):
        loss = recalibration_loss(reverse(kinds), teacher)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1 * recalibration_loss(teacher.mean(dim=(0, 1)).expand(64, 12, 8), teacher)


def test_the_one_training_loop_trains_it_and_the_model_ships_alone():
    torch.manual_seed(0)
    plain = ViT(32, 8, 5, dim=32, depth=3, heads=2)
    student = Recalibrated(attach(attach(plain, TokenSlimming(32, 8), "entry"), TokenSlimming(32, 3), [1]))
    assert [tuple(r.spread[0].weight.shape) for r in student.reverse] == [(64, 8), (64, 3), (64, 3)]
    loss = recalibrate(plain, logits=0.0)  # what this teacher says of the labels is chance
    before = loss(student, BATCH)[0].item()
    log = train(student, lambda step, done: BATCH, Recipe(steps=30, lr=3e-3), loss=loss, every=10)
    assert log.rows[-1]["loss"] < 0.4 * before and log.rows[-1]["accuracy"] > 0.9
    checks.equal(student(BATCH.images), student.model(BATCH.images))
    assert [step.x.shape[1] for step in student.model.observe(BATCH.images).steps] == [9, 4, 4]


def test_gradients_precisions_and_company():
    slim = attach(model(pool="avg"), slimming(4), [0])
    checks.gradients_flow(slim.train(), IMAGES)
    checks.batch_independent(slim, IMAGES, 1e-10)
    checks.equal(slim(IMAGES.flip(0)), slim(IMAGES).flip(0), 1e-10)
    checks.equal(slim.train()(IMAGES), slim.eval()(IMAGES), 1e-12)
    checks.follows_dtype_and_device(slim, IMAGES)
    checks.deterministic(slim, IMAGES)


def test_bad_input_is_a_sentence():
    with pytest.raises(LabkitError, match="m=0 leaves no token"):
        TokenSlimming(32, 0)
    with pytest.raises(LabkitError, match="m=17 tokens cannot be made of 16 patch tokens; choose m <= 16"):
        attach(model(), slimming(17), [0])(IMAGES)
    with pytest.raises(LabkitError, match="turns 4 tokens back; 5 arrived"):
        ReverseTSM(8, 4, 16)(normal(2, 5, 8).float())
    with pytest.raises(LabkitError, match=r"shape \(2, 4, 8\), the teacher's \(2, 5, 8\)"):
        recalibration_loss(normal(2, 4, 8), normal(2, 5, 8))
    with pytest.raises(LabkitError, match="No block of this model slims"):
        Recalibrated(model())
    student = Recalibrated(attach(model().float(), slimming(4).float(), [1]))
    with pytest.raises(LabkitError, match="The teacher has 2 blocks and the student 3"):
        recalibrate(ViT(32, 8, 5, dim=32, depth=2, heads=2))(student, BATCH)
