"""Class attention is one row of full attention, costs a line in the tokens, and leaves the patches alone."""

from __future__ import annotations

import pytest
import torch
from timm.models import cait, vision_transformer

from labkit.attention.class_attention import ClassAttention, ClassStage
from labkit.errors import LabkitError
from labkit.vit import Attention, ViT
from tests import checks
from tests.weights import normal, randomized

DIM, HEADS = 24, 3


def of_row(attn: ClassAttention):
    """Class attention as a function of all tokens, the class token first."""
    return lambda x: attn(x[:, :1], x[:, 1:])


@pytest.mark.paper("S182")
def test_it_is_the_class_row_of_full_attention():
    full = randomized(Attention(DIM, HEADS, impl="plain"))
    ours = ClassAttention(DIM, HEADS).double()
    with torch.no_grad():
        for i, layer in enumerate((ours.q, ours.k, ours.v)):
            layer.weight.copy_(full.qkv.weight[i * DIM : (i + 1) * DIM])
            layer.bias.copy_(full.qkv.bias[i * DIM : (i + 1) * DIM])
    ours.proj.load_state_dict(full.proj.state_dict())
    checks.exact_limit(of_row(ours), lambda x: full(x)[:, :1], normal(2, 10, DIM), tol=1e-12)


@pytest.mark.paper("S182")
def test_it_is_class_attention_in_timm():
    ours, theirs = randomized(ClassAttention(DIM, HEADS)), cait.ClassAttn(DIM, HEADS, qkv_bias=True).double()
    theirs.load_state_dict(ours.state_dict())
    checks.exact_limit(of_row(ours), theirs, normal(2, 10, DIM), tol=1e-12)


@pytest.mark.paper("S182")
def test_its_cost_is_linear_in_the_patches():
    attn = of_row(ClassAttention(DIM, HEADS))
    for n in (7, 50, 400):
        law = 2 * DIM**2 + 2 * DIM * (DIM + 1) * (n + 1)
        checks.cost_law(law, attn, torch.zeros(1, n + 1, DIM))


@pytest.mark.paper("S182")
def test_the_class_stage_leaves_the_patches_as_they_are():
    stage, patches, seen = randomized(ClassStage(DIM, HEADS, depth=3)), normal(2, 9, DIM), []
    for block in stage.blocks:
        block.register_forward_pre_hook(lambda block, inputs: seen.append(inputs))
    before = patches.clone()
    out = stage(patches)
    checks.equal([given for _, given, _ in seen], [before] * 3, what="the patches that the blocks see")
    checks.equal(patches, before, what="the patches after and before")
    assert out.shape == (2, DIM) and not torch.equal(seen[0][0], seen[2][0])


@pytest.mark.paper("S182")
def test_a_vit_that_pools_with_it_is_cait_in_timm():
    shape = {"patch_size": 8, "num_classes": 5, "embed_dim": DIM, "depth": 2, "num_heads": HEADS}
    attn = vision_transformer.Attention
    theirs = randomized(cait.Cait(img_size=32, attn_block=attn, init_values=0.1, **shape))
    stage = ClassStage(DIM, HEADS)
    ours = ViT(32, 8, 5, DIM, 2, HEADS, pool=stage, layer_scale=0.1, norm=cait_norm).double().eval()
    for block in stage.blocks:
        block.norm1.eps = block.norm2.eps = 1e-6
    ours.norm, ours.fc_norm = ours.fc_norm, ours.norm
    names = {
        "blocks_token_only.": "attn_pool.blocks.",
        "cls_token": "attn_pool.cls_token",
        "gamma_1": "ls1.gamma",
        "gamma_2": "ls2.gamma",
    }
    weights = {}
    for name, value in theirs.state_dict().items():
        name = f"fc_{name}" if name.startswith("norm.") else name
        for old, new in names.items():
            name = name.replace(old, new)
        weights[name] = value
    ours.load_state_dict(weights)
    checks.exact_limit(ours, theirs, normal(2, 3, 32, 32), tol=1e-10)


def cait_norm(dim: int) -> torch.nn.LayerNorm:
    return torch.nn.LayerNorm(dim, eps=1e-6)


def test_the_stage_keeps_the_conventions_of_a_pool():
    stage, patches = ClassStage(DIM, HEADS, layer_scale=0.1), normal(3, 9, DIM).float()
    checks.permutation_invariant(stage, patches)
    checks.batch_independent(stage, patches)
    checks.gradients_flow(stage, patches)
    checks.follows_dtype_and_device(stage, patches)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(LabkitError, match="Width 24 does not divide into 5 heads"):
        ClassAttention(24, 5)
