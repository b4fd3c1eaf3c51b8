"""The FFT gives what the written-out Toeplitz matrix gives, in one and two axes, in n log n operations."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from labkit.attention import toeplitz as mine
from labkit.attention.linear import LinearAttention, linear_attention
from labkit.attention.matrix import effective_matrix
from labkit.attention.toeplitz import ToeplitzAttention, fft_rpe_attention, fft_rpe_attention_2d, rpe_attention
from labkit.errors import LabkitError
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

DIM, HEADS, GRID = 24, 3, (4, 7)
N, D = math.prod(GRID), 8


@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


def inputs(n: int):
    """Positive features of queries and keys, and values."""
    q, k, v = normal(3, 2, HEADS, n, D)
    return q.exp(), k.exp(), v


@pytest.mark.paper("S193")
def test_in_one_axis_it_is_the_row_normalised_product_with_a_toeplitz_matrix():
    n = 13
    (q, k, v), bias = inputs(n), normal(HEADS, 2 * n - 1)
    toeplitz = torch.stack([torch.stack([bias[:, j - i + n - 1] for j in range(n)]) for i in range(n)])
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * toeplitz.permute(2, 0, 1).exp()
    expected = scores / scores.sum(dim=-1, keepdim=True) @ v
    checks.exact_limit(fft_rpe_attention, lambda *_: expected, q, k, v, bias, tol=1e-12)


@pytest.mark.paper("S193")
@pytest.mark.parametrize("grid", [(4, 7), (5, 3), (1, 6), (6, 1)])
def test_in_two_axes_it_is_the_product_with_a_block_toeplitz_matrix(grid):
    h, w = grid
    (q, k, v), bias = inputs(h * w), normal(HEADS, 2 * h - 1, 2 * w - 1)
    gain = torch.empty(HEADS, h * w, h * w, dtype=torch.float64)
    for i in range(h * w):
        for j in range(h * w):
            gain[:, i, j] = bias[:, j // w - i // w + h - 1, j % w - i % w + w - 1].exp()
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * gain
    expected = scores / scores.sum(dim=-1, keepdim=True) @ v
    checks.equal(fft_rpe_attention_2d(q, k, v, bias), expected, tol=1e-12)
    checks.equal(rpe_attention(q, k, v, bias), expected, tol=1e-12)


@pytest.mark.paper("S193")
@pytest.mark.parametrize("constant", [0.0, -3.0])
def test_without_a_preference_it_is_plain_linear_attention(constant):
    q, k, v = inputs(N)
    expected = linear_attention(q, k, v)
    checks.equal(fft_rpe_attention(q, k, v, torch.full((HEADS, 2 * N - 1), constant).double()), expected, tol=1e-12)
    bias = torch.full((HEADS, 2 * GRID[0] - 1, 2 * GRID[1] - 1), constant).double()
    checks.equal(fft_rpe_attention_2d(q, k, v, bias), expected, tol=1e-12)


@pytest.mark.paper("S193")
def test_a_fresh_mixer_is_linear_attention_with_the_same_weights():
    plain, ours = randomized(LinearAttention(DIM, HEADS, "elu", dwc=False)), ToeplitzAttention(DIM, HEADS, GRID)
    ours = ours.double()
    ours.load_state_dict(ours.state_dict() | plain.state_dict())
    checks.exact_limit(lambda x: ours(x, GRID), lambda x: plain(x, GRID), normal(2, N, DIM), tol=1e-12)


@pytest.mark.paper("S193")
def test_the_fft_is_the_matrix_forward_and_backward():
    fast = randomized(ToeplitzAttention(DIM, HEADS, GRID), std=0.5)
    plain = randomized(ToeplitzAttention(DIM, HEADS, GRID, impl="plain"), std=0.5)
    x = normal(2, N, DIM)
    checks.exact_limit(lambda x: fast(x, GRID), lambda x: plain(x, GRID), x, tol=1e-10)
    checks.equal_gradients(lambda x: fast(x, GRID), lambda x: plain(x, GRID), x, tol=1e-10)
    for mixer in (fast, plain):
        (mixer(x, GRID) * normal(2, N, DIM)).sum().backward()
    checks.equal(fast.displacement.grad, plain.displacement.grad, tol=1e-10)


class _Transforms(TorchDispatchMode):
    """5 n log2 n for every complex transform of n numbers, half of that when one side is real."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out, name = func(*args, **(kwargs or {})), func._overloadpacket.__name__
        if name.startswith("_fft_"):
            one_side_real = name != "_fft_c2c"
            full = out if name == "_fft_c2r" else args[0]
            length = math.prod(full.shape[axis] for axis in args[1])
            self.operations += 5 * full.numel() * math.log2(length) / (2 if one_side_real else 1)
        return out


def transforms(grid) -> float:
    """The operations of the transforms that one head of one feature and one value takes, counted."""
    phi, bias = torch.ones(1, 1, math.prod(grid), 1), torch.zeros(1, 2 * grid[0] - 1, 2 * grid[1] - 1)
    with _Transforms() as counter:
        fft_rpe_attention_2d(phi, phi, phi, bias)
    return counter.operations


@pytest.mark.paper("S193")
@pytest.mark.parametrize("grids", [[(1, 2**i) for i in range(4, 14)], [(2**i, 2**i) for i in range(2, 7)]])
def test_its_transforms_take_n_log_n_operations(grids):
    """From 16 to 8192 tokens n log n grows 1434-fold and n² 262144-fold, n being that of the padded grid."""
    per_unit = []
    for h, w in grids:
        padded = 4 * h * w if h > 1 else 2 * w
        per_unit.append(transforms((h, w)) / (padded * math.log2(padded)))
    assert per_unit[0] > 0 and max(per_unit) / min(per_unit) < 1.15, per_unit


@pytest.mark.paper("S193")
def test_its_matrix_has_more_directions_than_the_head_has_channels():
    mixer = randomized(ToeplitzAttention(DIM, HEADS, GRID), std=0.5)
    matrix = effective_matrix(mixer, normal(1, N, DIM), GRID)
    checks.rows_sum_to_one(matrix, tol=1e-10)
    assert torch.linalg.matrix_rank(matrix).gt(D).all()


def test_large_biases_do_not_overflow():
    q, k, v = inputs(N)
    bias = torch.full((HEADS, 2 * N - 1), 1000.0).double()
    checks.equal(fft_rpe_attention(q, k, v, bias), linear_attention(q, k, v), tol=1e-12)


def test_what_does_not_fit_is_refused():
    with pytest.raises(LabkitError, match="The gains belong to the grid 4x7, the tokens to 7x4; make the mixer with"):
        ToeplitzAttention(DIM, HEADS, GRID)(torch.zeros(1, N, DIM), (7, 4))
    q, k, v = inputs(N)
    for shape in [(HEADS, 7, 12), (HEADS, 7, 11)]:
        with pytest.raises(LabkitError, match=rf"A bias of 7x{shape[2]} displacements does not fit 28 tokens"):
            fft_rpe_attention_2d(q, k, v, torch.zeros(shape))


def test_it_compiles():
    mixer, x = randomized(ToeplitzAttention(DIM, HEADS, GRID)), normal(1, N, DIM)
    checks.compiles(mixer, x, GRID)
