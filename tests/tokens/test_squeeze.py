"""Squeezed blocks: nothing changes at full budget, every token gets its own back, and the law of cost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from labkit import ViT, trace
from labkit.blocks import parallel
from labkit.cost import block_macs, count
from labkit.errors import LabkitError
from labkit.evidence import Evidence, Groups
from labkit.explain import rollout, without
from labkit.positions.rope import RoPEAxial
from labkit.tokens import Fuse, Keep, KeepShare, MaxPool, Merge, attach
from labkit.tokens.adaptive import keep_where
from labkit.tokens.score import attention_received
from labkit.tokens.squeeze import Squeezed, decompress, glance, squeeze
from labkit.vit import Block
from tests import checks
from tests.weights import normal, randomized

IMAGES = normal(3, 3, 32, 32)


def model(**kwargs) -> ViT:
    return randomized(ViT(32, 8, 5, dim=32, depth=3, heads=2, **kwargs))


@pytest.mark.parametrize("kwargs", [{}, {"registers": 2}, {"pool": "avg", "class_token": True}, {"layer_scale": 0.5}])
@pytest.mark.parametrize("reducer", [Keep(1.0), Merge(0), Fuse(1.0)], ids=["keep=1", "r=0", "fuse=1"])
def test_at_full_budget_nothing_changes(kwargs, reducer):
    plain = model(**kwargs)
    slim = squeeze(plain, reducer, range(3))
    checks.equal(slim(IMAGES), plain(IMAGES), 1e-12)
    for ours, whole in zip(slim.observe(IMAGES).steps, plain.observe(IMAGES).steps, strict=True):
        checks.equal(ours.x, whole.x, 1e-12)
        checks.equal(ours.evidence.attention(), whole.evidence.attention(), 1e-12)
        assert ours.how is None and ours.sizes is None


@pytest.mark.parametrize("change", ["none", "no bias", "normed queries", "normed keys"])
def test_a_glance_is_the_attention_that_the_block_will_pay(change):
    block = model().blocks[0]
    x, sizes = normal(3, 17, 32), 1 + normal(3, 17).abs()
    if change == "no bias":
        block.attn.qkv.bias = None
    if change != "normed keys":
        block.attn.q_norm = nn.LayerNorm(16).double()
    if change == "normed keys":
        block.attn.k_norm = randomized(nn.LayerNorm(16))
    for counted in (None, sizes):
        asked, real = glance(block, x, counted, rows=3), block(x, (4, 4), counted, 1).evidence
        checks.equal(asked.attention(slice(0, 3)), real.attention(slice(0, 3)), 1e-12)
        checks.equal(asked.attention(slice(1, 2)), real.attention(slice(1, 2)), 1e-12)


def test_each_token_adds_what_the_one_it_went_into_has_become_more():
    plain = model(registers=1)
    block, x = plain.blocks[0], normal(2, 18, 32)
    out = Squeezed(block, Merge(5))(x, (4, 4), None, 2).x
    small, groups = Merge(5).reduce(x, glance(block, x, None, 2), None, 2)
    new = block(small, (4, 4), groups.sizes(torch.ones(2, 18).double()), 2).x
    for i in range(2):
        for token in range(18):
            home = groups.home[i, token]
            members = x[i, groups.home[i] == home]
            checks.equal(out[i, token], x[i, token] + new[i, home] - members.mean(dim=0), 1e-12)
    assert small.shape[1] == 13 and (out - block(x, (4, 4), None, 2).x).abs().max() > 0.01


def test_who_is_not_kept_waits_outside():
    plain = model()
    block, x = plain.blocks[0], normal(2, 17, 32)
    scores = normal(2, 16)
    out = Squeezed(block, Keep(0.5, lambda *_: scores))(x, (4, 4), None, 1).x
    for i in range(2):
        kept = torch.cat([torch.zeros(1, dtype=torch.long), 1 + scores[i].topk(8).indices.sort().values])
        waiting = [token for token in range(17) if token not in kept.tolist()]
        assert out[i, waiting].equal(x[i, waiting]) and len(waiting) == 8
        checks.equal(out[i, kept], block(x[i : i + 1, kept], (4, 4), None, 1).x[0], 1e-12)


def test_equal_tokens_go_through_as_one_for_free():
    """One mean counted as two: without the logarithm of its size in the scores it would be another block."""
    plain = model()
    x = normal(2, 17, 32)
    x[:, 2::2] = x[:, 1::2]
    block = Squeezed(plain.blocks[0], Merge(8))
    checks.equal(block(x, (4, 4), None, 1).x, plain.blocks[0](x, (4, 4), None, 1).x, 1e-12)
    assert block(x, (4, 4), None, 1).evidence.few.k.shape[2] == 9


@pytest.mark.parametrize(("reducer", "m", "extra"), [(Keep(0.25), 4, 0), (Fuse(0.25), 5, 0), (Merge(5), 11, 8 * 8)])
@pytest.mark.parametrize("registers", [0, 2])
def test_it_costs_a_block_of_fewer_tokens_and_a_glance(reducer, m, extra, registers):
    """The glance: the queries of the prefix and what they take over from the keys, and the class token's row.

    `Merge` asks for no row, but compares 8 patches with 8.
    """
    plain = model(registers=registers)
    plain.last = "full"
    slim, prefix = squeeze(plain, reducer, [1, 2]), 1 + registers
    row = 0 if extra else 2 * (16 + prefix) * 32
    saved = sum(block_macs(16 + prefix, 32).values()) - sum(block_macs(m + prefix, 32).values())
    assert count(slim).macs == count(plain).macs - 2 * (saved - 2 * prefix * 32**2 - row - extra * 32)
    with torch.device("meta"):
        meta = squeeze(ViT(32, 8, 5, dim=32, depth=3, heads=2, registers=registers), reducer, [1, 2])
    meta.last = "full"
    assert count(meta).macs == count(slim).macs


def test_the_last_block_computes_the_class_token_alone_and_normed_keys_have_a_price():
    plain = model()
    slim = squeeze(plain, Keep(0.5), [2])
    law = sum(block_macs(17, 32, rows=1).values()) - sum(block_macs(9, 32, rows=1).values())
    assert count(slim).macs == count(plain).macs - law + 2 * 32**2 + 2 * 17 * 32
    checks.equal(slim(IMAGES), slim.observe(IMAGES).logits, 1e-12)
    row, whole = slim.last_step(IMAGES).evidence, slim.observe(IMAGES).steps[2].evidence
    checks.equal(row.attention(), whole.attention(slice(0, 1)), 1e-12)
    before = count(slim).macs
    plain.blocks[2].attn.k_norm = nn.LayerNorm(16).double()
    assert count(slim).macs == before - 32**2 + 17 * 32**2 - 2 * 17 * 32 + 17 * 32


def test_the_evidence_is_that_of_all_tokens():
    slim = squeeze(model(registers=1), Merge(5), [0, 1])
    for step in slim.observe(IMAGES).steps[:2]:
        few, groups = step.evidence.few, step.evidence.groups
        attn, folded = step.evidence.attention(), few.attention()
        assert attn.shape == (3, 2, 18, 18) and folded.shape == (3, 2, 13, 13)
        checks.rows_sum_to_one(attn, 1e-12)
        for head in range(2):
            to_groups = groups.total(attn[:, head].transpose(1, 2)).transpose(1, 2)
            checks.equal(to_groups, groups.spread(folded[:, head]), 1e-12)
        checks.equal(step.evidence.v, torch.stack([groups.spread(few.v[:, h]) for h in range(2)], dim=1))


def test_the_evidence_counts_what_tokens_stood_for_before():
    block, x, sizes = model().blocks[0], normal(2, 17, 32), 1 + normal(2, 17).abs()
    step, whole = Squeezed(block, Merge(0))(x, (4, 4), sizes, 1), block(x, (4, 4), sizes, 1)
    checks.equal(step.evidence.attention(), whole.evidence.attention(), 1e-12)
    checks.equal(step.x, whole.x, 1e-12)
    assert step.sizes is sizes and step.evidence.sizes is sizes


def test_who_waits_is_seen_by_nobody_and_looks_at_itself():
    evidence = squeeze(model(), Keep(0.5), [0]).observe(IMAGES).steps[0].evidence
    attn, went = evidence.attention(), evidence.groups.home >= 0
    checks.rows_sum_to_one(attn, 1e-12)
    assert (went.sum(dim=1) == 9).all()
    for i in range(3):
        assert attn[i, :, ~went[i]].equal(torch.eye(17)[~went[i]].expand(2, -1, -1).double())
        checks.equal(attn[i][:, went[i]][..., went[i]], evidence.few.attention()[i], 1e-12)
    checks.equal(evidence.attention(slice(3, 9)), attn[:, :, 3:9])


def test_a_trace_shows_all_tokens_in_place_and_a_head_can_be_silenced():
    slim = squeeze(model(), Merge(5), [0, 1]).float()
    images = IMAGES.float()
    seen = trace(slim, images)
    assert all(attn.shape == (3, 2, 17, 17) for attn in seen.attention)
    checks.equal(seen.provenance[3][:, 1:], torch.eye(16).expand(3, -1, -1))
    assert rollout(seen).isfinite().all()
    changed = without(slim, images, [(1, 0)])
    slim.blocks[1].blocks[0].attn.proj.weight.data[:, :16] = 0
    checks.equal(changed, slim(images), 1e-5)


class Dropper(nn.Module):
    """Drops the patches whose first channel, times a gain, is below zero: masked in training, gathered else."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def reduce(self, x: Tensor, evidence: Evidence, sizes: Tensor | None, prefix: int) -> tuple[Tensor, Groups]:
        scores = self.gain * x[:, prefix:, 0]
        if not self.training:
            return keep_where(scores >= 0, x, prefix)
        soft = scores.sigmoid()
        there = (scores >= 0).to(soft) + soft - soft.detach()
        return x, Groups.masked(torch.cat([there.new_ones(len(x), prefix), there], dim=1))


