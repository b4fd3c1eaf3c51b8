"""Dense attention is torch's and timm's; its relatives are dense attention in their limits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Attention as TimmAttention
from timm.models import cait, swin_transformer_v2
from torch import nn

from labkit.attention import dense
from labkit.attention.dense import Cosine, MultiHead, TalkingHeads, among, causal, scaled_dot_product
from labkit.attention.matrix import effective_matrix
from labkit.errors import LabkitError
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

DIM, HEADS, GRID = 24, 3, (3, 4)
N = GRID[0] * GRID[1]


def qkv(*batch: int, n: int = N, keys: int = N, d: int = 8):
    """Queries, keys and values that differ from each other."""
    together = normal(*batch, n + 2 * keys, d)
    return together[..., :n, :], together[..., n : n + keys, :], together[..., n + keys :, :]


@pytest.mark.parametrize("variant", dense.GALLERY, ids=lambda v: v.name)
def test_it_obeys_the_laws_of_the_gallery(variant):
    laws.hold(variant)


@pytest.mark.parametrize("function", [scaled_dot_product, dense.fused])
@pytest.mark.parametrize("temperature", [1.0, 0.3, 4.0])
def test_it_is_the_attention_of_torch(function, temperature):
    q, k, v = qkv(2, 3, n=5, keys=9)
    allowed = normal(2, 1, 5, 9) > 0
    for mask in (None, allowed, normal(5, 9), normal(2, 3, 5, 9).masked_fill(~allowed, -math.inf)):
        theirs = F.scaled_dot_product_attention(q, k, v, mask, scale=8**-0.5 / temperature)
        checks.equal(function(q, k, v, mask, temperature), theirs, 1e-12, "our attention and torch's")


def test_its_gradient_is_that_of_torch():
    x, mask = normal(3, 3, 6, 8), normal(6, 6) > -0.5
    checks.equal_gradients(
        lambda x: scaled_dot_product(*x, mask), lambda x: F.scaled_dot_product_attention(*x, mask), x, tol=1e-12
    )


@pytest.mark.parametrize("function", [scaled_dot_product, dense.fused])
@pytest.mark.parametrize("additive", [False, True])
def test_a_query_that_may_see_nothing_gets_zeros_and_a_gradient(function, additive):
    mask = torch.ones(N, N, dtype=torch.bool)
    mask[4] = False
    if additive:
        mask = torch.zeros(N, N, dtype=torch.float64).masked_fill(~mask, -math.inf)
    x = torch.stack(qkv(1, 1)).requires_grad_()
    out = function(*x, mask)
    out.square().sum().backward()
    assert not out[0, 0, 4].any() and out[0, 0, 3].any()
    assert x.grad.isfinite().all() and not x.grad[0, 0, 0, 4].any() and x.grad[0, 0, 0, 3].any()


def test_a_causal_mask_sees_what_is_before():
    q, k, v = qkv(2, 1)
    checks.equal(scaled_dot_product(q, k, v, causal(N)), F.scaled_dot_product_attention(q, k, v, is_causal=True), 1e-12)


def test_groups_see_each_other_as_if_alone():
    groups = torch.tensor([0, 2, 1, 1, 0, 2, 2, 0, 1, 0, 0, 2])
    q, k, v = qkv(2, 3)
    out = scaled_dot_product(q, k, v, among(groups))
    for group in range(3):
        here = groups == group
        alone = scaled_dot_product(q[..., here, :], k[..., here, :], v[..., here, :])
        checks.equal(out[..., here, :], alone, 1e-12, f"group {group} in company and alone")
    assert among(torch.tensor([0, 1]), torch.tensor([1, 1, 0])).tolist() == [[False, False, True], [True, True, False]]


def test_cold_attention_picks_and_hot_attention_averages():
    q, k, v = qkv(2, 3)
    best = (q @ k.transpose(-2, -1)).argmax(dim=-1)
    picked = v.gather(-2, best[..., None].expand(*best.shape, v.shape[-1]))
    checks.exact_limit(lambda *qkv: scaled_dot_product(*qkv, temperature=1e-6), lambda *_: picked, q, k, v, tol=1e-10)
    mean = v.mean(dim=-2, keepdim=True).expand_as(v)
    checks.exact_limit(lambda *qkv: scaled_dot_product(*qkv, temperature=1e13), lambda *_: mean, q, k, v, tol=1e-10)


def test_multi_head_is_that_of_torch_and_timm():
    ours, x = randomized(MultiHead(DIM, HEADS)), normal(2, N, DIM)
    theirs = TimmAttention(DIM, HEADS, qkv_bias=True).double()
    theirs.load_state_dict(ours.state_dict())
    checks.exact_limit(lambda x: ours(x, GRID), theirs, x, tol=1e-12)
    torchs = nn.MultiheadAttention(DIM, HEADS, batch_first=True).double()
    names = {"qkv.": "in_proj_", "proj.": "out_proj."}
    torchs.load_state_dict(
        {
            next(new + name[len(old) :] for old, new in names.items() if name.startswith(old)): value
            for name, value in ours.state_dict().items()
        }
    )
    checks.exact_limit(lambda x: ours(x, GRID), lambda x: torchs(x, x, x, need_weights=False)[0], x, tol=1e-12)


@pytest.mark.parametrize("make", [MultiHead, Cosine])
def test_the_fast_path_is_the_plain_one_forward_and_backward(make):
    plain, x = randomized(make(DIM, HEADS)), normal(2, N, DIM)
    fast = make(DIM, HEADS, impl="fast").double()
    fast.load_state_dict(plain.state_dict())
    checks.exact_limit(lambda x: fast(x, GRID), lambda x: plain(x, GRID), x, tol=1e-12)
    checks.equal_gradients(lambda x: fast(x, GRID), lambda x: plain(x, GRID), x, tol=1e-11)
    gradients = [
        torch.autograd.grad(mixer(x, GRID).square().sum(), list(mixer.parameters())) for mixer in (fast, plain)
    ]
    checks.equal(*gradients, 1e-10, "the gradients of the weights")


def test_cosine_attention_is_that_of_swin_v2():
    """Their bias of the positions is sixteen sigmoids; without weights it is the same for all keys, and cancels."""
    theirs = randomized(swin_transformer_v2.WindowAttention(DIM, GRID, HEADS))
    nn.init.zeros_(theirs.cpb_mlp[2].weight)
    # One head is asked to be sharper than allowed.
    theirs.logit_scale.data = torch.tensor([1.0, 9.0, -2.0]).double()[:, None, None]
    ours = Cosine(DIM, HEADS).double()
    ours.load_state_dict(
        {
            "logit_scale": theirs.logit_scale,
            "qkv.weight": theirs.qkv.weight,
            "qkv.bias": torch.cat([theirs.q_bias, torch.zeros(DIM), theirs.v_bias]),
            "proj.weight": theirs.proj.weight,
            "proj.bias": theirs.proj.bias,
        }
    )
    checks.exact_limit(lambda x: ours(x, GRID), theirs, normal(2, N, DIM), tol=1e-10)


def test_cosine_scores_are_bounded_and_blind_to_length():
    mixer = randomized(Cosine(DIM, HEADS))
    q, k, v = qkv(2, HEADS)
    lengths = normal(2, HEADS, N, 1).exp()
    checks.equal(mixer.mix(q * lengths, k * lengths.flip(2), v, GRID), mixer.mix(q, k, v, GRID), 1e-12)
    with torch.no_grad():
        mixer.logit_scale.fill_(50.0)
    checks.equal(mixer.sharpness, torch.full((HEADS, 1, 1), 100.0), 1e-10, "the sharpness and its bound")
    unit = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    scaled = unit[0] * 100 * 8**0.5, unit[1]
    checks.exact_limit(lambda v: mixer.mix(q, k, v, GRID), lambda v: scaled_dot_product(*scaled, v), v, tol=1e-10)


def test_talking_heads_are_those_of_timm():
    ours, theirs = randomized(TalkingHeads(DIM, HEADS)), cait.TalkingHeadAttn(DIM, HEADS, qkv_bias=True).double()
    theirs.load_state_dict(ours.state_dict())
    checks.exact_limit(lambda x: ours(x, GRID), theirs, normal(2, N, DIM), tol=1e-12)


def test_silent_heads_are_plain_attention():
    plain, silent = randomized(MultiHead(DIM, HEADS)), TalkingHeads(DIM, HEADS).double()
    silent.load_state_dict(plain.state_dict(), strict=False)
    checks.exact_limit(lambda x: silent(x, GRID), lambda x: plain(x, GRID), normal(2, N, DIM), tol=1e-12)


def test_a_head_that_talks_shows_the_map_that_it_was_told():
    mixer, x = TalkingHeads(DIM, HEADS).double(), normal(2, N, DIM)
    apart = effective_matrix(mixer, x, GRID)
    with torch.no_grad():
        mixer.proj_w.weight.copy_(torch.eye(HEADS).roll(1, dims=0))
    checks.equal(effective_matrix(mixer, x, GRID), apart.roll(1, dims=1), 1e-12, "the maps, handed on by one head")


def test_it_does_not_care_about_the_order_of_the_tokens():
    for make in (MultiHead, Cosine, TalkingHeads):
        mixer = randomized(make(DIM, HEADS))
        checks.permutation_equivariant(lambda x, mixer=mixer: mixer(x, GRID), normal(2, N, DIM), tol=1e-10)


def test_it_compiles():
    mixer, x = randomized(Cosine(DIM, HEADS)), normal(2, N, DIM)
    checks.compiles(mixer, x, GRID)


def test_what_cannot_work_is_a_sentence():
    x = normal(1, N, DIM)
    with pytest.raises(LabkitError, match=r"Width 24 does not divide into 5 heads; choose a multiple of 5\."):
        MultiHead(24, 5)
    with pytest.raises(LabkitError, match=r"""impl='quick' is unknown; choose "plain" or "fast"\."""):
        MultiHead(DIM, HEADS, impl="quick").double()(x, GRID)
    with pytest.raises(LabkitError, match=r"expected \(batch, 20, width\) for the grid 4x5"):
        MultiHead(DIM, HEADS).double()(x, (4, 5))
