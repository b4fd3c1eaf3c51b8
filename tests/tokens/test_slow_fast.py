"""Slow and fast patches: the representative moves the fast, all of them stay in place, and any may come back."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from labkit.cost import block_macs, count
from labkit.errors import LabkitError
from labkit.tokens import Keep, Merge, attach, class_attention
from labkit.tokens.slow_fast import RunningAttention, slow_fast
from labkit.tokens.squeeze import glance
from labkit.vit import ViT
from tests import checks
from tests.weights import normal, randomized

IMAGES = normal(3, 3, 32, 32)


def model(**kwargs) -> ViT:
    return randomized(ViT(32, 8, 5, dim=32, depth=3, heads=2, **kwargs))


@pytest.mark.parametrize("kwargs", [{}, {"registers": 2}, {"pool": "avg", "class_token": True}, {"layer_scale": 0.5}])
@pytest.mark.parametrize("momentum", [0, 0.5])
def test_when_all_are_slow_it_is_the_plain_model(kwargs, momentum):
    plain = model(**kwargs)
    checks.equal(slow_fast(plain, 1.0, range(3), momentum)(IMAGES), plain(IMAGES), 1e-12)
    assert (slow_fast(plain, 0.5, range(3), momentum)(IMAGES) - plain(IMAGES)).abs().max() > 1e-3
    checks.equal(slow_fast(plain, 0.5, [])(IMAGES), plain(IMAGES))


def test_a_block_by_the_definition():
    """One image, sentence by sentence: who is slow, the representative, one block, and its move for the rest."""
    plain = model(registers=1)
    block = plain.blocks[0]
    x, grid = plain.embed(IMAGES)
    step = slow_fast(plain, 0.4, [0]).blocks[0](x, grid, None, 2)
    for image, out in zip(x, step.x, strict=True):
        attention = block(image[None], grid, None, 2).evidence.attention()[0, :, 0, 2:].mean(dim=0)
        slow = (2 + attention.topk(math.ceil(0.4 * 16)).indices).sort().values.tolist()
        fast = [i for i in range(2, 18) if i not in slow]
        share = attention[[i - 2 for i in fast]]
        one = (share[:, None] * image[fast]).sum(dim=0) / share.sum()
        together = torch.stack([*image[[0, 1, *slow]], one])[None]
        counts = torch.ones(1, len(together[0]), dtype=torch.float64)
        counts[0, -1] = len(fast)
        new = block(together, grid, counts, 2).x[0]
        checks.equal(out[[0, 1, *slow]], new[:-1], 1e-12)
        checks.equal(out[fast], image[fast] + new[-1] - one, 1e-12)
        checks.equal((share[:, None] * out[fast]).sum(dim=0) / share.sum(), new[-1], 1e-12)


def test_every_patch_stays_in_place_and_the_fast_keep_what_tells_them_apart():
    slim = slow_fast(model(), 0.5, range(3))
    seen = slim.observe(IMAGES)
    before = seen.embedded
    for step in seen.steps:
        assert step.x.shape == (3, 17, 32) and step.how is None and step.sizes is None
        home = step.evidence.groups.home
        for i in range(3):
            moved = (step.x - before)[i, home[i] == 9]
            assert len(moved) == 8
            checks.equal(moved, moved[:1].expand(8, -1), 1e-12)
        before = step.x


def test_who_was_fast_may_be_slow_later():
    steps = slow_fast(model(), 0.5, range(3)).observe(IMAGES).steps
    fast = [step.evidence.groups.home == 9 for step in steps]
    assert (fast[0] & ~fast[1]).any() or (fast[1] & ~fast[2]).any()
    dropped = attach(model(), Keep(0.5), range(3)).observe(IMAGES).steps
    assert [step.x.shape[1] for step in dropped] == [9, 5, 3]  # there nobody returns


@pytest.mark.parametrize("momentum", [0, 0.25, 0.5])
def test_the_score_is_the_running_mean_of_the_class_tokens_attention(momentum):
    plain = model()
    slim = slow_fast(plain, 0.5, [2, 0], momentum)
    seen = slim.observe(IMAGES)
    first = class_attention(glance(plain.blocks[0], seen.embedded), 1)
    second = class_attention(glance(plain.blocks[2], seen.steps[1].x), 1)
    mean = momentum * first + (1 - momentum) * second
    for step, scores in ((seen.steps[0], first), (seen.steps[2], mean)):
        slow = step.evidence.groups.home[:, 1:] < 9
        assert slow.equal(torch.zeros(3, 16).scatter(1, scores.topk(8).indices, 1).bool())
    weight = seen.steps[2].evidence.groups.weight[:, 1:]
    fast = seen.steps[2].evidence.groups.home[:, 1:] == 9
    checks.equal(weight[fast].view(3, 8), (mean[fast].view(3, 8).T / (mean * fast).sum(dim=1)).T, 1e-12)


def test_a_pass_forgets_the_one_before_and_a_copy_remembers_for_itself():
    slim = slow_fast(model(), 0.5, range(3))
    once = slim(IMAGES)
    other = copy.deepcopy(slim)
    slim(IMAGES.flip(2)[:2])
    checks.equal(slim(IMAGES), once)
    checks.equal(other(IMAGES), once)
    assert slim.blocks[1].reducer.score.__self__ is slim.blocks[0].reducer.score.__self__
    assert other.blocks[1].reducer.score.__self__ is not slim.blocks[0].reducer.score.__self__
    assert not slim.blocks[0].reducer.score.__self__.last.requires_grad


@pytest.mark.parametrize("keep", [0.5, 0.3, 0.01])
def test_it_costs_blocks_of_the_slow_the_representative_and_a_glance(keep):
    plain = model(registers=1)
    plain.last = "full"
    slim = slow_fast(plain, keep, [1, 2])
    m = 2 + math.ceil(keep * 16) + 1
    small = sum(block_macs(m, 32).values()) + 2 * 2 * 32**2 + 2 * 18 * 32
    assert count(slim).macs == count(plain).macs + 2 * (small - sum(block_macs(18, 32).values()))


def test_deit_small_with_half_of_the_patches_from_the_fifth_block_on():
    """The paper's plan: 98 slow patches of 196 in eight of twelve blocks are two thirds of the cost."""
    with torch.device("meta"):
        plain = ViT(224, 16, 1000, 384, 12, 6)
    plain.last = "full"
    small = sum(block_macs(1 + 98 + 1, 384).values()) + 2 * 384**2 + 6 * 197 * 384
    expected = count(plain).macs + 8 * (small - sum(block_macs(197, 384).values()))
    assert count(slow_fast(plain, 0.5, range(4, 12))).macs == expected
    assert round(count(plain).macs / 1e9, 2) == 4.6 and round(expected / 1e9, 2) == 3.05