def test_masked_in_training_is_gathered_afterwards_and_the_gradient_reaches_the_mask():
    slim = squeeze(model(pool="avg", class_token=True), Dropper(), [0, 1])
    assert any(name == "blocks.0.reducer.gain" for name, _ in slim.named_parameters())
    gathered = slim.eval()(IMAGES)
    lengths = slim.observe(IMAGES).steps[0].evidence.groups.there.sum(dim=1)
    assert len(lengths.unique()) > 1
    checks.equal(slim.train()(IMAGES), gathered, 1e-10)
    checks.gradients_flow(slim, IMAGES)


def test_an_empty_place_stays_unseen():
    """Images of different lengths: whatever is written into the empty places, nobody notices."""
    before = attach(model(), KeepShare(0.8), [0]).observe(IMAGES).steps[0]
    empty = before.sizes == 0
    assert empty.any() and not empty.all(dim=0).any()
    other = before.x + 9 * empty[..., None] * normal(*before.x.shape)
    for reducer in (Keep(0.5), Fuse(0.5)):
        block = Squeezed(model().blocks[1], reducer)
        first, second = (block(x, (4, 4), before.sizes, 1) for x in (before.x, other))
        checks.equal(first.x[~empty], second.x[~empty], 1e-12)
        assert first.sizes.equal(before.sizes)


