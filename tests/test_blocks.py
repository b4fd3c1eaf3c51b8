"""Blocks side by side: the same parts at the same cost, and nearly the sequence when the steps are small."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import ParallelThingsBlock
from torch import Tensor, nn

from labkit.blocks import ParallelBlock, attn_only_parameters, parallel
from labkit.errors import LabkitError
from labkit.vit import Block, LayerScale, ViT
from tests import checks
from tests.weights import normal, randomized

DIM, HEADS, GRID = 16, 2, (3, 3)


def tokens(block: nn.Module, **options):
    return lambda x: block(x, GRID, **options).x


def in_sequence(blocks):
    def run(x: Tensor) -> Tensor:
        for block in blocks:
            x = block(x, GRID).x
        return x

    return run


def small_vit(**options) -> ViT:
    return randomized(ViT(16, 4, 5, DIM, depth=4, heads=HEADS, **options))


@pytest.mark.paper("S226")
def test_one_block_alone_is_the_block():
    alone = randomized(ParallelBlock(DIM, HEADS, n=1, layer_scale=0.1))
    checks.exact_limit(tokens(alone), tokens(alone.blocks[0]), normal(2, 9, DIM), tol=0)


@pytest.mark.paper("S226")
@pytest.mark.parametrize("n", [2, 3])
def test_it_is_the_parallel_block_of_timm(n):
    ours = randomized(ParallelBlock(DIM, HEADS, n, layer_scale=0.1))
    theirs = ParallelThingsBlock(DIM, HEADS, num_parallel=n, qkv_bias=True, init_values=0.1, norm_layer=nn.LayerNorm)
    theirs.double().load_state_dict({_timm_name(name): value for name, value in ours.state_dict().items()})
    checks.exact_limit(tokens(ours), theirs, normal(2, 9, DIM), tol=1e-12)


def _timm_name(name: str) -> str:
    """blocks.1.norm2.weight → ffns.1.norm.weight"""
    _, i, part, *rest = name.split(".")
    branch = "attns" if part in ("norm1", "attn", "ls1") else "ffns"
    return ".".join([branch, i, part.rstrip("12"), *rest])


@pytest.mark.paper("S226")
def test_parallel_and_sequence_differ_by_the_square_of_the_step():
    pair, x = randomized(ParallelBlock(DIM, HEADS, layer_scale=1.0)), normal(2, 9, DIM)
    ratios = []
    for gamma in (1e-1, 1e-2, 1e-3):
        for module in pair.modules():
            if isinstance(module, LayerScale):
                nn.init.constant_(module.gamma, gamma)
        difference = tokens(pair)(x) - in_sequence(pair.blocks)(x)
        ratios.append((difference.norm() / gamma**2).item())
    assert ratios[0] == pytest.approx(ratios[2], rel=0.2) and ratios[1] == pytest.approx(ratios[2], rel=0.02)
    assert ratios[2] > 1, "the order matters, only not to first order"


@pytest.mark.paper("S226")
def test_parallel_and_sequence_have_equal_parameters_and_cost():
    vit = small_vit(layer_scale=0.1)
    pairs, n = parallel(vit), 9
    assert len(pairs.blocks) == 2 and all(isinstance(block, ParallelBlock) for block in pairs.blocks)
    assert sum(p.numel() for p in pairs.parameters()) == sum(p.numel() for p in vit.parameters())
    law = 4 * (12 * n * DIM**2 + 2 * n**2 * DIM)
    x = torch.zeros(1, n, DIM, dtype=torch.float64)
    checks.cost_law(law, in_sequence(vit.blocks), x)
    checks.cost_law(law, in_sequence(pairs.blocks), x)


def test_a_vit_runs_its_blocks_in_pairs():
    vit = small_vit(layer_scale=0.1)
    pairs, images = parallel(vit), normal(2, 3, 16, 16)
    x = vit.embed(images)[0]
    for first, second in (vit.blocks[:2], vit.blocks[2:]):
        x = x + sum(b.ls1(b.attn(b.norm1(x))) for b in (first, second))
        x = x + sum(b.ls2(b.mlp(b.norm2(x))) for b in (first, second))
    checks.equal(pairs(images), vit.read(x), 1e-12, "the model in pairs and the formula")
    assert isinstance(vit.blocks[0], Block), "the model it was made from is as it was"
    checks.equal(pairs(images), pairs.set_impl("plain")(images), 1e-12, "fused and written out")


def test_only_the_asked_rows_come_out():
    pair, x = randomized(ParallelBlock(DIM, HEADS)), normal(2, 9, DIM)
    checks.equal(tokens(pair, rows=1)(x), tokens(pair)(x)[:, :1], 1e-12, "the first row alone and among all")


def test_its_evidence_is_one_attention_with_all_heads():
    pair, x = randomized(ParallelBlock(DIM, HEADS)), normal(2, 9, DIM)
    for block in pair.blocks:
        block.attn.impl = "plain"
    sizes = torch.arange(1.0, 10, dtype=torch.float64).expand(2, -1)
    evidence, bias = pair(x, GRID, sizes).evidence, sizes.log()[:, None, None]
    each = [block.attn.attend(block.norm1(x), bias)[1].attn for block in pair.blocks]
    checks.equal(evidence.attn, torch.cat(each, dim=1), 1e-12, "the evidence and each attention")
    evidence.attn = None
    checks.equal(evidence.attention(), torch.cat(each, dim=1), 1e-12, "computed later and at once")


class FirstTwo:
    """The least reducer: average the first two tokens."""

    def reduce(self, x, evidence, sizes, prefix):
        n = x.shape[1]
        weights = torch.eye(n, dtype=x.dtype)[1:].expand(len(x), -1, -1).clone()
        weights[:, 0, :2] = 0.5
        return weights @ x, weights


def test_a_token_reducer_works_as_in_a_block():
    block = randomized(Block(DIM, HEADS))
    alone, x = ParallelBlock.of(block), normal(2, 9, DIM)
    sizes = torch.arange(1.0, 10, dtype=torch.float64).expand(2, -1)
    for rows, tokens_left in ((None, 8), (1, 1)):
        block.reducer = FirstTwo()
        expected = block(x, GRID, sizes, rows=rows)
        block.reducer, alone.reducer = None, FirstTwo()
        step = alone(x, GRID, sizes, rows=rows)
        checks.equal([step.x, step.map, step.sizes], [expected.x, expected.map, expected.sizes])
        assert step.x.shape[1] == tokens_left


def test_other_mixers_fit_but_cannot_guide_a_reducer():
    class Mean(nn.Module):
        def forward(self, x, grid):
            return x.mean(dim=1, keepdim=True).expand_as(x)

    pair, x = randomized(ParallelBlock(DIM, HEADS, mixer=Mean())), normal(2, 9, DIM)
    assert pair(x, GRID).evidence is None
    checks.equal(tokens(pair, rows=1)(x), tokens(pair)(x)[:, :1], 1e-12, "the first row alone and among all")
    pair.reducer = FirstTwo()
    with pytest.raises(LabkitError, match="A token reducer needs attention"):
        pair(x, GRID)


def test_blocks_that_do_not_fit_side_by_side_are_refused():
    vit = small_vit()
    with pytest.raises(LabkitError, match="4 blocks do not divide into groups of 3"):
        parallel(vit, 3)
    with pytest.raises(LabkitError, match="4 blocks do not divide into groups of -2"):
        parallel(vit, -2)
    with pytest.raises(LabkitError, match="Block 0 is a ParallelBlock"):
        parallel(parallel(vit))
    vit.blocks[1].reducer = FirstTwo()
    with pytest.raises(LabkitError, match="Block 1 has a token reducer"):
        parallel(vit)


@pytest.mark.paper("S226")
@pytest.mark.parametrize("form", [lambda vit: vit, parallel])
def test_attention_alone_is_a_third_of_every_block(form):
    vit = form(ViT(16, 4, 5, DIM, depth=4, heads=HEADS))
    chosen = attn_only_parameters(vit)
    assert sum(p.numel() for p in chosen.values()) == 4 * (4 * DIM**2 + 4 * DIM)
    assert all(".attn." in name and dict(vit.named_parameters())[name] is p for name, p in chosen.items())
    matrices = [p for p in vit.blocks.parameters() if p.ndim == 2]
    share = sum(p.numel() for p in chosen.values() if p.ndim == 2) / sum(p.numel() for p in matrices)
    assert share == pytest.approx(1 / 3)


@pytest.mark.paper("S226")
def test_tuning_attention_alone_leaves_the_rest_as_it_was():
    vit = ViT(16, 4, 5, DIM, depth=2, heads=HEADS)
    before = {name: p.detach().clone() for name, p in vit.named_parameters()}
    chosen = attn_only_parameters(vit)
    optimizer = torch.optim.SGD(chosen.values(), lr=1.0)
    vit(torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    optimizer.step()
    changed = {name for name, p in vit.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(chosen)


def test_a_block_on_its_own_and_a_model_without_blocks():
    assert set(attn_only_parameters(Block(DIM, HEADS))) == {
        "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias",
    }  # fmt: skip
    with pytest.raises(LabkitError, match="Linear holds no labkit Block"):
        attn_only_parameters(nn.Linear(2, 2))
