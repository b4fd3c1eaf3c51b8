"""Window attention is full attention under a mask of regions, and Swin's logits come out of it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from timm.models import swin_transformer
from torch import nn

from labkit.attention import windows as mine
from labkit.attention.matrix import effective_matrix, receptive_field
from labkit.attention.mixer import FLOAT, Mixer
from labkit.errors import LabkitError
from labkit.patching.merging import PatchMerging
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

GRID, N = (8, 16), 128
DIM, HEADS = 32, 4
SHAPES = [  # grid, window, shift
    ((8, 16), (4, 4), (0, 0)),
    ((8, 16), (4, 4), (2, 2)),
    ((8, 16), (2, 8), (1, 3)),
    ((7, 10), (4, 3), (0, 0)),
    ((7, 10), (4, 3), (2, 1)),
    ((5, 3), (4, 4), (3, 1)),
]


def of_grid(mixer, grid=GRID):
    return lambda x: mixer(x, grid)


def in_order(*mixers):
    def both(x, grid):
        for mixer in mixers:
            x = mixer(x, grid)
        return x

    return both


def meet(grid, window, shift):
    """(n, n): do two cells lie between the same borders? Counted cell by cell."""
    cells = [((r - shift[0]) // window[0], (c - shift[1]) // window[1]) for r in range(grid[0]) for c in range(grid[1])]
    return torch.tensor([[a == b for b in cells] for a in cells])


def masked_attention(q, k, v, may_meet, bias=0.0):
    scores = q @ k.mT * q.shape[-1] ** -0.5 + bias
    return scores.masked_fill(~may_meet, -torch.inf).softmax(dim=-1) @ v


@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


@pytest.mark.paper("S083")
@pytest.mark.parametrize(("grid", "window", "shift"), SHAPES)
def test_the_partition_can_be_undone(grid, window, shift):
    x = normal(2, 3, grid[0] * grid[1], 5)
    parts = mine.partition(x, grid, window, shift)
    assert parts.shape[-2] == window[0] * window[1]
    checks.equal(mine.unpartition(parts, grid, window, shift), x)


@pytest.mark.paper("S083")
def test_the_partition_is_that_of_timm():
    x = normal(2, *GRID, 5)
    theirs = swin_transformer.window_partition(x, (4, 8))
    ours = mine.partition(x.flatten(1, 2), GRID, (4, 8))
    checks.equal(ours.flatten(0, 1), theirs.flatten(1, 2))
    checks.equal(
        mine.unpartition(ours, GRID, (4, 8)).unflatten(1, GRID), swin_transformer.window_reverse(theirs, (4, 8), *GRID)
    )


@pytest.mark.paper("S083")
@pytest.mark.parametrize("impl", ["plain", "fast"])
@pytest.mark.parametrize(("grid", "window", "shift"), SHAPES)
def test_it_is_full_attention_under_the_mask_of_regions(grid, window, shift, impl):
    n = grid[0] * grid[1]
    qkv = normal(3, 2, HEADS, n, 6)
    may_meet = meet(grid, window, shift)
    number = mine.regions(grid, window, shift)
    checks.equal(number[:, None] == number, may_meet, what="the regions")
    ours = partial(mine.window_attention, grid=grid, window=window, shift=shift, pad=True, impl=impl)
    checks.equal(ours(*qkv), masked_attention(*qkv, may_meet), 1e-12, "windows and masked attention")
    checks.equal_gradients(lambda t: ours(*t), lambda t: masked_attention(*t, may_meet), qkv, 1e-11)


@pytest.mark.paper("S083")
def test_a_window_as_large_as_the_grid_is_dense_attention():
    ours, dense = randomized(mine.WindowAttention(DIM, HEADS, window=GRID)), randomized(Mixer(DIM, HEADS))
    checks.exact_limit(of_grid(ours), of_grid(dense), normal(2, N, DIM), tol=1e-12)


@pytest.mark.parametrize("impl", ["plain", "fast"])
@pytest.mark.parametrize(("window", "shift"), [((4, 4), (0, 0)), ((2, 8), (1, 3))])
def test_the_bias_belongs_to_the_displacement(window, shift, impl):
    mixer = randomized(mine.WindowAttention(DIM, HEADS, window, shift, relative=True, impl=impl))
    x, table = normal(2, N, DIM), mixer.relative_position_bias_table
    number = {tuple(way): i for i, way in enumerate(mine.displacements(window).tolist())}
    cells = torch.cartesian_prod(*(torch.arange(side) for side in GRID)).tolist()
    bias = torch.stack([table[number.get((a - c, b - d), 0)] for a, b in cells for c, d in cells])
    with torch.no_grad():
        qkv = mixer.project(x, GRID)
        expected = masked_attention(*qkv, meet(GRID, window, shift), bias.T.unflatten(1, (N, N)))
        checks.equal(mixer.mix(*qkv, GRID), expected, 1e-12, "the mix and dense attention with the bias of pairs")
    checks.gradients_flow(_Fixed(mixer), x)


class _Fixed(nn.Module):
    """A mixer on one grid, as a module of tokens alone."""

    def __init__(self, mixer, grid=GRID):
        super().__init__()
        self.mixer, self.grid = mixer, grid

    def forward(self, x):
        return self.mixer(x, self.grid)


@pytest.mark.paper("S083")
@pytest.mark.parametrize("shift", [0, 2])
def test_it_is_window_attention_in_timm(shift):
    block = swin_transformer.SwinTransformerBlock(DIM, GRID, HEADS, window_size=4, shift_size=shift)
    block.attn.fused_attn = False
    randomized(block)
    ours = mine.WindowAttention(DIM, HEADS, 4, shift, relative=True).double()
    ours.load_state_dict(block.attn.state_dict())
    checks.exact_limit(
        of_grid(ours), lambda x: block._attn(x.unflatten(1, GRID)).flatten(1, 2), normal(2, N, DIM), tol=1e-12
    )


@pytest.mark.paper("S083")
def test_swin_tiny_with_our_windows_and_mergings_has_the_logits_of_timm():
    model, images = swin_transformer.swin_tiny_patch4_window7_224().eval(), normal(1, 3, 224, 224).float()
    with torch.no_grad():
        for name, p in model.named_parameters():  # tables of biases begin so small that none would be missed
            if name.endswith("table"):
                p.normal_()
        theirs = model(images)
        for stage in model.layers:
            for block in stage.blocks:
                block._attn = _swapped(block)
            if hasattr(stage.downsample, "reduction"):
                stage.downsample.forward = _merging(stage.downsample)
        checks.equal(model(images), theirs, 2e-5, "logits with our parts and with timm's")
        model.layers[1].blocks[0]._attn = lambda x: x * 0
        assert (model(images) - theirs).abs().max() > 1e-3  # the swapped parts are those that ran


def _swapped(block):
    attn = block.attn
    ours = mine.WindowAttention(attn.dim, attn.num_heads, block.window_size, block.shift_size, relative=True)
    ours.load_state_dict(attn.state_dict())
    return lambda x: ours(x.flatten(1, 2), x.shape[1:3]).unflatten(1, x.shape[1:3])


def _merging(theirs):
    ours = PatchMerging(theirs.dim)
    ours.load_state_dict(theirs.state_dict())

    def forward(x):
        merged, grid = ours(x.flatten(1, 2), x.shape[1:3])
        return merged.unflatten(1, grid)

    return forward


@pytest.mark.paper("S083")
@pytest.mark.parametrize(("grid", "dim", "window"), [((8, 16), 32, 4), ((16, 16), 64, 8), ((14, 14), 24, 7)])
def test_its_cost_is_linear_in_the_tokens(grid, dim, window):
    h, w = grid
    mixer = mine.WindowAttention(dim, HEADS, window)
    law = 4 * h * w * dim**2 + 2 * window**2 * h * w * dim
    assert mixer.cost(grid).macs == law
    checks.cost_law(law, of_grid(mixer, grid), torch.zeros(1, h * w, dim))


def test_padding_is_paid_for():
    """7 x 10 cells in windows of 8 are two windows and 128 cells, each of which meets 64."""
    mixer = mine.WindowAttention(DIM, HEADS, 8, shift=4, pad=True)
    price = mixer.cost((7, 10))
    assert price.macs == 4 * 70 * DIM**2 + 2 * 128 * 64 * DIM
    checks.cost_law(price.macs, of_grid(mixer, (7, 10)), torch.zeros(1, 70, DIM))
    assert price.bytes == laws.largest_bytes(mixer, (7, 10)) == FLOAT * HEADS * 128 * 64


@pytest.mark.paper("S083")
def test_two_blocks_link_windows_that_one_keeps_apart():
    still = randomized(mine.WindowAttention(8, 2, 4))
    moved = randomized(mine.WindowAttention(8, 2, 4, shift=2))
    grid = (8, 8)
    reached = [receptive_field(f, normal(1, 64, 8), grid) > 1e-12 for f in (still, in_order(still, moved))]
    first = mine.regions(grid, 4)
    one_window = first[:, None] == first
    checks.equal(reached[0], one_window, what="what one block links, and pairs of one window")
    assert reached[1][one_window].all()
    for i in first.unique():
        for j in first.unique():
            assert reached[1][first == i][:, first == j].any(), f"windows {i} and {j} are neighbours and not linked"
    assert not reached[1].all()  # corners are still far: (0, 0) has not heard of (7, 7)


def test_no_row_of_the_matrix_reaches_over_the_border_of_the_grid():
    matrix = effective_matrix(randomized(mine.WindowAttention(DIM, HEADS, 4, 2)), normal(1, N, DIM), GRID)
    checks.rows_sum_to_one(matrix, 1e-12)
    assert not matrix[..., 0, N - 1].any() and not matrix[..., 0, GRID[1] - 1].any()


def test_it_compiles():
    mixer, x = randomized(mine.WindowAttention(DIM, HEADS, 4, 2, relative=True)), normal(2, N, DIM)
    checks.compiles(mixer, x, GRID)


def test_what_cannot_work_is_refused():
    x = normal(1, N, DIM)
    with pytest.raises(LabkitError, match="Windows of 3x3 do not tile the grid 8x16; choose sides"):
        mine.WindowAttention(DIM, HEADS, 3).double()(x, GRID)
    with pytest.raises(LabkitError, match="A window of 0x4 has no cells"):
        mine.WindowAttention(DIM, HEADS, (0, 4)).double()(x, GRID)
    with pytest.raises(LabkitError, match=r"A shift of \(4, 4\) leaves the window \(4, 4\)"):
        mine.WindowAttention(DIM, HEADS, 4, shift=4).double()(x, GRID)
