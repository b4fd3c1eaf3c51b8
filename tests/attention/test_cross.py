"""Cross-attention is self-attention when it asks itself; two branches exchange class tokens as in timm's CrossViT."""

from __future__ import annotations

import pytest
import torch
from timm.layers import Attention as TimmAttention
from timm.models import create_model, crossvit
from torch import nn

from labkit.attention.class_attention import ClassAttention
from labkit.attention.cross import CrossAttention, CrossScaleFusion, cls_cross_attention
from labkit.attention.dense import MultiHead, among
from labkit.attention.mixer import FLOAT
from labkit.errors import LabkitError
from tests import checks
from tests.attention import laws
from tests.weights import normal, randomized

DIM, HEADS, N = 24, 3, 10


def as_self_attention(cross: CrossAttention) -> MultiHead:
    """Self-attention with the weights of cross-attention."""
    full = MultiHead(cross.dim, cross.heads).double()
    weights = {
        f"qkv.{name}": torch.cat([value, cross.kv.get_parameter(name)]) for name, value in cross.q.named_parameters()
    }
    full.load_state_dict(weights | {f"proj.{name}": value for name, value in cross.proj.state_dict().items()})
    return full


def test_tokens_that_ask_themselves_are_self_attention():
    cross, x = randomized(CrossAttention(DIM, HEADS)), normal(2, N, DIM)
    full = as_self_attention(cross)
    checks.exact_limit(lambda x: cross(x, x), lambda x: full(x, (1, N)), x, tol=1e-12)
    checks.equal_gradients(lambda x: cross(x, x), lambda x: full(x, (1, N)), x, tol=1e-12)


def test_it_is_the_cross_attention_of_torch():
    cross, x, context = randomized(CrossAttention(DIM, HEADS, 7)), normal(2, N, DIM), normal(2, 5, 7)
    theirs = nn.MultiheadAttention(DIM, HEADS, kdim=7, vdim=7, batch_first=True).double()
    k, v = cross.kv.weight.chunk(2)
    theirs.load_state_dict(
        {
            "q_proj_weight": cross.q.weight,
            "k_proj_weight": k,
            "v_proj_weight": v,
            "in_proj_bias": torch.cat([cross.q.bias, cross.kv.bias]),
            "out_proj.weight": cross.proj.weight,
            "out_proj.bias": cross.proj.bias,
        }
    )
    hidden = normal(N, 5) > 0.5
    for ours, torchs in ((None, None), (~hidden, hidden)):
        out = theirs(x, context, context, need_weights=False, attn_mask=torchs)[0]
        checks.exact_limit(lambda x, ours=ours: cross(x, context, ours), lambda _, out=out: out, x, tol=1e-12)


def test_tokens_that_ask_a_part_are_its_columns():
    """Full attention whose mask hides all but the context gives the askers what they get here."""
    cross, x = randomized(CrossAttention(DIM, HEADS)), normal(2, N, DIM)
    full = as_self_attention(cross)
    q, k, v = full.project(x, (1, N))
    mask = among(torch.zeros(N), torch.tensor([0] * 4 + [1] * (N - 4)))
    masked = (q @ k.transpose(-2, -1) / 8**0.5).masked_fill(~mask, -torch.inf).softmax(dim=-1) @ v
    expected = full.proj(masked.transpose(1, 2).flatten(2))
    checks.exact_limit(lambda x: cross(x, x[:, :4]), lambda x: expected, x, tol=1e-12)


