"""The local affinity is a convolution and a banded Toeplitz matrix at once; the global one is attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention
from torch import nn

from labkit.attention import relation as mine
from labkit.attention.matrix import receptive_field
from labkit.errors import LabkitError
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

DIM, HEADS, GRID = 8, 2, (6, 7)
N = GRID[0] * GRID[1]
CELLS = torch.cartesian_prod(*(torch.arange(side) for side in GRID))


def toeplitz(kernel: torch.Tensor) -> torch.Tensor:
    """(c, n, n) from kernels (c, 1, k, k): entry i, j is the tap of the step from i to j, or 0 outside the band."""
    reach = kernel.shape[-1] // 2
    step = CELLS - CELLS[:, None] + reach
    inside = ((step >= 0) & (step <= 2 * reach)).all(dim=-1)
    down, right = step.clamp(0, 2 * reach).unbind(dim=-1)
    return kernel[:, 0, down, right] * inside


@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


@pytest.mark.paper("S132")
@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_local_affinity_is_a_banded_toeplitz_matrix_and_a_depthwise_convolution(k):
    mixer, x = randomized(mine.RelationAggregator(DIM, HEADS, "local", k)), normal(2, N, DIM)
    matrix, values = toeplitz(mixer.affinity), mixer.qkv(x)
    assert int((matrix[0, 3 * GRID[1] + 3] != 0).sum()) == k * k
    by_matrix = mixer.proj(torch.einsum("cij,bjc->bic", matrix, values))
    checks.equal(mixer(x, GRID), by_matrix, tol=1e-12, what="the mixer and its matrices")
    conv = nn.Conv2d(DIM, DIM, k, padding=k // 2, groups=DIM, bias=False).double()
    conv.load_state_dict({"weight": mixer.affinity})
    by_conv = mixer.proj(conv(values.mT.unflatten(-1, GRID)).flatten(2).mT)
    checks.equal(mixer(x, GRID), by_conv, tol=1e-12, what="the mixer and the depthwise convolution")


@pytest.mark.paper("S132")
def test_the_global_affinity_is_attention_as_in_timm():
    mixer, x = randomized(mine.RelationAggregator(DIM, HEADS, "global")), normal(2, N, DIM)
    q, k, v = mixer.project(x, GRID)
    checks.equal(mixer.mix(q, k, v, GRID), F.scaled_dot_product_attention(q, k, v), tol=1e-12)
    theirs = Attention(DIM, HEADS, qkv_bias=True).double()
    theirs.load_state_dict(mixer.state_dict())
    checks.exact_limit(lambda x: mixer(x, GRID), theirs, x, tol=1e-12)


@pytest.mark.paper("S132")
def test_zero_positions_are_the_identity():
    position, x = randomized(mine.DynamicPosConv(DIM)), normal(2, N, DIM)
    expected = x + torch.einsum("cij,bjc->bic", toeplitz(position.kernel), x) + position.bias
    checks.equal(position(x, GRID), expected, tol=1e-12)
    for parameter in position.parameters():
        nn.init.zeros_(parameter)
    checks.equal(position(x, GRID), x, what="the tokens after and before")


@pytest.mark.paper("S132")
@pytest.mark.parametrize("kind", ["local", "global"])
def test_only_the_local_kind_cares_where_a_token_is_and_it_moves_with_the_picture(kind):
    """A patch in the middle, moved by (1, 2): the convolution's answer moves along; far from the border, so exactly."""
    mixer = randomized(mine.RelationAggregator(DIM, HEADS, kind, 3, bias=False))
    picture = torch.zeros(1, DIM, 9, 9, dtype=torch.float64)
    picture[..., 2:5, 2:5] = normal(1, DIM, 3, 3)
    moved = picture.roll((1, 2), (2, 3))

    def run(picture):
        return mixer(picture.flatten(2).mT, (9, 9)).mT.unflatten(-1, (9, 9))

    checks.equal(run(moved), run(picture).roll((1, 2), (2, 3)), tol=1e-12)
    order = torch.randperm(81, generator=torch.Generator().manual_seed(0))
    shuffled = run(picture.flatten(2)[..., order].unflatten(-1, (9, 9))).flatten(2)
    follows = torch.allclose(shuffled, run(picture).flatten(2)[..., order], atol=1e-10)
    assert follows == (kind == "global"), "attention knows no places, a convolution does."


@pytest.mark.paper("S132")
@pytest.mark.parametrize("k", [3, 5])
def test_the_local_kind_sees_exactly_its_cells(k):
    field = receptive_field(randomized(mine.RelationAggregator(DIM, HEADS, "local", k)), normal(1, N, DIM), GRID)
    near = (CELLS[:, None] - CELLS).abs().amax(dim=-1) <= k // 2
    assert torch.equal(field > 0, near)


def test_the_positions_keep_the_conventions_and_their_law_of_cost():
    position, x = randomized(mine.DynamicPosConv(DIM, 5)), normal(2, N, DIM)
    checks.cost_law(position.cost(GRID).macs, lambda x: position(x, GRID), x[:1])
    checks.batch_independent(lambda x: position(x, GRID), x)
    checks.equal(
        torch.tensor(laws.largest_bytes(mine.DynamicPosConv(laws.DIM), GRID)),
        torch.tensor(mine.DynamicPosConv(laws.DIM).cost(GRID).bytes),
    )


def test_what_cannot_work_is_said():
    with pytest.raises(LabkitError, match='kind=\'focal\' is unknown; choose "local" or "global"'):
        mine.RelationAggregator(DIM, HEADS, "focal")
    with pytest.raises(LabkitError, match="4x4 cells has no middle one"):
        mine.RelationAggregator(DIM, HEADS, "local", 4)
    with pytest.raises(LabkitError, match="for the grid 6x7"):
        mine.RelationAggregator(DIM, HEADS)(torch.zeros(1, N + 1, DIM), GRID)


def test_it_compiles():
    mixer, x = randomized(mine.RelationAggregator(DIM, HEADS)), normal(1, N, DIM)
    checks.compiles(mixer, x, GRID)
