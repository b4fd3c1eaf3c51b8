"""The linear order is the quadratic one; its rank, its crossing point, LiteMLA, and a student's inherited weights."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from timm.models.efficientvit_mit import LiteMLA
from torch import nn

from labkit.attention import linear as mine
from labkit.attention.linear import LinearAttention, inherit_weights, kernel_attention, linear_attention
from labkit.attention.matrix import effective_matrix
from labkit.errors import LabkitError
from labkit.operations import operations
from labkit.vit import ViT
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

DIM, HEADS, GRID = 24, 3, (4, 7)
N = math.prod(GRID)


@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


@pytest.mark.paper("S021")
@pytest.mark.parametrize("kernel", mine.KERNELS)
@pytest.mark.parametrize("dwc", [True, False])
def test_the_linear_order_is_the_quadratic_one_forward_and_backward(kernel, dwc):
    fast = randomized(LinearAttention(DIM, HEADS, kernel, dwc))
    plain = randomized(LinearAttention(DIM, HEADS, kernel, dwc, impl="plain"))
    x = normal(2, N, DIM)
    checks.exact_limit(lambda x: fast(x, GRID), lambda x: plain(x, GRID), x, tol=1e-10)
    checks.equal_gradients(lambda x: fast(x, GRID), lambda x: plain(x, GRID), x, tol=1e-10)


@pytest.mark.paper("S021")
def test_its_rows_sum_to_one_and_its_rank_is_at_most_the_head_width():
    q, k = normal(2, 2, HEADS, N, 8).relu()
    matrix = linear_attention(q, k, torch.eye(N, dtype=q.dtype))
    checks.rows_sum_to_one(matrix, tol=1e-12)
    by_hand = torch.einsum("bhid,bhjd->bhij", q, k)
    checks.equal(matrix, by_hand / by_hand.sum(dim=-1, keepdim=True), tol=1e-12)
    assert torch.linalg.matrix_rank(matrix).eq(8).all() and N > 8


@pytest.mark.paper("S021")
def test_fewer_heads_have_a_greater_rank():
    ranks = []
    for heads in (6, 3, 1):
        mixer = randomized(LinearAttention(DIM, heads, dwc=False))
        ranks.append(int(torch.linalg.matrix_rank(effective_matrix(mixer, normal(1, N, DIM), GRID))[0, 0]))
    assert ranks == [4, 8, 24]


@pytest.mark.paper("S021")
def test_the_two_orders_cost_alike_where_n_is_the_head_width():
    dim, heads = 64, 2
    extra = {}
    for n in (16, 32, 128):
        x = torch.zeros(1, n, dim)
        for impl in ("fast", "plain"):
            mixer = LinearAttention(dim, heads, dwc=False, impl=impl)
            counted = sum(step.macs for step in operations(mixer, x, (4, n // 4)))
            assert counted == mixer.cost((4, n // 4)).macs
            extra[n, impl] = counted - 4 * n * dim**2
        assert (extra[n, "fast"], extra[n, "plain"]) == (2 * n * dim**2 // heads, 2 * n**2 * dim)
    assert extra[16, "fast"] > extra[16, "plain"]
    assert extra[32, "fast"] == extra[32, "plain"]
    assert extra[128, "fast"] < extra[128, "plain"]


@pytest.mark.paper("S021")
def test_it_is_the_linear_attention_of_timm():
    """One scale of EfficientViT's LiteMLA; it computes in float32 and adds 1e-5 to the divisor."""
    ours = randomized(LinearAttention(DIM, HEADS, dwc=False))
    theirs = LiteMLA(DIM, DIM, HEADS, dim=8, scales=(), use_bias=True, norm_layer=(None, None)).double().eval()
    with torch.no_grad():
        for name in ("weight", "bias"):
            by_head = rearrange(getattr(ours.qkv, name), "(t h d) ... -> (h t d) ...", t=3, h=HEADS)
            getattr(theirs.qkv.conv, name).copy_(by_head.view_as(getattr(theirs.qkv.conv, name)))
            given = getattr(theirs.proj.conv, name)
            given.copy_(getattr(ours.proj, name).view_as(given))
    x = normal(2, N, DIM)
    expected = rearrange(theirs(rearrange(x, "b (h w) d -> b d h w", h=GRID[0])), "b d h w -> b (h w) d")
    checks.equal(ours(x, GRID), expected, tol=1e-4)


