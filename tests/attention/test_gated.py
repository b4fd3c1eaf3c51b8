"""Gated positional attention is timm's; its gate leads from plain attention to a convolution, exactly."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.models import convit

from labkit.attention import gated as mine
from labkit.attention.matrix import effective_matrix
from labkit.attention.mixer import Mixer
from labkit.errors import LabkitError
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

DIM, HEADS, GRID = 36, 9, (5, 6)
N = GRID[0] * GRID[1]
OPEN, CLOSED = 60.0, -60.0  # σ(60) is 1 in float64, σ(-60) is 1e-26


def make(strength: float = 1.0, gate: float | None = None, init: bool = True, impl: str = "plain"):
    """A mixer with random weights; `init` makes it local again, `gate` sets all heads' gates."""
    mixer = randomized(mine.GatedPositionalSelfAttention(DIM, HEADS, strength, bias=True, impl=impl))
    if init:
        mixer.local_init()
    if gate is not None:
        torch.nn.init.constant_(mixer.gating_param, gate)
    return mixer


@pytest.mark.parametrize("variant", mine.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


@pytest.mark.paper("S371")
@pytest.mark.parametrize("heads", [4, 6, 9])
def test_it_is_the_one_of_timm_after_the_local_init_and_with_any_weights(heads):
    theirs = randomized(convit.GPSA(DIM, heads, qkv_bias=True, locality_strength=0.7))
    ours = mine.GatedPositionalSelfAttention(DIM, heads, 0.7, bias=True).double()
    x = normal(2, 16, DIM)
    for local in (False, True):
        if local:
            theirs.local_init()
        weights = theirs.state_dict()
        del weights["pos_proj.bias"]  # no softmax sees it
        for name in ("weight", "bias"):
            weights[f"qkv.{name}"] = torch.cat([weights.pop(f"qk.{name}"), weights.pop(f"v.{name}")])
        ours.load_state_dict(weights)
        checks.exact_limit(lambda x: ours(x, (4, 4)), theirs, x, tol=1e-10)
        distances = mine.non_locality(effective_matrix(ours, x, (4, 4)).mean(dim=0), (4, 4))
        checks.equal(distances, theirs.get_attention_map(x), tol=1e-10, what="our non-locality and timm's")
    before = ours.state_dict()["pos_proj.weight"].clone()
    ours.local_init()
    checks.equal(ours.pos_proj.weight, before, tol=1e-7, what="our local_init and timm's")


def as_convolution(mixer, x):
    """The 3 x 3 kernel whose tap in column a and row b is the values and the projection of head 3a + b."""
    values, d = mixer.qkv.weight[2 * DIM :], DIM // HEADS
    taps = [
        mixer.proj.weight[:, head * d : (head + 1) * d] @ values[head * d : (head + 1) * d] for head in range(HEADS)
    ]
    kernel = torch.stack(taps, dim=-1).unflatten(-1, (3, 3)).mT
    bias = mixer.proj(mixer.qkv.bias[2 * DIM :])
    picture = F.pad(x.mT.unflatten(-1, GRID), (1, 1, 1, 1), mode="replicate")
    return F.conv2d(picture, kernel, bias).flatten(2).mT


@pytest.mark.paper("S371")
def test_saturated_and_local_it_is_a_convolution():
    """Also at the border, where the convolution repeats the last cells: no token is nearer to the one outside."""
    x, errors = normal(2, N, DIM), []
    for strength in (1.0, 4.0, 16.0, 64.0):
        mixer = make(strength, gate=OPEN)
        with torch.no_grad():
            mixer.qkv.weight[2 * DIM :] = 0.2 * normal(DIM, DIM)  # values that are no copies
            errors.append(float((mixer(x, GRID) - as_convolution(mixer, x)).abs().max()))
    assert errors[0] > errors[1] > errors[2] > errors[3] and errors[3] < 1e-12, errors


@pytest.mark.paper("S371")
def test_saturated_and_local_every_head_is_one_hot_at_its_offset():
    attn = effective_matrix(make(64.0, gate=OPEN), normal(1, N, DIM), GRID)[0].unflatten(1, GRID).unflatten(-1, GRID)
    for head in range(HEADS):
        right, down = head // 3 - 1, head % 3 - 1
        for y in range(1, GRID[0] - 1):
            for x in range(1, GRID[1] - 1):
                target = torch.zeros(GRID)
                target[y + down, x + right] = 1.0
                checks.equal(attn[head, y, x], target, tol=1e-12, what=f"head {head} at {y}, {x} and its offset")


@pytest.mark.paper("S371")
@pytest.mark.parametrize("impl", ["plain", "fast"])
def test_closed_it_is_softmax_attention(impl):
    mixer, x = make(gate=CLOSED, init=False, impl=impl), normal(2, N, DIM)
    plain = Mixer(DIM, HEADS).double()
    plain.load_state_dict({name: value for name, value in mixer.state_dict().items() if "pos" not in name}, False)
    checks.exact_limit(lambda x: mixer(x, GRID), lambda x: plain(x, GRID), x, tol=1e-10)


@pytest.mark.paper("S371")
@pytest.mark.parametrize("gate", [CLOSED, -1.0, 0.0, 2.0, OPEN])
def test_every_row_is_a_distribution_whatever_the_gate(gate):
    checks.rows_sum_to_one(effective_matrix(make(gate=gate, init=False), normal(2, N, DIM), GRID), tol=1e-12)


@pytest.mark.paper("S371")
def test_non_locality_rises_as_the_locality_falls():
    x, seen = normal(1, N, DIM), []
    for strength in (16.0, 8.0, 4.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.0):
        attn = effective_matrix(make(strength, gate=OPEN), x, GRID)[0]
        seen.append(mine.non_locality(attn, GRID).mean())
    assert (torch.stack(seen).diff() > 0).all(), seen
    cells = torch.cartesian_prod(*(torch.arange(float(side)) for side in GRID)).double()
    checks.equal(
        seen[-1], torch.cdist(cells, cells).mean(), tol=1e-10, what="uniform attention's and the mean distance"
    )


@pytest.mark.paper("S371")
def test_the_fast_path_gives_the_same_outputs_and_gradients():
    plain, fast, x = make(init=False), make(init=False, impl="fast"), normal(2, N, DIM)
    checks.equal(fast(x, GRID), plain(x, GRID), tol=1e-12)
    checks.equal_gradients(lambda x: fast(x, GRID), lambda x: plain(x, GRID), x, tol=1e-12)
    for mixer in (plain, fast):
        mixer(x, GRID).square().sum().backward()
    for (name, ours), theirs in zip(fast.named_parameters(), plain.parameters(), strict=True):
        checks.equal(ours.grad, theirs.grad, tol=1e-9, what=f"the gradients of {name}")


@pytest.mark.paper("S371")
def test_the_fast_path_writes_no_matrix_at_all():
    plain, fast = (mine.GatedPositionalSelfAttention(laws.DIM, laws.HEADS, impl=impl) for impl in ("plain", "fast"))
    n = laws.GRID[0] * laws.GRID[1]
    assert laws.largest_bytes(fast, laws.GRID) == laws.FLOAT * 3 * n * laws.DIM  # q, k and v
    assert laws.largest_bytes(plain, laws.GRID) == laws.FLOAT * laws.HEADS * n * n


def test_tokens_outside_the_grid_are_refused():
    with pytest.raises(LabkitError, match=r"expected \(batch, 30, width\) for the grid 5x6"):
        make()(normal(1, N + 1, DIM), GRID)


def test_it_compiles():
    mixer, x = make(init=False), normal(1, N, DIM)
    checks.compiles(mixer, x, GRID)
