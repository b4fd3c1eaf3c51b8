"""Two kinds of stripes make a cross, a stripe as wide as the grid makes dense attention, and LePE is a convolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from labkit.attention import stripes as mine
from labkit.attention.matrix import effective_matrix, receptive_field
from labkit.attention.mixer import FLOAT, Mixer
from labkit.errors import LabkitError
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

GRID, N = (8, 16), 128
DIM, HEADS = 32, 4


def of_grid(mixer, grid=GRID):
    return lambda x: mixer(x, grid)


def same_stripes(grid, stripe):
    """(n, n) twice: who shares an upright stripe, and who a level one."""
    n = grid[0] * grid[1]
    upright, level = torch.arange(n) % grid[1] // stripe, torch.arange(n) // grid[1] // stripe
    return upright[:, None] == upright, level[:, None] == level


@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


@pytest.mark.paper("S109")
@pytest.mark.parametrize("impl", ["plain", "fast"])
def test_each_half_of_the_heads_is_full_attention_under_the_mask_of_its_stripes(impl):
    qkv = normal(3, 2, HEADS, N, 6)
    upright, level = same_stripes(GRID, 2)
    may_meet = torch.stack([upright, upright, level, level])

    def masked(t):
        q, k, v = t
        return (q @ k.mT / 6**0.5).masked_fill(~may_meet, -torch.inf).softmax(dim=-1) @ v

    def ours(t):
        return mine.stripe_attention(*t, GRID, 2, impl)

    checks.equal(ours(qkv), masked(qkv), 1e-12, "stripes and masked attention")
    checks.equal_gradients(ours, masked, qkv, 1e-11)


@pytest.mark.paper("S109")
def test_a_stripe_as_wide_as_the_grid_is_dense_attention():
    grid = (8, 8)
    ours = randomized(mine.CrossShapedWindowAttention(DIM, HEADS, stripe=8, lepe=False))
    checks.exact_limit(of_grid(ours, grid), of_grid(randomized(Mixer(DIM, HEADS)), grid), normal(2, 64, DIM), tol=1e-12)


@pytest.mark.paper("S109")
def test_without_weights_lepe_adds_nothing():
    ours = randomized(mine.CrossShapedWindowAttention(DIM, HEADS))
    plain, x = mine.CrossShapedWindowAttention(DIM, HEADS, lepe=False).double(), normal(2, N, DIM)
    plain.load_state_dict({name: w for name, w in ours.state_dict().items() if not name.startswith("get_v")})
    assert (ours(x, GRID) - plain(x, GRID)).abs().max() > 1e-3
    with torch.no_grad():
        for conv in ours.get_v:
            conv.weight.zero_()
    checks.exact_limit(of_grid(ours), of_grid(plain), x, tol=1e-12)


@pytest.mark.paper("S109")
def test_lepe_is_a_depthwise_convolution_inside_each_stripe():
    ours, v = randomized(mine.CrossShapedWindowAttention(DIM, HEADS, stripe=4)), normal(2, HEADS, N, 8)
    maps = v.transpose(2, 3).flatten(1, 2).unflatten(2, GRID)  # (b, heads * d, h, w)
    cut = maps[:, :16].split(4, dim=3), maps[:, 16:].split(4, dim=2)
    upright, level = (
        torch.cat([F.conv2d(part, conv.weight, padding=1, groups=16) for part in parts], dim=axis)
        for parts, conv, axis in zip(cut, ours.get_v, (3, 2), strict=True)
    )
    expected = torch.cat([upright, level], dim=1).unflatten(1, (HEADS, 8)).flatten(3).transpose(2, 3)
    checks.equal(mine.lepe(v, GRID, 4, ours.get_v), expected, 1e-12, "LePE and a convolution of each stripe")
    q, k = normal(2, 2, HEADS, N, 8)
    alone = mine.stripe_attention(q, k, v, GRID, 4)
    checks.equal(ours.mix(q, k, v, GRID), alone + expected, 1e-12, "the mix, and attention plus LePE")


@pytest.mark.paper("S109")
@pytest.mark.parametrize("stripe", [1, 2, 4])
def test_one_layer_sees_a_cross_and_two_see_everything(stripe):
    mixer, x = randomized(mine.CrossShapedWindowAttention(8, 2, stripe, lepe=False)), normal(1, 64, 8)
    upright, level = same_stripes((8, 8), stripe)
    one = receptive_field(mixer, x, (8, 8)) > 1e-12
    checks.equal(one, upright | level, what="what one layer sees, and the cross")
    two = receptive_field(lambda x, grid: mixer(mixer(x, grid), grid), x, (8, 8))
    assert two.min() > 1e-12 and not one.all()


@pytest.mark.paper("S109")
@pytest.mark.parametrize("lepe", [False, True])
@pytest.mark.parametrize(("grid", "dim", "stripe"), [((8, 16), 32, 2), ((16, 16), 64, 4), ((3, 6), 8, 3)])
def test_its_cost_is_that_of_two_stripes_a_token(grid, dim, stripe, lepe):
    h, w = grid
    mixer = mine.CrossShapedWindowAttention(dim, HEADS, stripe, lepe)
    law = h * w * dim * (4 * dim + stripe * h + stripe * w)
    assert mixer.cost(grid).macs == law + 9 * h * w * dim * lepe
    if not lepe:  # the counter of torch counts a grouped convolution as if it were a full one
        checks.cost_law(law, of_grid(mixer, grid), torch.zeros(1, h * w, dim))


def test_wide_stripes_need_the_memory_of_their_scores():
    mixer = mine.CrossShapedWindowAttention(DIM, HEADS, stripe=8)
    assert mixer.cost((8, 32)).bytes == laws.largest_bytes(mixer, (8, 32)) == FLOAT * HEADS // 2 * 256 * 256


def test_the_matrix_of_each_head_is_a_block_for_each_stripe():
    matrix = effective_matrix(
        randomized(mine.CrossShapedWindowAttention(DIM, HEADS, lepe=False)), normal(1, N, DIM), GRID
    )
    checks.rows_sum_to_one(matrix, 1e-12)
    upright, level = same_stripes(GRID, 2)
    checks.equal(matrix[0] > 0, torch.stack([upright, upright, level, level]), what="the support, and the stripes")


def test_it_compiles():
    mixer, x = randomized(mine.CrossShapedWindowAttention(DIM, HEADS)), normal(2, N, DIM)
    checks.compiles(mixer, x, GRID)


def test_what_cannot_work_is_refused():
    with pytest.raises(LabkitError, match="3 heads cannot be halved into upright and level stripes; choose an even"):
        mine.CrossShapedWindowAttention(24, 3)
    with pytest.raises(LabkitError, match="Windows of 8x3 do not tile the grid 8x16"):
        mine.CrossShapedWindowAttention(DIM, HEADS, stripe=3).double()(normal(1, N, DIM), GRID)
