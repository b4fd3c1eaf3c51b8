"""The sampled kernels have the means and the variances of theory, and their attention becomes the softmax's."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from labkit.attention import random_features as mine
from labkit.attention.linear import linear_attention
from labkit.attention.matrix import effective_matrix
from labkit.attention.mixer import Mixer
from labkit.attention.random_features import (
    RandomFeatureAttention,
    SpectralKernelAttention,
    orthogonal_gaussian,
    positive_features,
    rff,
)
from labkit.errors import LabkitError
from labkit.operations import operations
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

DIM, HEADS, GRID = 24, 3, (4, 7)
N = math.prod(GRID)
DISTS = ["gmm", "fastfood"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


def estimates(features, x, y, w):
    """One estimate of the kernel for each sample of directions in w (samples, m, d)."""
    return (features(x, w) @ features(y, w).transpose(-2, -1))[:, 0, 0]


def pair(d: int = 4):
    x, y = 0.5 * normal(2, 1, d)
    return x, y


@pytest.mark.paper("S269")
@pytest.mark.parametrize("m", [4, 64])
def test_waves_estimate_the_gaussian_kernel_with_an_error_of_one_over_root_m(m):
    x, y = pair()
    gap = (x - y).square().sum()
    found = estimates(rff, x, y, torch.randn(5_000, m, 4).double())
    variance = (1 - torch.exp(-gap)) ** 2 / (2 * m)
    checks.equal(found.mean(), torch.exp(-gap / 2), tol=5 * float((variance / 5_000).sqrt()))
    checks.equal(found.var() / variance, 1.0, tol=0.05)


@pytest.mark.parametrize("m", [4, 64])
def test_positive_features_estimate_the_exponential_with_the_variance_of_the_paper(m):
    x, y = pair()
    exact, both = (x * y).sum().exp(), (x + y).square().sum()
    samples = 400_000 // m
    found = estimates(positive_features, x, y, torch.randn(samples, m, 4).double())
    variance = both.exp() * exact**2 * (1 - torch.exp(-both)) / m
    assert found.min() > 0
    checks.equal(found.mean(), exact, tol=5 * float((variance / samples).sqrt()))
    checks.equal(found.var() / variance, 1.0, tol=0.1)


def test_orthogonal_directions_are_normal_each_and_err_less_together():
    x, y = pair()
    w = orthogonal_gaussian(4 * 20_000, 4).double().unflatten(0, (-1, 4))
    gram = w @ w.transpose(-2, -1)
    checks.equal(gram - torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1)), torch.zeros_like(gram), tol=1e-4)
    moments = w.flatten(0, 1).T @ w.flatten(0, 1) / (4 * 20_000)
    checks.equal(moments, torch.eye(4), tol=0.02)
    checks.equal(w.flatten(0, 1).mean(dim=0), torch.zeros(4), tol=0.01)
    checks.equal(gram.diagonal(dim1=-2, dim2=-1).square().mean(), 4 * 4 + 2 * 4, tol=0.5)  # of a chi-square
    free = torch.randn(20_000, 4, 4).double()
    found, independent = estimates(positive_features, x, y, w), estimates(positive_features, x, y, free)
    checks.equal(found.mean(), (x * y).sum().exp(), tol=0.02)
    assert found.var() < 0.95 * independent.var()
    assert orthogonal_gaussian(7, 4).shape == (7, 4)


@pytest.mark.paper("S269")
def test_with_keys_of_equal_norm_the_gaussian_kernel_is_softmax_attention():
    q, k, v = normal(3, N, 4) * torch.tensor([0.5, 1.0, 1.0])[:, None, None]
    k = F.normalize(k, dim=-1)
    expected = (q @ k.T).softmax(dim=-1) @ v
    kernel = (-torch.cdist(q, k).square() / 2).exp()
    checks.equal(kernel / kernel.sum(dim=-1, keepdim=True) @ v, expected, tol=1e-12)
    w = torch.randn(100_000, 4).double()
    checks.equal(linear_attention(rff(q, w), rff(k, w), v), expected, tol=0.02)


class Cosine(Mixer):
    """Dense attention whose scores are cosines: what the spectral kernel is before it has learned anything."""

    def mix(self, q, k, v, grid):
        return (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)).softmax(dim=-1) @ v


LIMITS = [(RandomFeatureAttention, Mixer), (SpectralKernelAttention, Cosine)]


@pytest.mark.paper("S269")
@pytest.mark.parametrize("make, exact", LIMITS, ids=["positive", "spectral"])
def test_with_more_features_it_becomes_softmax_attention(make, exact):
    dense, x, errors = randomized(exact(DIM, HEADS)), 0.3 * normal(1, N, DIM), {}
    shared = {name: weight for name, weight in dense.state_dict().items() if name.startswith(("qkv", "proj"))}
    expected = effective_matrix(dense, x, GRID)
    for n_features in (32, 16 * 32):
        squares = []
        for _ in range(8):
            ours = make(DIM, HEADS, n_features).double()
            ours.load_state_dict(ours.state_dict() | shared)
            squares.append((effective_matrix(ours, x, GRID) - expected).square().sum() / expected.square().sum())
        errors[n_features] = float(torch.stack(squares).mean().sqrt())
    assert errors[16 * 32] < 0.06, errors
    checks.equal(errors[32] / errors[16 * 32], 4.0, tol=0.8)  # the root of 16 times as many


@pytest.mark.paper("S269")
@pytest.mark.parametrize("dist", DISTS)
def test_its_kernel_is_positive_semidefinite_with_a_unit_diagonal(dist):
    mixer = SpectralKernelAttention(DIM, HEADS, dist=dist).double()
    phi, again = mixer.features(*normal(1, HEADS, N, 8).expand(2, -1, -1, -1, -1))
    kernel = phi @ again.transpose(-2, -1)
    checks.symmetric(kernel, tol=1e-12)
    checks.equal(kernel.diagonal(dim1=-2, dim2=-1), torch.ones(1, HEADS, N), tol=1e-12)
    assert torch.linalg.eigvalsh(kernel).min() > -1e-12
    assert kernel.std() > 0.1


@pytest.mark.paper("S269")
@pytest.mark.parametrize("make", [RandomFeatureAttention, SpectralKernelAttention])
def test_the_linear_order_is_the_quadratic_one_forward_and_backward(make):
    fast = make(DIM, HEADS).double()
    plain = make(DIM, HEADS, impl="plain").double()
    plain.load_state_dict(fast.state_dict())
    x = normal(2, N, DIM)
    checks.exact_limit(lambda x: fast(x, GRID), lambda x: plain(x, GRID), x, tol=1e-10)
    checks.equal_gradients(lambda x: fast(x, GRID), lambda x: plain(x, GRID), x, tol=1e-10)
    checks.equal(effective_matrix(fast, x, GRID).sum(dim=-1), torch.ones(2, HEADS, N), tol=1e-10)


@pytest.mark.paper("S269")
@pytest.mark.parametrize("dist", DISTS)
def test_gradients_reach_the_spectral_parameters_through_the_sample(dist):
    mixer, x, target = SpectralKernelAttention(DIM, HEADS, dist=dist).double(), normal(1, N, DIM), normal(1, N, DIM)

    def loss() -> torch.Tensor:
        return (mixer(x, GRID) * target).sum()

    loss().backward()
    for name in {"gmm": ("mean", "log_scale"), "fastfood": ("s", "g", "b")}[dist]:
        parameter = mixer.get_parameter(name)
        step = 1e-5 * torch.randn_like(parameter)
        with torch.no_grad():
            parameter += step
            up = loss()
            parameter -= 2 * step
            rise = up - loss()
            parameter += step
        slope = 2 * (parameter.grad * step).sum()
        assert slope.abs() > 1e-9
        checks.equal(rise / slope, 1.0, tol=1e-5, what=f"finite differences of {name} and its gradient")


@pytest.mark.paper("S269")
def test_fastfood_is_the_product_of_its_diagonals():
    mixer = SpectralKernelAttention(12, 2, n_features=19, dist="fastfood").double()  # heads of 6: padded to 8
    ups = torch.tensor([[(i & j).bit_count() for j in range(8)] for i in range(8)])
    h, shuffle = (-1.0) ** ups.double(), torch.eye(8).double()[mixer.order]
    for head, found in enumerate(mixer.frequencies()):
        blocks = []
        for s, g, b in zip(mixer.s[head], mixer.g[head], mixer.b[head], strict=True):
            blocks.append(s.diag() @ h @ g.diag() @ shuffle @ h @ b.diag() / math.sqrt(8))
        checks.equal(found, torch.cat(blocks)[:19, :6], tol=1e-6)
    many = torch.cat([SpectralKernelAttention(32, 4, 800, "fastfood").frequencies().detach() for _ in range(5)])
    checks.equal(many.square().mean(), 1.0, tol=0.05)  # as long as normal frequencies


@pytest.mark.paper("S269")
def test_the_mixture_moves_and_stretches_its_noise():
    mixer = SpectralKernelAttention(DIM, HEADS, n_features=4000, components=2)
    with torch.no_grad():
        mixer.mean[1, 0], mixer.log_scale[1, 0] = 3.0, math.log(2.0)
    first, second = mixer.frequencies()[1].unflatten(0, (2, -1))
    for found, mean, scale in ((first, 3.0, 2.0), (second, 0.0, 1.0)):
        checks.equal(found.mean(dim=0), torch.full((8,), mean), tol=0.2)
        checks.equal(found.std(dim=0), torch.full((8,), scale), tol=0.2)


@pytest.mark.paper("S269")
def test_its_time_and_memory_are_linear_in_the_tokens():
    mixer = SpectralKernelAttention(DIM, HEADS)
    small, large = ((8, 8), (16, 16))
    macs = [sum(s.macs for s in operations(mixer, torch.zeros(1, math.prod(g), DIM), g)) for g in (small, large)]
    memory = [laws.largest_bytes(SpectralKernelAttention(laws.DIM, laws.HEADS), grid) for grid in (small, large)]
    assert macs[1] == 4 * macs[0] and memory[1] == 4 * memory[0]
    assert mixer.cost(large).macs == macs[1] and mixer.cost(large).bytes == 4 * mixer.cost(small).bytes


def test_large_scores_do_not_overflow():
    mixer = RandomFeatureAttention(DIM, HEADS)
    out = mixer(100 * normal(1, N, DIM).float(), GRID)
    assert out.isfinite().all()


def test_wrong_choices_are_refused():
    with pytest.raises(LabkitError, match="dist='uniform' is unknown"):
        SpectralKernelAttention(DIM, HEADS, dist="uniform")
    with pytest.raises(LabkitError, match="33 features do not divide into 2 components"):
        SpectralKernelAttention(DIM, HEADS, n_features=33)


def test_it_compiles():
    mixer, x = RandomFeatureAttention(DIM, HEADS).double(), normal(1, N, DIM)
    checks.compiles(mixer, x, GRID)
