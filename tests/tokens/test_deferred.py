"""Dropping in training: the same patches as timm, nothing lost in use, who is heard, and what it costs."""

from __future__ import annotations

import pytest
import torch
from timm.layers import PatchDropout as TimmPatchDropout
from torch import Tensor, nn

from labkit.cost import block_macs, count
from labkit.errors import LabkitError
from labkit.evidence import Evidence, Grid
from labkit.tokens import Keep, Merge, attach
from labkit.tokens.deferred import DeferredMasking, PatchDropout, PatchMixer, kept
from labkit.tokens.score import random
from labkit.vit import ViT
from tests import checks
from tests.weights import normal, randomized

IMAGES = normal(3, 3, 32, 32)


def model(**kwargs) -> ViT:
    return randomized(ViT(32, 8, 5, dim=32, depth=3, heads=2, **kwargs), std=0.1)


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixer(depth: int = 1) -> PatchMixer:
    return randomized(PatchMixer(32, 2, depth), std=0.1)


def dropped_patches(slim: ViT, images: Tensor) -> tuple[Tensor, Tensor]:
    """(b, patches) who is dropped in a training pass, and how strongly each patch's pixels feel a random loss."""
    images = images.clone().requires_grad_(True)
    seen = slim.observe(images)
    (seen.logits * normal(*seen.logits.shape)).sum().backward()
    felt = images.grad.unfold(2, 8, 8).unfold(3, 8, 8).abs().amax(dim=(1, 4, 5)).flatten(1)
    return seen.entry.home[:, slim.prefix :] < 0, felt


