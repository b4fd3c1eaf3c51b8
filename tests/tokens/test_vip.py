"""Compression around the class token: nothing lost where nothing differs, as short as asked, best where it looks."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from labkit.cost import block_macs, count
from labkit.errors import LabkitError
from labkit.evidence import Evidence
from labkit.tokens.score import class_attention, known
from labkit.tokens.squeeze import Squeezed, decompress, glance, squeeze
from labkit.tokens.vip import VIPCompress, halvings, vip_compress
from labkit.vit import Block, ViT
from tests import checks
from tests.weights import normal, randomized

IMAGES = normal(3, 3, 32, 32)
SCORES = normal(3, 30).exp()


def model(**kwargs) -> ViT:
    return randomized(ViT(32, 8, 5, dim=32, depth=3, heads=2, **kwargs))


def even(evidence: Evidence, prefix: int) -> Tensor:
    return evidence.k.new_ones(len(evidence.k), evidence.k.shape[2] - prefix)


def least(evidence: Evidence, prefix: int) -> Tensor:
    scores = class_attention(evidence, prefix)
    return scores.amax(dim=1, keepdim=True) - scores


@pytest.mark.paper("S165")
@pytest.mark.parametrize("kwargs", [{}, {"registers": 2}, {"pool": "avg", "class_token": True}, {"layer_scale": 0.5}])
def test_a_budget_of_all_patches_is_the_plain_model(kwargs):
    plain = model(**kwargs)
    for budget in (16, 99):
        slim = squeeze(plain, VIPCompress(budget, (4, 4)), range(3))
        checks.equal(slim(IMAGES), plain(IMAGES), 1e-12)
    assert (squeeze(plain, VIPCompress(12, (4, 4)), range(3))(IMAGES) - plain(IMAGES)).abs().max() > 1e-3
    groups = vip_compress(SCORES, 30, (5, 6), prefix=1)
    assert all(sorted(home.tolist()) == list(range(31)) for home in groups.home) and not groups.joins


@pytest.mark.paper("S165")
@pytest.mark.parametrize("budget", [4, 5, 9, 13, 16])
def test_what_is_constant_in_segments_is_lossless_at_any_budget(budget):
    """Four squares of four equal patches, so that 4 tokens say all; without the count in the scores it is lost."""
    block, corner = model(registers=1).blocks[0], normal(2, 4, 32)
    home = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3])
    x = torch.cat([normal(2, 2, 32), corner[:, home]], dim=1)
    whole = block(x, (4, 4), None, 2).x
    for reducer in (VIPCompress(budget, (4, 4), segment=4), VIPCompress(budget, (4, 4), 4, least)):
        step = Squeezed(block, reducer)(x, (4, 4), None, 2)
        checks.equal(step.x, whole, 1e-12)
        assert step.evidence.few.k.shape[2] == 2 + budget
    small, groups = VIPCompress(budget, (4, 4), segment=4).reduce(x, glance(block, x, None, 2), None, 2)
    unbiased = decompress(x, small, block(small, (4, 4), None, 2).x, groups)
    assert (unbiased - whole).abs().max() > 1e-3 or budget == 16


@pytest.mark.paper("S165")
def test_the_compressed_length_is_the_budget_however_long_the_image():
    lengths, costs = [], []
    for side in (32, 48, 64, 104):
        patches = (side // 8) ** 2
        slim = squeeze(model(registers=1), VIPCompress(10, (side // 8, side // 8)), [1])
        step = slim.observe(normal(2, 3, side, side)).steps[1]
        assert step.x.shape[1] == 2 + patches
        lengths.append(step.evidence.few.k.shape[2])
        part = [op for op in count(slim, side).operations if op.name.startswith("blocks.1.blocks")]
        costs.append(sum(op.macs for op in part) - 2 * (patches + 2) * 32)
    assert lengths == [12] * 4
    assert costs == 4 * [sum(block_macs(12, 32).values()) + 2 * 2 * 32**2]
    assert {vip_compress(normal(1, n).abs(), 10, (1, n)).count for n in (10, 11, 100, 1000)} == {10}


@pytest.mark.paper("S165")
@pytest.mark.parametrize("sizes", [None, 1 + normal(3, 31).abs()], ids=["alike", "sizes"])
def test_there_and_back_keeps_the_means_of_the_segments(sizes):
    x = normal(3, 31, 8)
    groups = vip_compress(SCORES, 7, (5, 6), prefix=1)
    groups.weight = sizes
    small = groups.mean(x)
    checks.equal(groups.mean(groups.spread(small)), small, 1e-12)
    new = normal(3, 8, 8)
    out = decompress(x, small, new, groups)
    checks.equal(groups.mean(out), new, 1e-12)
    checks.equal(decompress(x, small, small, groups), x)
    checks.equal(out - groups.spread(new), x - groups.spread(small), 1e-12)  # and what differs within them


def planted(block: Block, images: int, n: int, relevant: int) -> Tensor:
    """A class token and n patches of noise; `relevant` of them, anywhere, also have what its query looks for."""
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(images, 1 + n, 32, generator=draw, dtype=torch.float64)
    x[:, 0] = x[:1, 0]
    wanted = glance(block, x).q[:, :, 0].sum(dim=1)  # (images, d)
    where = torch.rand(images, n, generator=draw).argsort(dim=1)[:, :relevant] + 1
    pull = torch.zeros(images, 1 + n, 1, dtype=torch.float64).scatter(1, where[..., None], 6.0)
    return x + pull * wanted[:, None] / wanted.norm(dim=1)[:, None, None]


@pytest.mark.paper("S165")
def test_the_error_of_the_class_row_falls_as_the_budget_grows():
    block = randomized(Block(32, 2), std=0.4)
    x = planted(block, 16, 64, 4)
    row = class_attention(glance(block, x), 1)
    assert row.topk(4).values.sum(dim=1).min() > 0.5  # the four hold most of what the class token looks at
    exact = block(x, (8, 8), None, 1).x[:, 0]

    def error(reducer: VIPCompress) -> float:
        return (Squeezed(block, reducer)(x, (8, 8), None, 1).x[:, 0] - exact).norm(dim=1).mean().item()

    budgets = (2, 4, 8, 16, 32, 64)
    errors = [error(VIPCompress(budget, (8, 8))) for budget in budgets]
    assert all(more > less for more, less in pairwise(errors)) and errors[-1] < 1e-12
    for score in (even, least):  # the same budget spent elsewhere
        others = [error(VIPCompress(budget, (8, 8), score=score)) for budget in budgets]
        assert all(ours < theirs / 2 for ours, theirs in list(zip(errors, others, strict=True))[3:5])


def greedy(scores: Tensor, budget: int, grid: tuple[int, int]) -> set[frozenset[int]]:
    """One image by the definition: halve the part with the most, until there are as many as asked."""
    width = grid[1]
    parts = [(0, grid[0], 0, grid[1])]

    def patches(part: tuple[int, int, int, int]) -> list[int]:
        return [i * width + j for i in range(part[0], part[1]) for j in range(part[2], part[3])]

    while len(parts) < budget:
        best = max((p for p in parts if len(patches(p)) > 1), key=lambda p: scores[patches(p)].sum().item())
        a, b, c, d = best
        tall = b - a >= d - c
        middle = (a + b) // 2 if tall else (c + d) // 2
        parts.remove(best)
        parts += [(a, middle, c, d), (middle, b, c, d)] if tall else [(a, b, c, middle), (a, b, middle, d)]
    return {frozenset(patches(part)) for part in parts}


def parts_of(home: Tensor) -> set[frozenset[int]]:
    return {frozenset((home == part).nonzero()[:, 0].tolist()) for part in home.unique()}


@pytest.mark.parametrize("grid", [(5, 6), (1, 30), (30, 1), (2, 15)])
@pytest.mark.parametrize("budget", [1, 2, 7, 29, 30])
def test_the_part_that_is_looked_at_most_is_halved_again_and_again(grid, budget):
    for scores, home in zip(SCORES, vip_compress(SCORES, budget, grid).home, strict=True):
        assert parts_of(home) == greedy(scores, budget, grid)


def test_no_part_is_larger_than_a_segment_and_a_larger_budget_only_refines():
    scores = torch.zeros(1, 196)
    scores[0, 17] = 1.0
    before: set[frozenset[int]] = {frozenset(range(196))}
    for budget in (16, 17, 20, 60, 196):
        parts = parts_of(vip_compress(scores, budget, (14, 14), segment=16).home[0])
        assert len(parts) == budget and max(map(len, parts)) <= 16
        assert all(any(part <= larger for larger in before) for part in parts)
        before = parts
    assert frozenset([17]) in parts_of(vip_compress(scores, 20, (14, 14), segment=16).home[0])
    assert max(map(len, parts_of(vip_compress(scores, 8, (14, 14)).home[0]))) == 98  # without: half the image is one


def test_every_order_is_a_permutation_and_every_cut_is_made_once():
    for grid in ((1, 1), (1, 7), (4, 4), (14, 14), (9, 5)):
        order, splits = halvings(grid)
        n = grid[0] * grid[1]
        assert sorted(order) == list(range(n)) and sorted(cut for _, cut, _ in splits) == list(range(1, n))
        assert all(start < cut < stop for start, cut, stop in splits)
        assert [stop - start for start, _, stop in splits] == sorted((s[2] - s[0] for s in splits), reverse=True)


def test_among_equals_the_larger_part_is_halved_first():
    for scores in (torch.zeros(2, 16), torch.ones(2, 16), torch.full((2, 16), 0.1, dtype=torch.bfloat16)):
        groups = vip_compress(scores, 4, (4, 4))
        assert groups.home[0].tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]
        assert groups.home[1].equal(groups.home[0])


def test_each_image_is_cut_for_itself_and_an_empty_place_draws_nothing():
    x, sizes = normal(2, 17, 8), torch.ones(2, 17, dtype=torch.float64)
    sizes[:, 1:9] = 0
    asked = Evidence(normal(2, 2, 17, 4), normal(2, 2, 17, 4))
    scores = torch.ones(2, 16, dtype=torch.float64)
    _, groups = VIPCompress(9, (4, 4), score=known(scores)).reduce(x, asked, sizes, 1)
    assert groups.count == 10 and groups.home[0, 9:].unique().numel() == 8  # all that are there are alone
    assert groups.mean(x).isfinite().all() and groups.sizes(sizes).sum(dim=1).tolist() == [9, 9]


def test_a_token_counts_as_many_times_as_it_has_patches():
    x, sizes = normal(2, 17, 8), 1 + normal(2, 17).abs()
    asked = Evidence(normal(2, 2, 17, 4), normal(2, 2, 17, 4))
    small, groups = VIPCompress(6, (4, 4)).reduce(x, asked, sizes, 1)
    for i in range(2):
        for part in range(7):
            inside = groups.home[i] == part
            checks.equal(small[i, part], sizes[i, inside] @ x[i, inside] / sizes[i, inside].sum(), 1e-12)


@pytest.mark.parametrize("registers", [0, 2])
def test_it_costs_a_block_of_the_budget_and_a_glance(registers):
    prefix = 1 + registers
    plain = model(registers=registers)
    plain.last = "full"
    slim = squeeze(plain, VIPCompress(6, (4, 4)), range(3))
    blocks = sum(block_macs(prefix + 6, 32).values()) + 2 * prefix * 32**2 + 2 * (16 + prefix) * 32
    rest = 16 * 32 * 3 * 8**2 + 32 * 5
    assert count(slim).macs == 3 * blocks + rest
    with torch.device("meta"):
        meta = squeeze(ViT(32, 8, 5, dim=32, depth=3, heads=2, registers=registers), VIPCompress(6, (4, 4)), range(3))
    meta.last = "full"
    assert count(meta).macs == count(slim).macs


def test_gradients_batches_and_precisions():
    slim = squeeze(model(), VIPCompress(6, (4, 4)), range(3))
    checks.gradients_flow(slim, IMAGES)
    checks.batch_independent(slim, IMAGES, 1e-10)
    checks.deterministic(slim, IMAGES)
    checks.follows_dtype_and_device(slim, IMAGES)
    checks.equal(slim(IMAGES.flip(0)).flip(0), slim(IMAGES), 1e-12)
    checks.equal(slim.observe(IMAGES).logits, slim(IMAGES), 1e-12)


def test_what_does_not_fit_is_refused():
    plain = model()
    with pytest.raises(LabkitError, match="A grid of 5x5 has 25 patches, but 16 arrived"):
        squeeze(plain, VIPCompress(6, (5, 5)), [0])(IMAGES)
    with pytest.raises(LabkitError, match="budget=3 is too small: 16 patches in parts of at most 4 are 4 tokens"):
        squeeze(plain, VIPCompress(3, (4, 4), segment=4), [0])(IMAGES)
    with pytest.raises(LabkitError, match="budget=0 is too small"):
        squeeze(plain, VIPCompress(0, (4, 4)), [0])(IMAGES)
    with pytest.raises(LabkitError, match="there is none"):
        squeeze(model(pool="avg"), VIPCompress(6, (4, 4)), [0])(IMAGES)
