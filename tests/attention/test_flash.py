"""Attention in blocks is attention, step by step, there and back, and nothing of the size of the map is ever made."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from labkit import memory
from labkit.attention import flash
from labkit.attention.dense import MultiHead, scaled_dot_product
from labkit.attention.flash import Flash, flash_attention, online_softmax, steps
from labkit.attention.matrix import receptive_field
from labkit.errors import LabkitError
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

N = 13
BLOCKS = (1, 2, 5, 12, 13, 14, 100)  # those that divide n, that do not, and that are larger


def qkv(n: int = N, keys: int = N, d: int = 8, e: int = 8):
    """Queries, keys and values of two images with three heads."""
    return normal(2, 3, n, d), normal(4, 3, keys, d)[2:], normal(6, 3, keys, e)[4:]


@pytest.mark.parametrize("variant", flash.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


@pytest.mark.parametrize("block", BLOCKS)
def test_it_is_the_plain_attention_for_every_block(block):
    for inputs in (qkv(), qkv(n=4), qkv(keys=29, e=3)):
        checks.exact_limit(lambda *qkv: flash_attention(*qkv, block), scaled_dot_product, *inputs, tol=1e-12)


@pytest.mark.parametrize("block", BLOCKS)
def test_its_backward_pass_is_the_plain_one(block):
    inputs = [t.requires_grad_() for t in qkv(n=7, e=5)]
    weights = normal(2, 3, 7, 5)
    ours, plain = (
        torch.autograd.grad((out * weights).sum(), inputs)
        for out in (flash_attention(*inputs, block), scaled_dot_product(*inputs))
    )
    checks.equal(ours, plain, 1e-12, "the gradients of q, k and v")


def test_its_backward_pass_is_that_of_differences():
    inputs = [t[:1, :1, :5, :3].clone().requires_grad_() for t in qkv()]
    assert torch.autograd.gradcheck(lambda *qkv: flash_attention(*qkv, 2), inputs)
    assert torch.autograd.gradgradcheck(lambda *qkv: flash_attention(*qkv, 2), inputs)


@pytest.mark.parametrize("block", BLOCKS)
def test_after_each_block_it_knows_the_attention_to_the_keys_so_far(block):
    q, k, v = qkv()
    states = list(steps(q, k, v, block))
    assert len(states) == -(-N // block)
    scores = q @ k.transpose(-2, -1) / 8**0.5
    for i, state in enumerate(states, start=1):
        seen = slice(min(i * block, N))
        checks.equal(state.out, scaled_dot_product(q, k[..., seen, :], v[..., seen, :]), 1e-12, f"step {i}")
        checks.equal(state.m, scores[..., seen].amax(dim=-1, keepdim=True), 1e-12, f"the maximum of step {i}")
        checks.equal(state.logsumexp, scores[..., seen].logsumexp(dim=-1, keepdim=True), 1e-12, f"step {i}")


def test_huge_scores_stay_finite_whenever_they_come():
    """Without the running maximum exp(1000) is infinite; without mending, an early maximum would count for ever."""
    scores = torch.tensor([[1.0, -1000.0, 1000.0, 999.0], [1000.0, 3.0, -1000.0, 0.0]]).double()
    v = normal(4, 3)
    for block in (1, 2, 3, 4):
        *_, last = online_softmax(zip(scores.split(block, dim=-1), v.split(block), strict=True))
        checks.equal(last.out, scores.softmax(dim=-1) @ v, 1e-12, f"huge scores in blocks of {block}")
    q, k, v = (30 * t for t in qkv())
    inputs = [t.clone().requires_grad_() for t in (q, k, v)]
    flash_attention(*inputs, 3).sum().backward()
    assert all(t.grad.isfinite().all() for t in inputs)
    checks.equal(flash_attention(q, k, v, 3), scaled_dot_product(q, k, v), 1e-10, "sharp maps")


def largest(function, *inputs) -> int:
    """Numbers in the largest tensor made on the way to the output and back to the inputs."""
    mode = laws._Largest(inputs[0])
    mode.known |= {t.untyped_storage()._cdata for t in inputs}
    with mode:
        function(*inputs).sum().backward()
    return mode.numel


@pytest.mark.parametrize("n", [256, 512])
def test_nothing_is_as_large_as_the_map_forward_and_backward(n):
    inputs = [torch.randn(1, 1, n, 8).requires_grad_() for _ in range(3)]
    assert largest(scaled_dot_product, *inputs) == n * n
    for block in (16, 48):
        assert largest(lambda *qkv, block=block: flash_attention(*qkv, block), *inputs) == n * block


def held(keys: int, block: int, n: int = 64) -> int:
    """Bytes that live at one time while n queries ask."""
    inputs = [torch.randn(1, 1, rows, 8) for rows in (n, keys, keys)]
    return memory.measure(lambda *qkv: flash_attention(*qkv, block), *inputs).peak


def test_what_is_held_falls_with_the_block_and_does_not_grow_with_their_number():
    """Only the last state is kept: a list of them all would grow with every block."""
    peaks = [held(512, block) for block in (512, 128, 32, 8)]
    assert peaks == sorted(peaks, reverse=True) and peaks[0] > 10 * peaks[-1]
    assert len({held(keys, block=8) for keys in (32, 64, 256, 2048)}) == 1


def test_sums_are_kept_in_single_precision_at_least():
    """A thousand equal weights: in bfloat16 a sum that grows by one stops at 256."""
    q, k = torch.zeros(1, 1, 2, 8, dtype=torch.bfloat16), torch.zeros(1, 1, 1000, 8, dtype=torch.bfloat16)
    v = torch.ones(1, 1, 1000, 8, dtype=torch.bfloat16)
    assert [state.l.dtype for state in steps(q, k, v, 500)] == [torch.float32] * 2
    out = flash_attention(q, k, v, block=1)
    assert out.dtype == torch.bfloat16
    checks.equal(out, torch.ones(1, 1, 2, 8), what="the mean of ones")


def test_the_mixer_is_multi_head_attention_and_its_jacobian_too():
    ours, plain, grid = randomized(Flash(24, 3, block=5)), MultiHead(24, 3).double(), (3, 4)
    plain.load_state_dict(ours.state_dict())
    x = normal(2, 12, 24)
    checks.exact_limit(lambda x: ours(x, grid), lambda x: plain(x, grid), x, tol=1e-12)
    checks.equal_gradients(lambda x: ours(x, grid), lambda x: plain(x, grid), x, tol=1e-12)
    checks.equal(receptive_field(ours, x, grid), receptive_field(plain, x, grid), 1e-12, "the Jacobians")


def test_it_is_the_fused_kernel_of_torch():
    checks.exact_limit(lambda *qkv: flash_attention(*qkv, 4), F.scaled_dot_product_attention, *qkv(), tol=1e-12)


def test_it_compiles():
    mixer, x = randomized(Flash(24, 3, block=5)), normal(2, 12, 24)
    checks.compiles(mixer, x, (3, 4))


def test_a_block_of_nothing_is_refused():
    with pytest.raises(LabkitError, match=r"A block of 0 keys holds nothing; choose block=1 or more\."):
        flash_attention(*qkv(), block=0)