@pytest.mark.paper("S053")
@pytest.mark.parametrize("kwargs", [{}, {"registers": 2}, {"pool": "avg"}, {"layer_scale": 0.5}], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_with_nothing_dropped_it_is_the_model_that_was_not_masked(kwargs, training):
    """keep=1, or a ratio of 0, is the model with its mixer; without a mixer, the plain one."""
    plain, mix = model(**kwargs), mixer(2)
    slim = attach(plain, DeferredMasking(mix, 1.0, draw()), "entry").train(training)
    x, grid = plain.embed(IMAGES)
    mixed = torch.cat([x[:, : plain.prefix], mix(x[:, plain.prefix :], grid)], dim=1)
    unmasked = plain.read([step.x for step in plain.steps(mixed, grid)][-1])
    checks.equal(slim(IMAGES), unmasked, 1e-12)
    assert (unmasked - plain(IMAGES)).abs().max() > 1e-3
    for reducer in (PatchDropout(1.0, draw()), DeferredMasking(PatchMixer(32, 2, depth=0), 1.0, draw())):
        checks.equal(attach(plain, reducer, "entry").train(training)(IMAGES), plain(IMAGES), 1e-12)


@pytest.mark.paper("S053")
def test_in_eval_mode_nothing_is_dropped():
    plain = model()
    for reducer in (PatchDropout(0.25, draw()), DeferredMasking(PatchMixer(32, 2, depth=0), 0.25, draw())):
        slim = attach(plain, reducer, "entry").eval()
        checks.equal(slim(IMAGES), plain(IMAGES), 1e-12)
        checks.equal(slim.observe(IMAGES).entry.matrix(), torch.eye(17).expand(3, -1, -1))
        assert slim.train().enter(IMAGES)[0].x.shape[1] == 1 + 4
    slim = attach(plain, DeferredMasking(mixer(), 0.25, draw()), "entry").eval()
    full = attach(plain, DeferredMasking(mixer(), 1.0, draw()), "entry").eval()
    checks.equal(slim(IMAGES), full(IMAGES), 0.0)


@pytest.mark.paper("S053")
def test_a_mixer_without_depth_is_patch_dropout_on_the_same_patches():
    plain = model(registers=1)
    deferred = attach(plain, DeferredMasking(PatchMixer(32, 2, depth=0), 0.25, draw(7)), "entry").train()
    dropout = attach(plain, PatchDropout(0.25, draw(7)), "entry").train()
    first, second = deferred.observe(IMAGES), dropout.observe(IMAGES)
    assert first.entry.home.equal(second.entry.home)
    checks.equal(first.logits, second.logits, 1e-12)


@pytest.mark.paper("S053")
@pytest.mark.parametrize("keep", [0.25, 0.5, 0.75])
def test_a_seed_keeps_the_patches_that_timm_keeps(keep):
    plain = model(registers=2)
    slim = attach(plain, PatchDropout(keep, draw(3)), "entry").train()
    theirs = TimmPatchDropout(1 - keep, num_prefix_tokens=3, ordered=True)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = theirs(plain.embed(IMAGES)[0])
    checks.equal(slim.enter(IMAGES)[0].x, expected)


def test_those_that_stay_are_in_order_with_their_positions_and_the_prefix_before_them():
    plain = model(registers=1)
    slim = attach(plain, PatchDropout(0.3, draw()), "entry").train()
    first, x = slim.enter(IMAGES)[0], plain.embed(IMAGES)[0]
    stay = first.map.argmax(dim=-1)
    checks.equal(first.x, x.take_along_dim(stay[..., None], dim=1))
    assert (stay.diff(dim=1) > 0).all() and stay[:, :2].tolist() == 3 * [[0, 1]]
    assert stay.shape[1] == 2 + kept(16, 0.3) == 2 + 5 and first.sizes is None
    assert len({tuple(row) for row in stay.tolist()}) == 3  # every image its own
    last = [step.x for step in plain.train().steps(first.x, (4, 4))][-1]
    checks.equal(attach(plain, PatchDropout(0.3, draw()), "entry").train()(IMAGES), plain.read(last), 1e-12)


def test_every_patch_stays_equally_often_and_the_generator_tells_which():
    x = normal(2000, 1 + 8, 1)
    dropout = PatchDropout(0.25, draw())
    evidence = Evidence(x[:, None], x[:, None])
    often = (dropout.reduce(x, evidence, None, 1)[1].home[:, 1:] >= 0).double().mean(dim=0)
    checks.equal(often, torch.full((8,), 0.25), 0.04)
    again = [PatchDropout(0.25, draw(5)).reduce(x, evidence, None, 1)[1].home for _ in range(2)]
    assert again[0].equal(again[1])
    assert not dropout.reduce(x, evidence, None, 1)[1].home.equal(dropout.reduce(x, evidence, None, 1)[1].home)
    assert [kept(n, keep) for n, keep in ((196, 0.25), (50, 0.1), (4, 0.01))] == [49, 5, 1]


class Alone(nn.Module):
    """A mixer in name only: every patch by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        assert grid == (4, 4)
        return x + self.linear(x).tanh()


@pytest.mark.paper("S053")
@pytest.mark.parametrize("kwargs", [{}, {"registers": 2}, {"pool": "avg"}], ids=str)
def test_dropped_patches_get_a_gradient_if_they_were_mixed_and_none_at_all_if_not(kwargs):
    """What counts is that the mixer mixes, not that there is one: where each patch is alone, it is zero again."""
    for reducer, heard in (
        (DeferredMasking(mixer(), 0.25, draw()), True),
        (DeferredMasking(mixer(2), 0.25, draw()), True),
        (DeferredMasking(PatchMixer(32, 2, depth=0), 0.25, draw()), False),
        (DeferredMasking(randomized(Alone()), 0.25, draw()), False),
        (PatchDropout(0.25, draw()), False),
    ):
        dropped, felt = dropped_patches(attach(model(**kwargs), reducer, "entry").train(), IMAGES)
        assert dropped.sum(dim=1).tolist() == 3 * [12]
        assert (felt[~dropped] > 1e-6).all()
        assert (felt[dropped] > 1e-6).all() if heard else not felt[dropped].any()


def test_the_models_own_first_blocks_are_a_mixer_too():
    """Dropped in block 1 the patches have been heard in block 0, and what is left is computed by the blocks after."""
    slim = attach(model(), PatchDropout(0.25, draw()), [1]).train()
    images = IMAGES.clone().requires_grad_(True)
    seen = slim.observe(images)
    assert [step.x.shape[1] for step in seen.steps] == [17, 5, 5]
    seen.logits.square().sum().backward()
    assert (images.grad.unfold(2, 8, 8).unfold(3, 8, 8).abs().amax(dim=(1, 4, 5)) > 1e-9).all()


@pytest.mark.paper("S053")
@pytest.mark.parametrize("keep", [0.25, 0.5, 0.75])
def test_the_backbone_costs_keep_times_its_linear_part_and_keep_squared_its_attention(keep):
    """1 - r and (1 - r)², exactly, where a whole number of patches stays and there is no class token; the mixer,
    the patches and the head are paid in full. Counted in training mode, as at inference nothing is dropped.
    """
    whole, part, light = block_macs(16, 32), block_macs(round(16 * keep), 32), block_macs(16, 32)
    assert part["attention"] == keep**2 * whole["attention"]
    linear = {name: macs for name, macs in whole.items() if name != "attention"}
    assert all(part[name] == keep * linear[name] for name in linear)
    around = 16 * 192 * 32 + 32 * 5
    backbone = 3 * (keep * sum(linear.values()) + keep**2 * whole["attention"])
    plain, image = model(pool="avg"), IMAGES[:1]
    dropout = attach(plain, PatchDropout(keep, draw()), "entry").train()
    checks.cost_law(around + backbone, dropout, image)
    deferred = attach(plain, DeferredMasking(mixer(), keep, draw()), "entry").train()
    checks.cost_law(around + sum(light.values()) + backbone, deferred, image)
    checks.cost_law(around + 3 * sum(whole.values()), plain.train(), image)
    assert dropout.training  # and so it was when it was counted


@pytest.mark.paper("S053")
def test_at_inference_nothing_is_saved_and_a_class_token_costs_a_little_more_than_the_law():
    plain = model()
    plain.last = "full"
    dropout = attach(plain, PatchDropout(0.25, draw()), "entry")
    deferred = attach(plain, DeferredMasking(mixer(2), 0.25, draw()), "entry")
    assert count(dropout).macs == count(plain).macs
    assert count(deferred).macs == count(plain).macs + 2 * sum(block_macs(16, 32).values())
    backbone = 3 * sum(block_macs(1 + kept(16, 0.25), 32).values())
    checks.cost_law(16 * 192 * 32 + backbone + 32 * 5, dropout.train(), IMAGES[:1])
    assert count(attach(plain, Keep(0.25, random(draw())), "entry")).macs == 16 * 192 * 32 + backbone + 32 * 5
    assert block_macs(5, 32)["attention"] > 0.25**2 * block_macs(17, 32)["attention"]


def test_the_mixer_is_a_part_of_the_copy_and_learns():
    plain = model()
    deferred = DeferredMasking(mixer(), 0.25, draw())
    slim = attach(plain, deferred, "entry").train()
    names = {name for name, _ in slim.named_parameters()}
    assert "entry.mixer.blocks.0.attn.qkv.weight" in names and not any(
        "entry" in n for n, _ in plain.named_parameters()
    )
    checks.gradients_flow(slim, IMAGES)
    qkv = PatchMixer(64, 2).blocks[0].attn.qkv  # it starts as the blocks of a ViT do
    assert 0.018 < qkv.weight.std() < 0.022 and not qkv.bias.any()


def test_merged_tokens_keep_their_sizes_and_empty_places_are_dropped_first():
    plain = model()
    slim = attach(attach(plain, Merge(6), [0]), PatchDropout(0.5, draw()), [1]).train()
    steps = slim.observe(IMAGES).steps
    expected = steps[0].sizes.take_along_dim(steps[1].map.argmax(dim=-1), dim=1)
    checks.equal(steps[1].sizes, expected)
    assert steps[1].x.shape[1] == 1 + 5 and steps[0].sizes.max() > 1
    x, sizes = normal(40, 1 + 8, 4), torch.tensor([1.0] * 5 + [0.0] * 4).double().expand(40, -1)
    home = PatchDropout(0.5, draw()).reduce(x, Evidence(x[:, None], x[:, None]), sizes, 1)[1].home
    assert (home[:, :5] >= 0).all()


def test_use_is_independent_of_the_batch_and_follows_precision():
    slim = attach(model(), DeferredMasking(mixer(), 0.5, draw()), "entry").eval()
    checks.batch_independent(slim, IMAGES, 1e-10)
    checks.equal(slim(IMAGES.flip(0)), slim(IMAGES).flip(0), 1e-10)
    checks.follows_dtype_and_device(slim, IMAGES)
    checks.follows_dtype_and_device(slim.train(), IMAGES)


@pytest.mark.parametrize("keep", [0, -0.5, 1.5, float("nan")])
def test_what_is_no_share_is_refused(keep):
    with pytest.raises(LabkitError, match=f"keep={keep} is not a share; expected a number above 0 and at most 1"):
        PatchDropout(keep, draw())
    with pytest.raises(LabkitError, match=f"keep={keep} is not a share"):
        DeferredMasking(mixer(), keep, draw())


def test_a_mixer_within_the_model_is_refused():
    with pytest.raises(LabkitError, match='attach this reducer with layers="entry"'):
        attach(model(), DeferredMasking(mixer(), 0.5, draw()), [0])(IMAGES)
