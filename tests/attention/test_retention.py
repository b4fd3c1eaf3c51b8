"""Three orders of one sum: all pairs, one token after another, by chunks; and what they become without a decay."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from labkit.attention import retention as mine
from labkit.attention.linear import linear_attention
from labkit.attention.matrix import effective_matrix
from labkit.attention.retention import Retention, both_ways, retention, retention_chunkwise, retention_recurrent
from labkit.errors import LabkitError
from labkit.operations import operations
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

DIM, HEADS, GRID = 24, 3, (4, 7)
N, D = math.prod(GRID), 8
FORMS = [retention, retention_recurrent, retention_chunkwise]


@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


def inputs(n: int = N):
    """q, k, v and the logarithms of gates that differ from token to token."""
    return *normal(3, 2, HEADS, n, D), F.logsigmoid(2 * normal(2, HEADS, n))


def by_definition(q, k, v, log_g):
    """The sum, written out term by term."""
    out = torch.zeros_like(v)
    for i in range(q.shape[-2]):
        for j in range(i + 1):
            gate = log_g[..., j + 1 : i + 1].exp().prod(dim=-1)
            out[..., i, :] += (gate * (q[..., i, :] * k[..., j, :]).sum(dim=-1))[..., None] * v[..., j, :]
    return out


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_sum_of_the_definition(form):
    given = inputs(19)
    checks.equal(form(*given), by_definition(*given), tol=1e-12)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 48])
@pytest.mark.parametrize("way", ["causal", "both ways"])
def test_the_three_forms_agree_forward_and_backward(n, way):
    given = [t.requires_grad_() for t in inputs(n)]
    outs, gradients = [], []
    for form in FORMS:
        outs.append(form(*given) if way == "causal" else both_ways(form, *given))
        gradients.append(torch.autograd.grad((outs[-1] * normal(*outs[-1].shape)).sum(), given))
    for i in (1, 2):
        checks.equal(outs[i], outs[0], tol=1e-11, what=f"{FORMS[i].__name__} and all pairs")
        checks.equal(gradients[i], gradients[0], tol=1e-10, what=f"gradients of {FORMS[i].__name__} and of all pairs")


@pytest.mark.parametrize("chunk", [1, 3, 28, 100])
def test_the_size_of_a_chunk_does_not_matter(chunk):
    checks.equal(retention_chunkwise(*inputs(), chunk), retention(*inputs()), tol=1e-11)


@pytest.mark.parametrize("form", FORMS)
def test_without_decay_it_is_linear_attention_whose_kernel_is_the_identity(form):
    q, k, v, _ = inputs()
    q, k, none = q.exp(), k.exp(), torch.zeros(2, HEADS, N).double()
    sums = both_ways(form, q, k, torch.ones_like(v), none)
    checks.equal(both_ways(form, q, k, v, none) / sums, linear_attention(q, k, v), tol=1e-11)
    state = (k[..., :, None] * v[..., None, :]).cumsum(dim=-3)
    checks.equal(form(q, k, v, none), (q[..., None, :] @ state)[..., 0, :], tol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_a_closed_gate_forgets_everything_before_it(form):
    q, k, v, log_g = inputs()
    log_g[..., 9] = -1e3
    checks.equal(form(q, k, v, log_g)[..., 9:, :], form(*(t[..., 9:, :] for t in (q, k, v)), log_g[..., 9:]), tol=1e-10)
    log_g[:] = -1e3
    alone = (q * k).sum(dim=-1, keepdim=True) * v
    checks.equal(form(q, k, v, log_g), alone, tol=1e-11)
    checks.equal(both_ways(form, q, k, v, log_g), alone, tol=1e-11)


def test_both_ways_read_the_image_backwards_as_well():
    q, k, v, log_g = inputs()
    turned = both_ways(retention, *(t.flip(-2) for t in (q, k, v)), log_g.flip(-1))
    checks.equal(turned.flip(-2), both_ways(retention, q, k, v, log_g), tol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_the_matrix_of_a_fixed_decay_fades_with_the_distance(causal):
    mixer = randomized(Retention(DIM, HEADS, causal=causal, decay=0.8))
    x = normal(1, N, DIM)
    q, k, _ = mixer.project(x, GRID)
    gap = torch.arange(N)[:, None] - torch.arange(N)
    fading = 0.8 ** gap.abs().double() * ((gap >= 0) if causal else 1)
    expected = q @ k.transpose(-2, -1) / math.sqrt(D) * fading
    checks.equal(effective_matrix(mixer, x, GRID), expected, tol=1e-6)  # the decay is kept in float32


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_by_chunks_or_all_at_once_the_mixer_is_the_same(gated, causal):
    fast = randomized(Retention(DIM, HEADS, gated, causal))
    plain = randomized(Retention(DIM, HEADS, gated, causal, impl="plain"))
    x = normal(2, N, DIM)
    checks.exact_limit(lambda x: fast(x, GRID), lambda x: plain(x, GRID), x, tol=1e-10)
    checks.equal_gradients(lambda x: fast(x, GRID), lambda x: plain(x, GRID), x, tol=1e-10)
    for mixer in (fast, plain):
        counted = sum(step.macs for step in operations(mixer, x[:1], GRID))
        assert mixer.cost(GRID).macs == counted


def test_a_fresh_gate_is_the_fixed_decay_and_an_open_one_is_none():
    x = normal(1, N, DIM)
    fixed, gated = Retention(DIM, HEADS).double(), Retention(DIM, HEADS, gated=True).double()
    for name in ("qkv", "proj"):
        gated.get_submodule(name).load_state_dict(fixed.get_submodule(name).state_dict())
    checks.equal(gated(x, GRID), fixed(x, GRID), tol=1e-5)
    decays = fixed.log_gates(torch.zeros(1, HEADS, 1, D))[0, :, 0].exp()
    checks.equal(decays, torch.tensor([31 / 32, 63 / 64, 127 / 128]), tol=1e-6)
    open_gates, endless = Retention(DIM, HEADS, gated=True).double(), Retention(DIM, HEADS, decay=1.0).double()
    endless.load_state_dict(endless.state_dict() | {n: w for n, w in fixed.state_dict().items() if n != "log_decay"})
    open_gates.load_state_dict(open_gates.state_dict() | {n: w for n, w in gated.state_dict().items() if "." in n})
    torch.nn.init.constant_(open_gates.offset, 50.0)
    checks.equal(open_gates(x, GRID), endless(x, GRID), tol=1e-12)


def test_the_size_of_the_values_does_not_reach_the_projection():
    mixer, x = randomized(Retention(DIM, HEADS)), normal(1, N, DIM)
    before = mixer(x, GRID)
    with torch.no_grad():
        mixer.qkv.weight[2 * DIM :] *= 10
        mixer.qkv.bias[2 * DIM :] *= 10
    checks.equal(mixer(x, GRID), before, tol=1e-9)


def test_its_cost_is_linear_in_the_tokens():
    mixer = Retention(DIM, HEADS)
    assert mixer.cost((32, 32)).macs == 4 * mixer.cost((16, 16)).macs
    assert mixer.cost((32, 32)).bytes == 4 * mixer.cost((16, 16)).bytes


def test_a_long_and_fast_fading_sequence_stays_finite_in_float32():
    q, k, v = normal(3, 1, 1, 512, D).float()
    for form in FORMS:
        gates = torch.full((1, 1, 512), -30.0, requires_grad=True)
        out = form(q, k, v, gates)
        assert out.isfinite().all() and torch.autograd.grad(out.sum(), gates)[0].isfinite().all()


def test_in_bfloat16_the_decay_over_a_long_way_is_still_right():
    q, k, v = normal(3, 1, 1, 512, D).bfloat16().abs()
    log_g = torch.full((1, 1, 512), -0.05).bfloat16()
    exact = retention_recurrent(*(t.double() for t in (q, k, v, log_g)))
    for form in (retention, retention_chunkwise):
        checks.equal(form(q, k, v, log_g) / exact, torch.ones_like(v), tol=0.03)


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.5])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(LabkitError, match=rf"A decay of {decay} is impossible; choose one above 0 and at most 1"):
        Retention(DIM, HEADS, decay=decay)


def test_it_compiles():
    mixer, x = randomized(Retention(DIM, HEADS, gated=True)), normal(1, N, DIM)
    checks.compiles(mixer, x, GRID)
