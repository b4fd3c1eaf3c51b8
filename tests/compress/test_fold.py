"""LayerScale at zero makes a block the identity; what is linear folds into its neighbour without a trace."""

from __future__ import annotations

import copy

import pytest
import timm.layers
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from labkit.attention.class_attention import ClassStage
from labkit.blocks import parallel
from labkit.compress.fold import absorb_affine, fold_layer_scale
from labkit.compress.idle import FoldedFFN
from labkit.errors import LabkitError
from labkit.vit import LayerScale, ViT
from tests import checks
from tests.weights import normal, randomized

DIM = 12


def small_vit(layer_scale: float | None = 0.1, depth: int = 2) -> ViT:
    return ViT(16, 8, 5, DIM, depth, 2, layer_scale=layer_scale)


@pytest.mark.paper("S182")
def test_layer_scale_is_that_of_timm():
    ours = randomized(LayerScale(DIM))
    theirs = timm.layers.LayerScale(DIM).double()
    checks.equal(LayerScale(DIM, 0.1).gamma, timm.layers.LayerScale(DIM, 0.1).gamma, what="the gains at the start")
    theirs.load_state_dict(ours.state_dict())
    checks.exact_limit(ours, theirs, normal(2, 5, DIM), tol=0)


@pytest.mark.paper("S182")
def test_at_zero_every_block_is_the_identity_and_so_is_its_jacobian():
    vit, x = small_vit(layer_scale=0.0).double(), normal(1, 5, DIM)
    for name, weight in vit.named_parameters():
        if "gamma" not in name:
            nn.init.normal_(weight)
    for block in vit.blocks:
        run = lambda t, block=block: block(t, (2, 2)).x  # noqa: E731
        checks.equal(run(x), x, what="the tokens after and before")
        jacobian = torch.autograd.functional.jacobian(run, x).reshape(5 * DIM, 5 * DIM)
        checks.equal(jacobian, torch.eye(5 * DIM), what="the Jacobian and the identity")


@pytest.mark.paper("S182")
@pytest.mark.parametrize("form", [lambda vit: vit, parallel])
def test_layer_scale_folds_into_the_layer_before_it(form):
    vit, images = form(randomized(small_vit())), normal(2, 3, 16, 16)
    before = copy.deepcopy(vit.state_dict())
    folded = fold_layer_scale(vit)
    checks.exact_limit(folded, vit, images, tol=1e-12)
    assert not any(isinstance(module, LayerScale) for module in folded.modules())
    count = [sum(p.numel() for p in model.parameters()) for model in (vit, folded)]
    assert count[0] - count[1] == 2 * 2 * DIM
    checks.equal(list(vit.state_dict().values()), list(before.values()), what="the model it was made from")


@pytest.mark.paper("S182")
def test_a_timm_model_with_layer_scale_keeps_its_logits():
    shape = {"patch_size": 8, "num_classes": 5, "embed_dim": DIM, "depth": 2, "num_heads": 2}
    theirs = randomized(VisionTransformer(img_size=16, init_values=0.1, norm_layer=nn.LayerNorm, **shape))
    ours = small_vit().double().eval()
    ours.load_state_dict(theirs.state_dict())
    checks.exact_limit(fold_layer_scale(ours), theirs, normal(2, 3, 16, 16), tol=1e-12)


def test_without_layer_scale_the_copy_is_the_same():
    vit = randomized(small_vit(layer_scale=None))
    checks.exact_limit(fold_layer_scale(vit), vit, normal(2, 3, 16, 16), tol=0)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("bias", [True, False])
def test_a_norm_passes_its_gain_and_shift_to_what_reads_it(norm, bias):
    norm, linears = randomized(norm(DIM)), [randomized(nn.Linear(DIM, 7, bias=bias)) for _ in range(2)]
    x = normal(2, 5, DIM)
    before = [linear(norm(x)) for linear in linears]
    absorb_affine(norm, linears)
    checks.equal([linear(norm(x)) for linear in linears], before, 1e-12, "after and before")
    assert not list(norm.parameters()) and "elementwise_affine=False" in repr(norm)


def test_what_is_not_attention_or_an_mlp_is_refused():
    vit = small_vit()
    vit.blocks[1].mlp = FoldedFFN(DIM, 4)
    with pytest.raises(
        LabkitError, match=r"Nothing folds into FoldedFFN with the layers direct, bent\.fc1, bent\.fc2:"
    ):
        fold_layer_scale(vit)
    vit = small_vit()
    vit.blocks[0].attn.gate = nn.Linear(DIM, DIM)
    with pytest.raises(LabkitError, match="Nothing folds into Attention with the layers qkv, proj, gate: expected"):
        fold_layer_scale(vit)


@pytest.mark.paper("S182")
def test_the_layer_scale_of_a_class_stage_folds_too():
    vit = randomized(ViT(16, 8, 5, DIM, 1, 2, pool=ClassStage(DIM, 2)))
    folded = fold_layer_scale(vit)
    checks.exact_limit(folded, vit, normal(2, 3, 16, 16), tol=1e-12)
    assert not any(isinstance(module, LayerScale) for module in folded.modules())
