"""Places that are roughly known, and a merger that gives every image the same number of tokens."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from labkit.errors import LabkitError
from labkit.positions.fuzzy import AdaptiveTokenMerger, AnyResolution, FuzzyPositionalEncoding, cells
from labkit.vit import PatchEmbed, ViT
from tests import checks
from tests.weights import normal, randomized

GRID, DIM, HEADS = (4, 6), 8, 2


def fuzzy() -> FuzzyPositionalEncoding:
    return randomized(FuzzyPositionalEncoding(GRID, DIM), 1.0)


def pooled(x: torch.Tensor, old: tuple[int, int], new: tuple[int, int]) -> torch.Tensor:
    image = x.transpose(1, 2).unflatten(2, old)
    return F.adaptive_avg_pool2d(image, new).flatten(2).transpose(1, 2)


@pytest.mark.paper("S266")
def test_in_eval_mode_it_is_the_table():
    position, x = fuzzy(), normal(2, 24, DIM)
    checks.equal(position(x, GRID), x + position.table.flatten(2).transpose(1, 2))
    odd = FuzzyPositionalEncoding((5, 7), DIM).eval()
    checks.equal(odd(torch.zeros(1, 35, DIM), (5, 7)), odd.table.flatten(2).transpose(1, 2))
    checks.equal(position.read(GRID, torch.zeros(1, 24, 2)), position.read(GRID), 1e-5, "no jitter and the table")


@pytest.mark.paper("S266")
def test_another_grid_reads_between_the_entries():
    position = fuzzy().float()
    for grid in ((8, 12), (3, 5)):
        resized = F.interpolate(position.table, size=grid, mode="bilinear").flatten(2).transpose(1, 2)
        checks.equal(position.read(grid), resized, 1e-5, "our reading and torch's bilinear one")


@pytest.mark.paper("S266")
def test_jitter_keeps_every_value_between_its_neighbours():
    position = fuzzy()
    draw = torch.Generator().manual_seed(0)
    jitter = torch.rand(200, 24, 2, generator=draw) - 0.5
    read = position.read(GRID, jitter).reshape(200, *GRID, DIM)
    table = F.pad(position.table, (1, 1, 1, 1), mode="replicate")[0].movedim(0, -1)
    side = (jitter.reshape(200, *GRID, 2) > 0).long()
    for i, j in [(0, 0), (1, 2), (3, 5), (2, 0)]:
        down, right = side[:, i, j].unbind(dim=-1)
        corners = torch.stack([table[i + down + a, j + right + b] for a in (0, 1) for b in (0, 1)])
        assert (read[:, i, j] >= corners.amin(dim=0) - 1e-5).all() and (
            read[:, i, j] <= corners.amax(dim=0) + 1e-5
        ).all()


@pytest.mark.paper("S266")
def test_jitter_moves_no_place_on_average_where_the_table_is_affine():
    position = fuzzy()
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    slopes = normal(3, DIM)
    position.table.data = (slopes[0] * rows[..., None] + slopes[1] * columns[..., None] + slopes[2]).movedim(-1, 0)[
        None
    ]
    torch.manual_seed(0)
    reads = position.train()(torch.zeros(4000, 24, DIM, dtype=torch.float64), GRID).reshape(4000, *GRID, DIM)
    mean, error = reads.mean(dim=0), reads.std(dim=0) / 4000**0.5
    off = (mean - position.table[0].movedim(0, -1)).abs() / error
    assert off[1:-1, 1:-1].max() < 4.5, "the interior is where it was"
    assert off[0].max() > 10, "the border is drawn inwards"
    single = reads[:, 1, 2] - reads.mean(dim=0)[1, 2]
    assert single.abs().max() <= (slopes[:2].abs().sum(dim=0) / 2).max() + 0.1 and single.std() > 0.1


@pytest.mark.paper("S266")
@pytest.mark.parametrize("grid", [(4, 4), (8, 6), (5, 7), (17, 9), (3, 2), (4, 11)])
def test_the_merger_returns_its_target_for_every_grid(grid):
    merger, x = randomized(AdaptiveTokenMerger(DIM, HEADS, (4, 4))), normal(2, grid[0] * grid[1], DIM)
    out, new = merger(x, grid)
    assert out.shape == (2, 16, DIM) and new == (4, 4)
    checks.batch_independent(lambda x: merger(x, grid)[0], x, tol=1e-11)
    if grid == (4, 4):
        assert out is x, "a grid that is there already is left alone"


@pytest.mark.paper("S266")
@pytest.mark.parametrize(("old", "new"), [((8, 6), (4, 3)), ((5, 7), (3, 4)), ((7, 4), (4, 4)), ((3, 2), (4, 4))])
def test_uniform_attention_in_a_cell_is_average_pooling(old, new):
    merger, x = randomized(AdaptiveTokenMerger(DIM, HEADS, new)), normal(2, old[0] * old[1], DIM)
    for name in ("q.weight", "q.bias", "mlp.fc2.weight", "mlp.fc2.bias"):
        merger.get_parameter(name).data.zero_()
    values = merger.kv(merger.norm1(x))[..., DIM:]
    expected = pooled(x, old, new) + merger.proj(pooled(values, old, new))
    checks.equal(merger.merge(x, old, new), expected, 1e-12, "a merger that asks nothing, and pooled tokens and values")
    merger.proj.weight.data.zero_(), merger.proj.bias.data.zero_()
    checks.equal(merger.merge(x, old, new), pooled(x, old, new), 1e-12, "without them, average pooling")


@pytest.mark.paper("S266")
def test_rounds_halve_the_grid_and_share_their_weights():
    merger, x = randomized(AdaptiveTokenMerger(DIM, HEADS, (4, 4))), normal(1, 17 * 9, DIM)
    step = merger.merge(merger.merge(merger.merge(x, (17, 9), (9, 5)), (9, 5), (5, 4)), (5, 4), (4, 4))
    checks.equal(merger(x, (17, 9))[0], step, what="three rounds in one call and one by one")


@pytest.mark.paper("S266")
def test_attention_stays_in_its_cell():
    index, taken = cells((5, 6), (3, 3))
    members = [sorted(set(index[i][taken[i]].tolist())) for i in range(9)]
    assert members[0] == [0, 1, 6, 7] and members[4] == [8, 9, 14, 15, 20, 21], "5 rows in 3: the middle has three"
    merger, x = randomized(AdaptiveTokenMerger(DIM, HEADS, (3, 3))), normal(1, 30, DIM)
    other = x.clone()
    other[:, 4] += 1  # row 0, column 4: only in the last cell of the first row
    changed = (merger(other, (5, 6))[0] - merger(x, (5, 6))[0]).abs().amax(dim=-1)[0] > 1e-9
    assert changed.nonzero().flatten().tolist() == [2]


@pytest.mark.paper("S266")
def test_what_follows_the_merger_costs_the_same_for_every_image():
    merger = AdaptiveTokenMerger(DIM, HEADS, (2, 3))
    vit = ViT(32, 8, 5, DIM, 2, HEADS, patching=AnyResolution(PatchEmbed(8, 3, DIM), fuzzy().float(), merger)).eval()
    for h, w in ((32, 48), (64, 96)):
        images, n, m = torch.zeros(1, 3, h, w), h * w // 64, 6
        rounds = [(k, k // 4) for k in (96, 24) if k <= n]
        merging = sum((2 * n + 10 * m) * DIM**2 + 2 * n * DIM for n, m in rounds)
        checks.cost_law(merging + n * 192 * DIM, vit.embed, images)
        blocks = 2 * (12 * (m + 1) * DIM**2 + 2 * (m + 1) ** 2 * DIM)
        full = torch.zeros(1, m + 1, DIM)
        assert vit.embed(images)[0].shape == full.shape
        checks.cost_law(blocks, lambda x: list(vit.steps(x, (2, 3))), vit.embed(images)[0])


def test_what_does_not_fit_is_a_sentence():
    with pytest.raises(LabkitError, match="Width 8 does not divide into 3 heads"):
        AdaptiveTokenMerger(DIM, 3, (2, 2))
