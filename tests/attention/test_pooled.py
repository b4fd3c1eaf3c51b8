"""Pooled keys: the weights are timm's, a stride of one is dense attention, and constant squares lose nothing."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from timm.models import mvitv2, pvt_v2
from torch import Tensor, nn

from labkit.attention import pooled as mine
from labkit.attention.matrix import effective_matrix
from labkit.attention.mixer import Mixer
from labkit.attention.pooled import PoolingAttention, SpatialReductionAttention, StripSelfAttention
from labkit.errors import LabkitError
from labkit.operations import operations
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

DIM, HEADS, GRID = 24, 3, (4, 8)
N = math.prod(GRID)


def on(grid: tuple[int, int], mixer: nn.Module):
    return lambda x: mixer(x, grid)


def products(mixer: nn.Module, grid: tuple[int, int]) -> int:
    """MACs of the scores and of the probabilities with the values: what no layer owns."""
    x = torch.zeros(1, math.prod(grid), DIM)
    return sum(step.macs for step in operations(mixer, x, grid) if step.weight_bytes == 0)


def sdpa_of(mixer: Mixer, q: nn.Linear, kv: nn.Linear):
    """Attention of all tokens with all tokens by torch, with the weights of the mixer."""

    def attend(x: Tensor) -> Tensor:
        split = (rearrange(t, "b n (h d) -> b h n d", h=HEADS) for t in (q(x), *kv(x).chunk(2, dim=-1)))
        return mixer.proj(rearrange(F.scaled_dot_product_attention(*split), "b h n d -> b n (h d)"))

    return attend


@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


@pytest.mark.paper("S143")
@pytest.mark.parametrize("ratio", [1, 2, 4])
def test_spatial_reduction_has_the_weights_and_the_outputs_of_timm(ratio):
    theirs = randomized(pvt_v2.Attention(DIM, HEADS, sr_ratio=ratio))
    ours = SpatialReductionAttention(DIM, HEADS, ratio).double()
    ours.load_state_dict(theirs.state_dict())
    checks.exact_limit(on(GRID, ours), lambda x: theirs(x, GRID), normal(2, N, DIM), tol=1e-10)


@pytest.mark.paper("S143")
def test_a_pyramid_of_timm_runs_on_it_with_strides_of_4_8_16_and_32():
    shape = {
        "depths": (1, 1, 1, 1),
        "embed_dims": (8, 16, 24, 32),
        "num_heads": (1, 2, 3, 4),
        "sr_ratios": (8, 4, 2, 1),
    }
    model = randomized(pvt_v2.PyramidVisionTransformerV2(num_classes=5, mlp_ratios=(2, 2, 2, 2), **shape))
    images = normal(1, 3, 64, 96)
    logits = model(images)
    for stage in model.stages:
        attn = stage.blocks[0].attn
        ours = SpatialReductionAttention(attn.dim, attn.num_heads, attn.sr.stride[0] if attn.sr else 1).double()
        ours.load_state_dict(attn.state_dict())
        stage.blocks[0].attn = ours
    checks.equal(model(images), logits, tol=1e-10, what="logits before and after")
    maps = model.forward_intermediates(images, intermediates_only=True)
    assert [tuple(map_.shape[-2:]) for map_ in maps] == [(64 // s, 96 // s) for s in (4, 8, 16, 32)]


@pytest.mark.paper("S143")
def test_a_ratio_of_one_is_dense_attention():
    mixer = randomized(SpatialReductionAttention(DIM, HEADS, 1))
    checks.exact_limit(on(GRID, mixer), sdpa_of(mixer, mixer.q, mixer.kv), normal(2, N, DIM), tol=1e-10)


@pytest.mark.paper("S143")
@pytest.mark.parametrize("ratio", [1, 2, 4])
def test_the_scores_cost_n_squared_over_the_square_of_the_ratio(ratio):
    assert products(SpatialReductionAttention(DIM, HEADS, ratio), (8, 16)) == 2 * 128**2 * DIM // ratio**2


@pytest.mark.paper("S143")
def test_constant_squares_lose_nothing():
    """r² equal keys share what their one stand-in gets, so the output and, by the footprint, the matrix are dense."""
    ratio = 2
    mixer = randomized(SpatialReductionAttention(DIM, HEADS, ratio))
    mixer.norm = nn.Identity()
    with torch.no_grad():
        mixer.sr.bias.zero_()
        mixer.sr.weight.copy_(torch.eye(DIM)[:, :, None, None].expand(-1, -1, ratio, ratio) / ratio**2)
    dense = SpatialReductionAttention(DIM, HEADS, 1).double()
    dense.load_state_dict(mixer.state_dict(), strict=False)
    squares = normal(2, DIM, GRID[0] // ratio, GRID[1] // ratio)
    x = rearrange(squares.repeat_interleave(ratio, 2).repeat_interleave(ratio, 3), "b d h w -> b (h w) d")
    checks.equal(mixer(x, GRID), dense(x, GRID), tol=1e-10)
    checks.equal(effective_matrix(mixer, x, GRID), effective_matrix(dense, x, GRID), tol=1e-10)
    other = normal(2, N, DIM)
    assert (mixer(other, GRID) - dense(other, GRID)).abs().max() > 1e-2  # where squares are not constant, it does


def timm_pooling(q_stride: int, kv_stride: int, kernel: int, cls: bool) -> nn.Module:
    kernels = {"kernel_q": (kernel, kernel), "kernel_kv": (kernel, kernel)}
    strides = {"stride_q": (q_stride, q_stride), "stride_kv": (kv_stride, kv_stride)}
    off = {"rel_pos_type": "none", "residual_pooling": False}
    return randomized(mvitv2.MultiScaleAttention(DIM, DIM, GRID, HEADS, has_cls_token=cls, **kernels, **strides, **off))


@pytest.mark.paper("S187")
@pytest.mark.parametrize("cls", [False, True])
@pytest.mark.parametrize("q_stride, kv_stride, kernel", [(1, 2, 3), (2, 4, 3), (2, 1, 1), (1, 1, 1)])
def test_pooling_has_the_weights_the_outputs_and_the_grid_of_timm(q_stride, kv_stride, kernel, cls):
    theirs = timm_pooling(q_stride, kv_stride, kernel, cls)
    ours = PoolingAttention(DIM, HEADS, q_stride, kv_stride, kernel, cls).double()
    ours.load_state_dict(theirs.state_dict())
    x = normal(2, cls + N, DIM)
    expected, grid = theirs(x, GRID)
    checks.equal(ours(x, GRID), expected, tol=1e-10)
    assert mine.pooled(GRID, q_stride) == tuple(grid)
    assert expected.shape[1] == cls + N // q_stride**2


@pytest.mark.paper("S187")
def test_unit_strides_with_kernels_that_only_look_at_the_centre_are_dense_attention():
    mixer = randomized(PoolingAttention(DIM, HEADS, q_stride=1, kv_stride=1))
    dense = randomized(Mixer(DIM, HEADS))
    for name in "qkv":
        mixer.add_module(f"norm_{name}", nn.Identity())
        nn.init.dirac_(mixer.get_submodule(f"pool_{name}").weight, groups=DIM // HEADS)
    mixer.load_state_dict(dense.state_dict(), strict=False)
    checks.exact_limit(on(GRID, mixer), on(GRID, dense), normal(2, N, DIM), tol=1e-10)


@pytest.mark.paper("S187")
@pytest.mark.parametrize("q_stride, kv_stride", [(1, 1), (2, 1), (1, 2), (2, 4)])
def test_the_scores_cost_n_squared_over_both_strides_squared(q_stride, kv_stride):
    law = 2 * 128**2 * DIM // (q_stride * kv_stride) ** 2
    assert products(PoolingAttention(DIM, HEADS, q_stride, kv_stride), (8, 16)) == law


@pytest.mark.paper("S187")
def test_the_class_token_bypasses_the_convolutions():
    mixer = randomized(PoolingAttention(DIM, HEADS, q_stride=2, kv_stride=2, cls=True))
    x, other = normal(2, 1 + N, DIM), normal(2, 1 + N, DIM).flip(0)
    other[:, 1:] = x[:, 1:]
    for before, after in zip(mixer.project(x, GRID), mixer.project(other, GRID), strict=True):
        checks.equal(before[:, :, 1:], after[:, :, 1:], what="what is pooled from the patches")
        assert (before[:, :, 0] - after[:, :, 0]).abs().min() > 0
    raw = rearrange(mixer.qkv(x[:, 0]), "b (three h d) -> three b h d", three=3, h=HEADS)
    for name, token, pooled in zip("qkv", raw, mixer.project(x, GRID), strict=True):
        checks.equal(pooled[:, :, 0], mixer.get_submodule(f"norm_{name}")(token), tol=1e-12)


@pytest.mark.paper("S187")
def test_its_law_of_cost_holds_with_a_class_token_and_any_strides():
    for options in [(2, 4, 3, True), (2, 2, 1, True), (1, 1, 1, False), (3, 2, 5, False)]:
        mixer = PoolingAttention(DIM, HEADS, *options)
        counted = operations(mixer, torch.zeros(1, options[-1] + N, DIM), GRID)
        assert mixer.cost(GRID).macs == sum(step.macs for step in counted)


@pytest.mark.paper("S300")
def test_a_strip_of_full_width_and_ratio_one_is_dense_attention():
    mixer = randomized(StripSelfAttention(DIM, HEADS, qk_dim=DIM, sr_ratio=1))
    checks.exact_limit(on(GRID, mixer), sdpa_of(mixer, mixer.q, mixer.kv), normal(2, N, DIM), tol=1e-10)


@pytest.mark.paper("S300")
@pytest.mark.parametrize("qk_dim, ratio", [(24, 1), (6, 1), (6, 2), (3, 4)])
def test_a_strip_costs_its_keys_times_both_widths(qk_dim, ratio):
    mixer, n = StripSelfAttention(DIM, HEADS, qk_dim, ratio), 128
    assert products(mixer, (8, 16)) == n * (n // ratio**2) * (qk_dim + DIM)
    counted = sum(step.macs for step in operations(mixer, torch.zeros(1, n, DIM), (8, 16)))
    projections = n * DIM * (qk_dim + DIM) + n // ratio**2 * DIM * (qk_dim + DIM) + (n * DIM**2 if ratio > 1 else 0)
    assert counted == products(mixer, (8, 16)) + projections == mixer.cost((8, 16)).macs


@pytest.mark.paper("S300")
@pytest.mark.parametrize("qk_dim", [3, 6, 12])
def test_a_narrow_strip_bounds_the_rank_of_every_score_map(qk_dim):
    mixer = randomized(StripSelfAttention(DIM, HEADS, qk_dim, sr_ratio=1))
    q, k, _ = mixer.project(normal(2, N, DIM), GRID)
    values = torch.linalg.svdvals(q @ k.transpose(-2, -1))
    rank = (values > 1e-10 * values[..., :1]).sum(dim=-1)
    assert bool((rank == qk_dim // HEADS).all()) and bool((rank <= qk_dim).all())
    checks.rows_sum_to_one(mixer.mix(q, k, torch.eye(N).double().expand(2, HEADS, N, N), GRID), tol=1e-12)


@pytest.mark.paper("S143", "S187", "S300")
@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_the_matrix_gives_each_token_its_share_of_the_keys(variant):
    mixer = randomized(variant.make(DIM, HEADS, GRID))
    footprint = mixer.footprint(GRID)
    checks.rows_sum_to_one(footprint)
    assert footprint.shape == (N // 4, N)
    checks.rows_sum_to_one(effective_matrix(mixer, normal(2, N, DIM), GRID), tol=1e-6)


def test_the_footprint_of_overlapping_keys_is_the_window_of_the_kernel():
    """A key depends on exactly the tokens that its footprint names."""
    mixer = randomized(PoolingAttention(DIM, HEADS))
    x = normal(1, N, DIM).requires_grad_()
    keys = mixer.project(x, GRID)[1]
    reached = [torch.autograd.grad(keys[:, :, i].sum(), x, retain_graph=True)[0][0].any(-1) for i in range(N // 4)]
    checks.equal(torch.stack(reached), mixer.footprint(GRID) > 0)


@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_the_fused_kernel_gives_the_same_outputs_and_gradients(variant):
    mixer, x = randomized(variant.make(DIM, HEADS, GRID)), normal(2, N, DIM)

    def fast(x: Tensor) -> Tensor:
        mixer.impl = "fast"
        out = mixer(x, GRID)
        mixer.impl = "plain"
        return out

    checks.equal(fast(x), mixer(x, GRID), tol=1e-10)
    checks.equal_gradients(fast, on(GRID, mixer), x, tol=1e-10)


def test_it_compiles():
    mixer, x = randomized(SpatialReductionAttention(DIM, HEADS)), normal(1, N, DIM)
    with torch.no_grad():
        checks.compiles(mixer, x, GRID)


def test_what_cannot_be_pooled_is_refused():
    with pytest.raises(LabkitError, match="The grid 4x8 does not divide into squares of 3x3 tokens"):
        SpatialReductionAttention(DIM, HEADS, 3)(normal(1, N, DIM).float(), GRID)
    with pytest.raises(LabkitError, match="qk_dim=4 does not divide into 3 heads"):
        StripSelfAttention(DIM, HEADS, qk_dim=4)
    with pytest.raises(LabkitError, match="A kernel of 2 has no centre"):
        PoolingAttention(DIM, HEADS, kernel=2)
    with pytest.raises(LabkitError, match=r"expected \(batch, 32, width\) for the grid 4x8"):
        PoolingAttention(DIM, HEADS, cls=True)(torch.zeros(1, N, DIM), GRID)