def test_weights_are_shared_and_the_model_is_left_alone():
    plain = model()
    before = plain(IMAGES)
    slim = squeeze(plain, Keep(0.3), [0, -1])
    assert all(a is b for a, b in zip(plain.parameters(), slim.parameters(), strict=True))
    assert not torch.allclose(slim(IMAGES), before) and plain(IMAGES).equal(before)
    assert [type(block).__name__ for block in slim.blocks] == ["Squeezed", "Block", "Squeezed"]


@pytest.mark.parametrize("reducer", [Keep(0.5), Merge(5), Fuse(0.5)], ids=["keep", "merge", "fuse"])
def test_gradients_batches_and_precisions(reducer):
    slim = squeeze(model(), reducer, range(3))
    checks.gradients_flow(slim, IMAGES)
    checks.batch_independent(slim, IMAGES, 1e-10)
    checks.deterministic(slim, IMAGES)
    checks.follows_dtype_and_device(slim, IMAGES)
    checks.equal(slim.set_impl("plain")(IMAGES), slim.set_impl("fast")(IMAGES), 1e-12)


def test_what_cannot_be_squeezed_is_refused():
    plain = model()
    with pytest.raises(LabkitError, match="There is no block 3; the model has 3"):
        squeeze(plain, Merge(2), [3])
    with pytest.raises(LabkitError, match="A ParallelBlock cannot be squeezed"):
        squeeze(parallel(plain, 3), Merge(2), [0])
    with pytest.raises(LabkitError, match="a token reducer of its own"):
        squeeze(attach(plain, Merge(2), [0]), Merge(2), [0])
    with pytest.raises(LabkitError, match="where each token is"):
        squeeze(model(position=RoPEAxial(16)), Merge(2), [0])
    with pytest.raises(LabkitError, match="its mixer is no plain attention"):
        Squeezed(Block(32, 2, mixer=nn.Identity()), Merge(2))
    with pytest.raises(LabkitError, match="only the rows of the 1 tokens before the patches are known"):
        squeeze(plain, Keep(0.5, attention_received), [0])(IMAGES)
    with pytest.raises(LabkitError, match="MaxPool mixes its tokens"):
        squeeze(plain, MaxPool(2, 2), [0])(IMAGES)


def test_decompress_undoes_a_mean():
    x = normal(2, 9, 4)
    groups = Groups(torch.arange(9).expand(2, -1) // 3, 3)
    new = normal(2, 3, 4)
    out = decompress(x, groups.mean(x), new, groups)
    checks.equal(groups.mean(out), new, 1e-12)
    checks.equal(out - groups.spread(new), x - groups.spread(groups.mean(x)), 1e-12)
