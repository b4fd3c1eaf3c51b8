"""A sink takes what it should and gives nothing; registers are tokens that only lend their keys and values."""

from __future__ import annotations

import math

import pytest
import torch

from labkit.attention import sinks
from labkit.attention.dense import MultiHead, scaled_dot_product
from labkit.attention.matrix import effective_matrix
from labkit.attention.sinks import Registers, Sinks, attention_with_sink
from labkit.errors import LabkitError
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

DIM, HEADS, GRID = 24, 3, (3, 4)
N = GRID[0] * GRID[1]
QKV = normal(3, 2, HEADS, N, 8)


@pytest.mark.parametrize("variant", sinks.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


@pytest.mark.parametrize("impl", ["plain", "fast"])
def test_a_sink_is_one_more_term_below_the_fraction(impl):
    q, k, v = QKV
    sink = torch.tensor([0.0, 3.0, -2.0], dtype=torch.float64)
    weights = (q @ k.transpose(-2, -1) / 8**0.5).exp()
    by_hand = weights @ v / (sink.exp()[:, None, None] + weights.sum(dim=-1, keepdim=True))
    checks.equal(attention_with_sink(q, k, v, sink, impl), by_hand, 1e-12, "attention with a sink and its formula")


@pytest.mark.parametrize("impl", ["plain", "fast"])
def test_a_sink_goes_from_plain_attention_to_none(impl):
    plain = scaled_dot_product(*QKV)
    never, always = (torch.full((HEADS,), end, dtype=torch.float64) for end in (-math.inf, 1e9))
    checks.equal(attention_with_sink(*QKV, never, impl), plain, 1e-12, "a sink at -inf and plain attention")
    checks.equal(attention_with_sink(*QKV, always, impl), torch.zeros_like(plain), 1e-12, "a full sink and nothing")


def test_each_head_has_its_own_sink_and_rows_keep_the_rest():
    mixer, x = randomized(Sinks(DIM, HEADS)), normal(2, N, DIM)
    with torch.no_grad():
        mixer.sink.copy_(torch.tensor([-1e9, 1e9, 0.5]))
    q, k, _ = mixer.project(x, GRID)
    logsumexp = (q @ k.transpose(-2, -1) / 8**0.5).logsumexp(dim=-1)
    kept = effective_matrix(mixer, x, GRID).sum(dim=-1)
    checks.equal(kept, (logsumexp - mixer.sink[:, None]).sigmoid(), 1e-12, "the row sums and what the sink left")


@pytest.mark.parametrize("make", [Sinks, Registers])
def test_the_fast_path_is_the_plain_one_forward_and_backward(make):
    plain, x = randomized(make(DIM, HEADS)), normal(2, N, DIM)
    fast = make(DIM, HEADS, impl="fast").double()
    fast.load_state_dict(plain.state_dict())
    checks.exact_limit(lambda x: fast(x, GRID), lambda x: plain(x, GRID), x, tol=1e-12)
    gradients = [
        torch.autograd.grad(mixer(x, GRID).square().sum(), list(mixer.parameters())) for mixer in (fast, plain)
    ]
    checks.equal(*gradients, 1e-10, "the gradients of the weights")


def test_registers_are_tokens_that_ask_nothing():
    full, x, extra = randomized(MultiHead(DIM, HEADS)), normal(2, N, DIM), normal(3, 5, DIM)[2:]
    ours = Registers(DIM, HEADS, count=5).double()
    ours.load_state_dict(full.state_dict(), strict=False)
    _, keys, values = full.project(extra, (1, 5))
    ours.keys.data, ours.values.data = keys[0].detach(), values[0].detach()
    both = torch.cat([x, extra.expand(2, -1, -1)], dim=1)
    checks.exact_limit(lambda x: ours(x, GRID), lambda x: full(both, (1, N + 5))[:, :N], x, tol=1e-12)


def test_a_register_of_zeros_is_an_open_sink():
    register = randomized(Registers(DIM, HEADS, count=1))
    register.keys.data.zero_()
    register.values.data.zero_()
    sink = Sinks(DIM, HEADS).double()
    sink.load_state_dict(
        {name: value for name, value in register.state_dict().items() if name.startswith(("qkv", "proj"))}
        | {"sink": torch.zeros(HEADS)}
    )
    x = normal(2, N, DIM)
    checks.exact_limit(lambda x: register(x, GRID), lambda x: sink(x, GRID), x, tol=1e-12)
    maps = effective_matrix(register, x, GRID), effective_matrix(sink, x, GRID)
    checks.equal(*maps, 1e-12, "the matrices of a register of zeros and of a sink")


def test_it_compiles():
    mixer, x = randomized(Sinks(DIM, HEADS)), normal(2, N, DIM)
    checks.compiles(mixer, x, GRID)


def test_no_registers_are_refused():
    with pytest.raises(LabkitError, match=r"0 registers are none; choose count=1 or more, or MultiHead"):
        Registers(DIM, HEADS, count=0)
