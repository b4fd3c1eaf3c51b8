"""Attention among neighbours is full attention under the explicit mask of neighbours, and moves as a convolution."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from labkit.attention import neighbourhood as mine
from labkit.attention.mixer import Mixer
from labkit.errors import LabkitError
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

GRID, N = (8, 16), 128
DIM, HEADS = 32, 4


def of_grid(mixer, grid=GRID):
    return lambda x: mixer(x, grid)


def meets(axis, place, cell, kernel, dilation, whole):
    """Does the window of `place` hold `cell`? Told for one axis, from the definition."""
    reachable = range(place % dilation, axis, dilation)
    middle = reachable.index(place)
    first = middle - kernel // 2
    if whole:
        first = min(max(first, 0), len(reachable) - kernel)
    return cell in reachable and first <= reachable.index(cell) < first + kernel


def explicit_mask(grid, kernel, dilation, whole):
    """(n, n), pair by pair."""
    rows, columns = (
        [[meets(side, i, j, k, d, whole) for j in range(side)] for i in range(side)]
        for side, k, d in zip(grid, kernel, dilation, strict=True)
    )
    return torch.tensor(rows).repeat_interleave(grid[1], 0).repeat_interleave(grid[1], 1) & torch.tensor(
        columns
    ).repeat(grid[0], grid[0])


def masked_attention(q, k, v, may_meet):
    scores = q @ k.mT * q.shape[-1] ** -0.5
    return scores.masked_fill(~may_meet, -torch.inf).softmax(dim=-1) @ v


@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


@pytest.mark.paper("S133")
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("grid", "kernel", "dilation"),
    [((8, 16), (5, 5), (1, 1)), ((8, 16), (3, 3), (2, 2)), ((7, 10), (3, 1), (2, 3)), ((9, 5), (1, 5), (4, 1))],
)
def test_it_is_full_attention_under_the_mask_of_neighbours(grid, kernel, dilation, whole):
    """At every position, also at the border: what lies outside is no key at all."""
    qkv, may_meet = normal(3, 2, HEADS, math.prod(grid), 6), explicit_mask(grid, kernel, dilation, whole)
    near = mine.around(grid, kernel, dilation, whole)

    def ours(t):
        return mine.gathered_attention(*t, near)

    checks.equal(ours(qkv), masked_attention(*qkv, may_meet), 1e-12, "gathered and masked attention")
    checks.equal_gradients(ours, lambda t: masked_attention(*t, may_meet), qkv, 1e-11)
    if whole:
        assert (may_meet.sum(dim=-1) == math.prod(kernel)).all()


@pytest.mark.paper("S133")
@pytest.mark.parametrize(("kind", "kernel"), [(mine.SlidingAttention, (13, 17)), (mine.NeighbourhoodAttention, (7, 9))])
def test_a_window_that_holds_the_grid_is_dense_attention(kind, kernel):
    """Sliding windows need twice the grid for that, as the corners ask too; those that stop need it once."""
    ours, dense = randomized(kind(DIM, HEADS, kernel)), randomized(Mixer(DIM, HEADS))
    checks.exact_limit(of_grid(ours, (7, 9)), of_grid(dense, (7, 9)), normal(2, 63, DIM), tol=1e-12)


@pytest.mark.paper("S133")
def test_a_kernel_as_large_as_the_map_is_global_attention_at_its_centre():
    x, weights = normal(2, 8, 7, 7), normal(3, 12, 8)
    q, k, v = (torch.einsum("bchw,dc->bhwd", x, w).flatten(1, 2).unflatten(2, (4, 3)).transpose(1, 2) for w in weights)
    globally = (q @ k.mT / 3**0.5).softmax(dim=-1) @ v
    ours = mine.msa_conv(x, *weights, kernel=7)
    checks.equal(ours[:, :, 3, 3], globally[:, :, 24].flatten(1), 1e-12, "the centre, and global attention there")
    assert (ours[:, :, 0, 0] - globally[:, :, 0].flatten(1)).abs().max() > 1e-3  # a corner sees a quarter


@pytest.mark.paper("S133")
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (5, 3, 2), (7, 4, 3), (1, 2, 1)])
def test_the_maps_are_those_of_a_convolution(kernel, stride, dilation):
    """The size is the convolution's, and with queries of zero so are the outputs: a mean of the values it covers."""
    x, weights = normal(2, 8, 9, 14), normal(3, 8, 8)
    padding = dilation * (kernel // 2)
    out = mine.msa_conv(x, *weights, kernel, stride, dilation)
    assert out.shape[2:] == tuple((side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for side in (9, 14))
    box = torch.ones(8, 1, kernel, kernel, dtype=torch.float64)
    values = torch.einsum("bchw,dc->bdhw", x, weights[2])
    summed, covered = (F.conv2d(t, box, None, stride, padding, dilation, groups=8) for t in (values, values * 0 + 1))
    unasked = mine.msa_conv(x, weights[0] * 0, weights[1], weights[2], kernel, stride, dilation)
    checks.equal(unasked, summed / covered, 1e-12, "attention without a question, and the mean by convolution")
    dense = mine.msa_conv(x, *weights, kernel, 1, dilation)
    checks.equal(out, dense[:, :, ::stride, ::stride], 1e-12, "a stride, and every stride-th place without one")


@pytest.mark.paper("S133")
@pytest.mark.parametrize("whole", [False, True])
def test_it_moves_with_the_picture_in_the_interior(whole):
    kind = mine.NeighbourhoodAttention if whole else mine.SlidingAttention
    mixer, picture = randomized(kind(DIM, HEADS, kernel=3, dilation=2)), normal(2, 12, 14, DIM)
    here, there = (
        mixer(picture[:, i : i + 10, j : j + 10].flatten(1, 2), (10, 10)).unflatten(1, (10, 10))
        for i, j in ((0, 0), (1, 3))
    )
    # Two cells from each border nothing differs: a kernel of 3 at a dilation of 2 reaches no farther.
    checks.equal(here[:, 3:8, 5:8], there[:, 2:7, 2:5], 1e-12, "the interior, before and after the move")
    assert (here[:, 1:, 3:] - there[:, :-1, :-3]).abs().max() > 1e-3  # the border does feel it


@pytest.mark.paper("S133")
@pytest.mark.parametrize("kind", [mine.SlidingAttention, mine.NeighbourhoodAttention])
def test_its_cost_is_linear_in_the_tokens(kind):
    mixer = kind(DIM, HEADS, kernel=(5, 3))
    for grid in ((8, 16), (16, 16), (6, 5)):
        n = math.prod(grid)
        law = n * (4 * DIM**2 + 2 * 15 * DIM)
        assert mixer.cost(grid).macs == law
        assert mixer.cost(grid).bytes == laws.largest_bytes(mixer, grid)
        checks.cost_law(law, of_grid(mixer, grid), torch.zeros(1, n, DIM))


def test_it_compiles():
    mixer, x = randomized(mine.SlidingAttention(DIM, HEADS, kernel=3)), normal(2, N, DIM)
    checks.compiles(mixer, x, GRID)


def test_what_cannot_work_is_refused():
    with pytest.raises(LabkitError, match="A kernel of 4 has no cell in its middle; choose odd sides"):
        mine.SlidingAttention(DIM, HEADS, kernel=4)
    with pytest.raises(LabkitError, match="A kernel of 2 has no cell in its middle"):
        mine.msa_conv(normal(1, 8, 5, 5), *normal(3, 8, 8), kernel=2)
    with pytest.raises(LabkitError, match="A kernel of 5 with a dilation of 2 needs 10 cells and the axis has 8"):
        mine.NeighbourhoodAttention(DIM, HEADS, kernel=5, dilation=2).double()(normal(1, N, DIM), GRID)
    with pytest.raises(LabkitError, match="A kernel of 5 with a dilation of 2 needs 10 cells and the axis has 8"):
        mine.NeighbourhoodAttention(DIM, HEADS, kernel=5, dilation=2).cost((16, 8))  # no price for what cannot be
    assert mine.SlidingAttention(DIM, HEADS, kernel=5, dilation=2).cost((16, 8)).macs > 0