def test_gradients_batches_and_precisions():
    slim = slow_fast(model(), 0.5, range(3))
    checks.gradients_flow(slim, IMAGES)
    checks.batch_independent(slim, IMAGES, 1e-10)
    checks.deterministic(slim, IMAGES)
    checks.follows_dtype_and_device(slim, IMAGES)
    checks.equal(slim(IMAGES.flip(0)).flip(0), slim(IMAGES), 1e-12)
    checks.equal(slim.observe(IMAGES).logits, slim(IMAGES), 1e-12)


def test_of_equal_patches_the_earlier_are_slow():
    plain = model(positions=False)
    groups = slow_fast(plain, 0.5, [0]).observe(torch.zeros(2, 3, 32, 32).double()).steps[0].evidence.groups
    assert groups.home.tolist() == 2 * [[*range(9), *[9] * 8]]


def test_what_does_not_fit_is_refused():
    plain = model()
    with pytest.raises(LabkitError, match=r"keep=1\.5 is not a share"):
        slow_fast(plain, 1.5, [0])(IMAGES)
    with pytest.raises(LabkitError, match="momentum=1 is no weight of the past"):
        slow_fast(plain, 0.5, [0], momentum=1)
    with pytest.raises(LabkitError, match="There is no block 3"):
        slow_fast(plain, 0.5, [0, 3])
    with pytest.raises(LabkitError, match="there is none"):
        slow_fast(model(pool="avg"), 0.5, [0])(IMAGES)
    with pytest.raises(LabkitError, match="no earlier attention to these 3 x 16 patches"):
        RunningAttention(0.5).go_on(plain.observe(IMAGES).steps[0].evidence, 1)
    between = attach(plain, Merge(4), [1])
    slow = slow_fast(between, 0.5, [0, 2])
    with pytest.raises(LabkitError, match="no earlier attention to these 3 x 12 patches"):
        slow(IMAGES)
    assert slow_fast(between, 0.5, [0, 2], momentum=0)(IMAGES).isfinite().all()
