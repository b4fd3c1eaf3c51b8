"""Dilated groups are those of timm, and with windows before them everyone meets everyone: if the interval allows."""

from __future__ import annotations

import math

import pytest
import torch
from timm.layers import RelPosBias
from timm.models import maxxvit

from labkit.attention import dilated as mine
from labkit.attention.matrix import effective_matrix, receptive_field
from labkit.attention.mixer import Mixer
from labkit.attention.windows import WindowAttention, displacements, for_each_pair
from labkit.errors import LabkitError
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

GRID, N = (8, 16), 128
DIM, HEADS = 32, 4


def of_grid(mixer, grid=GRID):
    return lambda x: mixer(x, grid)


def same_group(grid, interval):
    """(n, n): do rows and columns differ by whole intervals? Counted cell by cell."""
    cells = [(r, c) for r in range(grid[0]) for c in range(grid[1])]
    return torch.tensor([[(a - c) % interval[0] == (b - d) % interval[1] == 0 for c, d in cells] for a, b in cells])


def dense_under(q, k, v, may_meet, bias=0.0):
    scores = q @ k.mT * q.shape[-1] ** -0.5 + bias
    return scores.masked_fill(~may_meet, -torch.inf).softmax(dim=-1) @ v


@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


@pytest.mark.paper("S104")
@pytest.mark.parametrize("interval", [(2, 2), (2, 4), (1, 16), (8, 1)])
def test_the_groups_are_those_of_timm_and_can_be_undone(interval):
    x, group = normal(2, *GRID, 5), (GRID[0] // interval[0], GRID[1] // interval[1])
    theirs = maxxvit.grid_partition(x, group)
    ours = mine.lda_partition(x.flatten(1, 2), GRID, interval)
    checks.equal(ours.flatten(0, 1), theirs.flatten(1, 2), what="our groups and timm's")
    checks.equal(mine.lda_unpartition(ours, GRID, interval).unflatten(1, GRID), x, what="there and back")


@pytest.mark.paper("S104")
@pytest.mark.parametrize("impl", ["plain", "fast"])
def test_it_is_full_attention_under_the_mask_of_groups(impl):
    qkv, may_meet = normal(3, 2, HEADS, N, 6), same_group(GRID, (2, 4))

    def ours(t):
        return mine.dilated_attention(*t, GRID, (2, 4), impl=impl)

    checks.equal(ours(qkv), dense_under(*qkv, may_meet), 1e-12, "groups and masked attention")
    checks.equal_gradients(ours, lambda t: dense_under(*t, may_meet), qkv, 1e-11)


@pytest.mark.paper("S104")
def test_an_interval_of_one_is_dense_attention():
    ours, dense = randomized(mine.DilatedAttention(DIM, HEADS, interval=1)), randomized(Mixer(DIM, HEADS))
    checks.exact_limit(of_grid(ours), of_grid(dense), normal(2, N, DIM), tol=1e-12)


@pytest.mark.paper("S104")
def test_windows_and_then_groups_reach_everywhere_iff_the_interval_fits_into_the_window():
    grid, x = (8, 8), normal(1, 64, 8)
    for window in (1, 2, 4, 8):
        for interval in (1, 2, 4, 8):
            near = randomized(WindowAttention(8, 2, window))
            far = randomized(mine.DilatedAttention(8, 2, interval))
            jacobian = receptive_field(lambda x, grid, near=near, far=far: far(near(x, grid), grid), x, grid)
            assert bool((jacobian > 1e-12).all()) == (interval <= window), f"window {window}, interval {interval}"


@pytest.mark.paper("S104")
def test_the_frozen_network_is_its_lookup_table():
    window = (3, 5)
    position, table = randomized(mine.DynamicPosBias(HEADS)), RelPosBias(window, HEADS).double()
    with torch.no_grad():
        table.relative_position_bias_table.copy_(position.values(window))
    checks.equal(position(window), table.get_bias()[0], 1e-12, "the network's bias and timm's from its table")
    rows, columns = torch.meshgrid(torch.arange(3.0), torch.arange(5.0), indexing="ij")
    cells = torch.stack([rows.flatten(), columns.flatten()], dim=-1).double()
    asked = position.pos3(position.pos2(position.pos1(position.pos_proj(cells[:, None] - cells))))
    checks.equal(position(window), asked.permute(2, 0, 1), 1e-12, "the bias, and the network asked about each pair")


@pytest.mark.paper("S104")
@pytest.mark.parametrize("impl", ["plain", "fast"])
def test_the_dynamic_bias_is_added_to_the_scores_of_each_group(impl):
    mixer, x = randomized(mine.DilatedAttention(DIM, HEADS, (2, 4), dynamic=True, impl=impl)), normal(2, N, DIM)
    number = {tuple(way): i for i, way in enumerate(displacements((4, 4)).tolist())}
    cells = [(r, c) for r in range(GRID[0]) for c in range(GRID[1])]
    way = [[number.get(((a - c) // 2, (b - d) // 4), 0) for c, d in cells] for a, b in cells]
    with torch.no_grad():
        bias = mixer.position.values((4, 4)).T[:, torch.tensor(way)]
        qkv = mixer.project(x, GRID)
        expected = dense_under(*qkv, same_group(GRID, (2, 4)), bias)
        checks.equal(mixer.mix(*qkv, GRID), expected, 1e-12, "the mix and dense attention with the bias of pairs")


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("grid", "dim", "interval"), [((8, 16), 32, (2, 4)), ((16, 16), 64, (2, 2)), ((7, 7), 8, (7, 1))]
)
def test_its_cost_is_that_of_groups(grid, dim, interval, dynamic):
    n, group = math.prod(grid), (grid[0] // interval[0], grid[1] // interval[1])
    law = 4 * n * dim**2 + 2 * n * math.prod(group) * dim
    law += dynamic * (2 * group[0] - 1) * (2 * group[1] - 1) * (2 * 16 + 2 * 16**2 + 16 * HEADS)
    mixer = mine.DilatedAttention(dim, HEADS, interval, dynamic)
    assert mixer.cost(grid).macs == law
    checks.cost_law(law, of_grid(mixer, grid), torch.zeros(1, n, dim))


def test_block_then_grid_is_that_of_maxvit():
    """timm's two attentions, one after the other, with the bias of displacements as a table."""
    x, config = normal(2, *GRID, DIM), maxxvit.MaxxVitTransformerCfg(dim_head=8, window_size=(4, 4), grid_size=(4, 4))
    config.head_first, config.rel_pos_type = False, "bias"
    ours, theirs = [], []
    for kind in ("block", "grid"):
        layer = randomized(maxxvit.PartitionAttentionCl(DIM, kind, config))
        attn, table = layer.attn, layer.attn.rel_pos.relative_position_bias_table
        if kind == "block":
            mixer = WindowAttention(DIM, HEADS, 4, relative=True).double()
            mixer.relative_position_bias_table = table
        else:
            mixer = mine.DilatedAttention(DIM, HEADS, (2, 4)).double()
            mixer.position = lambda window, table=table: for_each_pair(table, window)
        mixer.qkv.load_state_dict(attn.qkv.state_dict())
        mixer.proj.load_state_dict(attn.proj.state_dict())
        ours.append(mixer)
        theirs.append(layer._partition_attn)
    checks.exact_limit(
        lambda x: ours[1](ours[0](x.flatten(1, 2), GRID), GRID).unflatten(1, GRID),
        lambda x: theirs[1](theirs[0](x)),
        x,
        tol=1e-12,
    )


def test_block_grid_is_the_product_of_a_block_and_a_grid():
    mixers = [
        mine.BlockGridAttention(DIM, HEADS),
        WindowAttention(DIM, HEADS),
        mine.DilatedAttention(DIM, HEADS, (2, 4)),
    ]
    both, block, grid = (effective_matrix(randomized(m), normal(2, N, DIM), GRID) for m in mixers)
    checks.equal(both, grid @ block, 1e-12, "the matrix of both, and the product")
    assert both.min() > 0


def test_block_grid_with_a_window_as_large_as_the_grid_is_dense_attention_twice():
    """The window is then the only group as well, and q and k are shared."""
    mixers = mine.BlockGridAttention(DIM, HEADS, window=GRID), Mixer(DIM, HEADS)
    twice, once = (effective_matrix(randomized(mixer), normal(2, N, DIM), GRID) for mixer in mixers)
    checks.equal(twice, once @ once, 1e-12, "block-grid and dense attention twice")


def test_it_compiles():
    mixer, x = randomized(mine.DilatedAttention(DIM, HEADS, 2, dynamic=True)), normal(2, N, DIM)
    checks.compiles(mixer, x, GRID)


def test_what_cannot_work_is_refused():
    x = normal(1, N, DIM)
    with pytest.raises(LabkitError, match="An interval of 3x3 does not divide the grid 8x16; choose one"):
        mine.DilatedAttention(DIM, HEADS, interval=3).double()(x, GRID)
    with pytest.raises(LabkitError, match="Windows of 3x3 do not tile the grid 8x16"):
        mine.BlockGridAttention(DIM, HEADS, window=3).double()(x, GRID)