def test_the_fast_path_is_the_plain_one_and_images_stay_apart():
    plain, x, context = randomized(CrossAttention(DIM, HEADS, 7)), normal(2, N, DIM), normal(2, 5, 7)
    fast = CrossAttention(DIM, HEADS, 7, impl="fast").double()
    fast.load_state_dict(plain.state_dict())
    checks.exact_limit(fast, plain, x, context, tol=1e-12)
    checks.equal_gradients(lambda c: fast(x, c), lambda c: plain(x, c), context, tol=1e-11)
    checks.equal(plain(x[1:], context[1:]), plain(x, context)[1:], 1e-12, "an image alone and in its batch")
    assert fast.bfloat16()(x.bfloat16(), context.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(("n", "keys"), [(40, 3), (3, 40), (200, 200)])
def test_its_cost_is_linear_in_the_tokens_and_in_the_context(n, keys):
    cross, context = CrossAttention(DIM, HEADS, 7), torch.zeros(1, keys, 7)
    checks.cost_law(cross.cost(n, keys).macs, lambda x: cross(x, context), torch.zeros(1, n, DIM))
    x = torch.zeros(1, n, DIM)
    mode = laws._Largest(x)
    mode.known |= {t.untyped_storage()._cdata for t in cross.parameters()}
    with torch.no_grad(), mode:
        cross(x, context)
    assert cross.cost(n, keys).bytes == FLOAT * mode.numel


@pytest.mark.paper("S079")
def test_the_class_token_asks_as_in_timm():
    ours, theirs = randomized(ClassAttention(DIM, HEADS)), crossvit.CrossAttention(DIM, HEADS, qkv_bias=True).double()
    theirs.load_state_dict(
        {(f"w{name}" if name[1] == "." else name): value for name, value in ours.state_dict().items()}
    )
    x, norm = normal(2, N, DIM), nn.Identity()
    out = cls_cross_attention(x[:, :1], x[:, 1:], norm, ours)
    checks.exact_limit(lambda _: out - x[:, :1], theirs, x, tol=1e-12)


@pytest.mark.paper("S079")
def test_it_is_the_class_row_of_full_self_attention():
    attn, norm, x = randomized(ClassAttention(DIM, HEADS)), randomized(nn.LayerNorm(DIM)), normal(2, N, DIM)
    full = TimmAttention(DIM, HEADS, qkv_bias=True).double()
    for name, value in full.qkv.named_parameters():
        value.data = torch.cat([layer.get_parameter(name) for layer in (attn.q, attn.k, attn.v)])
    full.proj = attn.proj
    expected = x[:, :1] + full(norm(x))[:, :1]
    checks.exact_limit(lambda x: cls_cross_attention(x[:, :1], x[:, 1:], norm, attn), lambda _: expected, x, tol=1e-12)


@pytest.mark.paper("S079")
def test_its_cost_is_exactly_linear_in_the_patches():
    """d² for each key and value, d for each score and d for each weighed value: 2d (d + 1) a patch."""
    fusion, large = CrossScaleFusion(DIM, 2 * DIM, HEADS), torch.zeros(1, 1, 2 * DIM)
    alone = 2 * DIM * (2 * DIM) * 2 + 2 * DIM**2 + 2 * (2 * DIM) ** 2  # four changes of width, q and proj twice
    own = 2 * DIM * (DIM + 1) + 2 * (2 * DIM) * (2 * DIM + 1)  # both class tokens among the keys
    for n in (7, 50, 400):
        law = alone + own + n * 2 * DIM * (DIM + 1)
        checks.cost_law(law, lambda small: fusion(small, large), torch.zeros(1, 1 + n, DIM))


class Swapped(nn.Module):
    """timm's block of two branches with our fusion behind its own transformer blocks."""

    def __init__(self, theirs: crossvit.MultiScaleBlock) -> None:
        super().__init__()
        dims = [projection[0].normalized_shape[0] for projection in theirs.projs]
        self.blocks, self.fusion = theirs.blocks, CrossScaleFusion(*dims, theirs.fusion[0].attn.num_heads).double()
        for i, visit in enumerate((self.fusion.small, self.fusion.large)):
            visit.there.load_state_dict(theirs.projs[i].state_dict())
            visit.back.load_state_dict(theirs.revert_projs[i].state_dict())
            visit.norm.load_state_dict(theirs.fusion[i].norm1.state_dict())
            names = {name: f"w{name}" if name[1] == "." else name for name in visit.attn.state_dict()}
            weights = theirs.fusion[i].attn.state_dict()
            visit.attn.load_state_dict({ours: weights[name] for ours, name in names.items()})
            for norm in (visit.there[0], visit.back[0], visit.norm):
                norm.eps = 1e-6

    def forward(self, branches):
        return list(self.fusion(*(block(x) for block, x in zip(self.blocks, branches, strict=True))))


@pytest.mark.paper("S079")
def test_crossvit_is_that_of_timm():
    model = randomized(create_model("crossvit_9_240", num_classes=5), std=0.1)
    x = normal(1, 3, 240, 240)
    expected = model(x)
    model.blocks = nn.ModuleList(Swapped(block) for block in model.blocks)
    checks.equal(model(x), expected, 1e-10, "the logits with our fusion and timm's")


@pytest.mark.paper("S079")
def test_the_patches_pass_bit_for_bit_and_the_class_tokens_see_the_other_branch():
    fusion = randomized(CrossScaleFusion(DIM, 2 * DIM, HEADS))
    small, large = normal(2, 1 + N, DIM), normal(2, 6, 2 * DIM)
    out = fusion(small, large)
    checks.equal([t[:, 1:] for t in out], [small[:, 1:], large[:, 1:]], what="the patches after and before")
    # What the own patches hold does not matter; what the others hold does.
    checks.equal(fusion(torch.cat([small[:, :1], small[:, 1:] + 1], 1), large)[0][:, 0], out[0][:, 0], 1e-12)
    moved = fusion(torch.cat([small[:, :1], small[:, 1:] * 2], 1), large)
    assert not torch.allclose(moved[1][:, 0], out[1][:, 0])


def test_every_weight_of_the_fusion_learns():
    fusion, inputs = randomized(CrossScaleFusion(DIM, 2 * DIM, HEADS)), (normal(2, 1 + N, DIM), normal(2, 6, 2 * DIM))
    sum((out * normal(*out.shape)).sum() for out in fusion(*inputs)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in fusion.parameters())
    alone = fusion(*(x[1:] for x in inputs))
    checks.equal([out[1:] for out in fusion(*inputs)], alone, 1e-12, "an image alone and in its batch")


def test_it_compiles():
    cross, x, context = randomized(CrossAttention(DIM, HEADS, 7)), normal(2, N, DIM), normal(2, 5, 7)
    checks.compiles(cross, x, context)


def test_what_cannot_work_is_a_sentence():
    with pytest.raises(LabkitError, match=r"Width 24 does not divide into 5 heads; choose a multiple of 5\."):
        CrossAttention(DIM, 5)
    cross, x = CrossAttention(DIM, HEADS, 7).double(), normal(2, N, DIM)
    for wrong in (normal(2, 5, 8), normal(3, 5, 7), normal(5, 7)):
        with pytest.raises(LabkitError, match=r"The context has shape .*; expected \(2, keys, 7\), one row of tokens"):
            cross(x, wrong)
