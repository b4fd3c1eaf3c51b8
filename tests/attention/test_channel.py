"""Transposed attention is timm's XCA; its matrix over tokens is the identity and its Jacobian is full."""

from __future__ import annotations

import math

import pytest
import torch
from timm.layers import GluMlp
from timm.models.xcit import XCA
from torch import nn

from labkit.attention import channel as mine
from labkit.attention.channel import GatedDWFFN, TransposedAttention
from labkit.attention.matrix import effective_matrix, receptive_field
from labkit.errors import LabkitError
from labkit.operations import operations
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

DIM, HEADS, GRID = 24, 3, (4, 7)
N, D = math.prod(GRID), 8


@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


@pytest.mark.paper("S169")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_without_convolutions_it_is_cross_covariance_attention_in_timm(bias, fused):
    ours = randomized(TransposedAttention(DIM, HEADS, dwc=False, bias=bias))
    theirs = XCA(DIM, HEADS, qkv_bias=bias).double()
    theirs.fused_attn = fused
    theirs.load_state_dict(ours.state_dict())
    x = normal(2, N, DIM)
    checks.exact_limit(lambda x: ours(x, GRID), theirs, x, tol=1e-12)
    checks.equal_gradients(lambda x: ours(x, GRID), theirs, x, tol=1e-12)


@pytest.mark.paper("S169")
def test_with_a_kernel_that_sees_only_its_centre_the_convolution_changes_nothing():
    ours, plain = randomized(TransposedAttention(DIM, HEADS)), randomized(TransposedAttention(DIM, HEADS, dwc=False))
    plain.load_state_dict({name: w for name, w in ours.state_dict().items() if name != "dwc.weight"})
    x = normal(2, N, DIM)
    assert (ours(x, GRID) - plain(x, GRID)).abs().max() > 1e-3
    nn.init.dirac_(ours.dwc.weight, groups=3 * DIM)
    checks.exact_limit(lambda x: ours(x, GRID), lambda x: plain(x, GRID), x, tol=1e-12)


@pytest.mark.paper("S169")
def test_any_order_of_the_tokens_is_as_good_until_a_convolution_looks():
    x = normal(2, N, DIM)
    plain, local = (randomized(TransposedAttention(DIM, HEADS, dwc=dwc)) for dwc in (False, True))
    checks.permutation_equivariant(lambda x: plain(x, GRID), x, tol=1e-12)
    with pytest.raises(AssertionError, match=r"fn\(permuted\)"):
        checks.permutation_equivariant(lambda x: local(x, GRID), x, tol=1e-3)


@pytest.mark.paper("S169")
def test_the_map_has_the_size_of_a_head_and_the_cost_is_linear_in_the_tokens():
    mixer, counts = randomized(TransposedAttention(DIM, HEADS)).float(), []
    for grid in [(4, 4), (8, 8), (16, 16)]:
        x = torch.zeros(1, math.prod(grid), DIM)
        q, k, _ = mixer.project(x, grid)
        assert mixer.scores(q, k).shape == (1, HEADS, D, D)
        counts.append(sum(step.macs for step in operations(mixer, x, grid)))
        assert mixer.cost(grid).macs == counts[-1]
    assert counts[1:] == [4 * counts[0], 16 * counts[0]]


@pytest.mark.paper("S169")
def test_the_temperature_bounds_the_scores_however_large_the_tokens():
    mixer = randomized(TransposedAttention(DIM, HEADS))
    nn.init.constant_(mixer.temperature, 3.0)
    q, k, _ = mixer.project(1e4 * normal(2, N, DIM), GRID)
    scores = mixer.scores(q, k)
    assert scores.abs().max() <= 3 + 1e-12
    checks.equal(mixer.scores(q, q).diagonal(dim1=-2, dim2=-1), torch.full((2, HEADS, D), 3.0), tol=1e-12)
    checks.equal(mixer.scores(q / 7, 5 * k), scores, tol=1e-12)


@pytest.mark.paper("S169")
@pytest.mark.parametrize("dwc", [True, False])
def test_its_matrix_is_diagonal_and_its_jacobian_is_full(dwc):
    """A value never leaves its token, and yet every token has a say in how channels are mixed everywhere."""
    mixer, x = randomized(TransposedAttention(DIM, HEADS, dwc=dwc)), normal(1, N, DIM)
    checks.equal(effective_matrix(mixer, x, GRID), torch.eye(N).expand(1, HEADS, N, N), tol=1e-12)
    q, k, v = mixer.project(x, GRID)
    other = v.clone()
    other[:, :, 3] += 1
    moved = (mixer.mix(q, k, other, GRID) - mixer.mix(q, k, v, GRID)).abs().sum(dim=(0, 1, 3))
    assert moved.nonzero().flatten().tolist() == [3]
    assert receptive_field(mixer, x, GRID).min() > 1e-4


@pytest.mark.paper("S169")
def test_the_gated_mlp_without_convolutions_is_the_geglu_of_timm():
    ours = randomized(GatedDWFFN(DIM, ratio=2, dwc=False, bias=True))
    theirs = GluMlp(DIM, 4 * DIM, act_layer=nn.GELU, gate_last=False).double()
    theirs.load_state_dict(ours.state_dict())
    checks.exact_limit(lambda x: ours(x, GRID), theirs, normal(2, N, DIM), tol=1e-12)


@pytest.mark.paper("S169")
def test_the_gated_mlp_looks_at_its_neighbours_and_no_further():
    ours, plain = randomized(GatedDWFFN(DIM)), randomized(GatedDWFFN(DIM, dwc=False))
    x = normal(1, N, DIM)
    seen = receptive_field(ours, x, GRID)
    cells = torch.cartesian_prod(torch.arange(GRID[0]), torch.arange(GRID[1]))
    near = (cells[:, None] - cells[None]).abs().amax(dim=-1) <= 1
    assert torch.equal(seen > 0, near)
    plain.load_state_dict({name: w for name, w in ours.state_dict().items() if name != "dwc.weight"})
    nn.init.dirac_(ours.dwc.weight, groups=len(ours.dwc.weight))
    checks.exact_limit(lambda x: ours(x, GRID), lambda x: plain(x, GRID), x, tol=1e-12)


def test_the_gated_mlp_keeps_the_conventions_of_a_layer():
    mlp, x = GatedDWFFN(DIM), normal(2, N, DIM).float()
    assert mlp.fc2.in_features == 63  # 2.66 x 24, rounded down
    wrapped = Layer(mlp)
    checks.batch_independent(wrapped, x)
    checks.gradients_flow(wrapped, x)
    checks.follows_dtype_and_device(wrapped, x)
    with pytest.raises(LabkitError, match=r"expected \(batch, 16, width\) for the grid 4x4"):
        mlp(x, (4, 4))


class Layer(nn.Module):
    """A layer on the one grid of these tests."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x, GRID)


def test_it_compiles():
    mixer, x = randomized(TransposedAttention(DIM, HEADS)), normal(1, N, DIM)
    checks.compiles(mixer, x, GRID)