@pytest.mark.paper("S021")
def test_the_convolution_adds_the_neighbourhood_of_each_value():
    mixer = randomized(LinearAttention(DIM, HEADS))
    q, k, v = normal(3, 1, HEADS, N, 8)
    image = rearrange(v, "b a (h w) d -> b (a d) h w", h=GRID[0])
    local = F.conv2d(image, mixer.dwc.weight, padding=2, groups=DIM)
    local = rearrange(local, "b (a d) h w -> b a (h w) d", a=HEADS)
    checks.equal(mixer.mix(q, k, v, GRID), kernel_attention(q.relu(), k.relu(), v) + local, tol=1e-10)
    nn.init.zeros_(mixer.dwc.weight)
    checks.equal(
        mixer.mix(q, k, v, GRID), linear_attention(q.relu(), k.relu(), v), what="without and with zero weights"
    )


@pytest.mark.paper("S021")
def test_a_student_inherits_everything_but_its_attention():
    teacher, student = (ViT(16, 4, 5, DIM, 2, HEADS, pool="avg", class_token=False) for _ in range(2))
    for block in student.blocks:
        block.attn = LinearAttention(DIM, 1)
    before = {name: weight.clone() for name, weight in student.state_dict().items()}
    teacher = randomized(teacher).float()
    left = inherit_weights(student, teacher)
    after, given = student.state_dict(), teacher.state_dict()
    assert left == [name for name in after if ".attn." in name] and len(left) == 2 * 5
    for name in after:
        same = before[name] if name in left else given[name]
        assert torch.equal(after[name], same), name
    assert not torch.equal(after["head.weight"], before["head.weight"])
    assert student(torch.zeros(1, 3, 16, 16)).shape == (1, 5)


def test_what_cannot_be_inherited_is_refused_before_anything_is_copied():
    teacher, student = (ViT(16, 4, 5, DIM, depth, HEADS, pool="avg") for depth in (1, 2))
    with pytest.raises(LabkitError, match="The student holds no LinearAttention"):
        inherit_weights(student, teacher)
    student.blocks[0].attn = LinearAttention(DIM, 1)
    before = student.head.weight.clone()
    nn.init.normal_(teacher.head.weight)
    with pytest.raises(LabkitError, match=r"The teacher has no blocks\.1\.norm1\.weight of shape \(24,\)"):
        inherit_weights(student, teacher)
    assert torch.equal(student.head.weight, before)


def test_a_query_that_meets_no_key_gets_nothing_and_keeps_finite_gradients():
    phi_q = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], requires_grad=True)
    phi_k, v = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 0.0]]), torch.eye(3)
    for attend in (linear_attention, kernel_attention):
        out = attend(phi_q, phi_k, v)
        checks.equal(out, torch.tensor([[2 / 3, 1 / 3, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), tol=1e-7)
        assert torch.autograd.grad(out.sum(), phi_q)[0].isfinite().all()


def test_rows_with_negative_sums_still_sum_to_one():
    phi_q, phi_k = torch.tensor([[1.0, -1.0], [1.0, 1.0]]), torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    for attend in (linear_attention, kernel_attention):
        checks.equal(attend(phi_q, phi_k, torch.eye(2)), torch.tensor([[0.5, 0.5], [0.75, 0.25]]), tol=1e-7)


def test_elu_features_are_positive_and_those_of_the_paper():
    x = normal(50).sort().values
    by_hand = torch.where(x > 0, x + 1, x.exp())
    checks.equal(mine.KERNELS["elu"](x), by_hand, tol=1e-12)
    checks.rows_sum_to_one(
        linear_attention(by_hand[:, None], by_hand[:, None], torch.eye(50, dtype=x.dtype)), tol=1e-12
    )


def test_it_does_not_know_where_tokens_are_unless_it_convolves():
    x = normal(1, N, DIM)
    plain, local = (randomized(LinearAttention(DIM, HEADS, dwc=dwc)) for dwc in (False, True))
    checks.permutation_equivariant(lambda x: plain(x, GRID), x, tol=1e-10)
    with pytest.raises(AssertionError, match=r"fn\(permuted\)"):
        checks.permutation_equivariant(lambda x: local(x, GRID), x, tol=1e-10)


def test_an_unknown_kernel_is_refused():
    with pytest.raises(LabkitError, match="kernel='tanh' is unknown"):
        LinearAttention(DIM, HEADS, kernel="tanh")


def test_it_compiles():
    mixer, x = randomized(LinearAttention(DIM, HEADS)), normal(1, N, DIM)
    checks.compiles(mixer, x, GRID)
