"""A pre-norm ViT whose tokens have no mean: RMSNorm for LayerNorm, one coordinate less, the same logits."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from labkit.blocks import parallel
from labkit.compress.rmsnorm import CRMSNorm, to_pre_crmsnorm, to_pre_rmsnorm
from labkit.distill import DistilledViT
from labkit.errors import LabkitError
from labkit.mlp import GatedMLP, SplitGatedMLP
from labkit.patching.hmlp import HMLPStem
from labkit.pooling import AttentionPool
from labkit.vit import ViT
from tests import checks
from tests.weights import normal, randomized

DIM, HEADS, DEPTH = 24, 3, 3
NORM = partial(nn.LayerNorm, eps=1e-6)
IMAGES = normal(2, 3, 16, 16)
CONVERSIONS = pytest.mark.parametrize("convert", [to_pre_rmsnorm, to_pre_crmsnorm])


def small_vit(**options) -> ViT:
    return randomized(ViT(16, 4, 5, DIM, DEPTH, HEADS, norm=NORM, **options))


def from_timm(**options) -> tuple[ViT, VisionTransformer]:
    """A timm model with random weights and ours with the same weights."""
    shape = {"patch_size": 4, "num_classes": 5, "embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS}
    theirs = randomized(VisionTransformer(img_size=16, **shape, **options))
    ours = ViT(16, 4, 5, DIM, DEPTH, HEADS, norm=NORM, layer_scale=options.get("init_values")).double().eval()
    if theirs.global_pool == "avg":
        ours = ViT(16, 4, 5, DIM, DEPTH, HEADS, norm=NORM, pool="avg", class_token=True).double().eval()
        ours.norm, ours.fc_norm = ours.fc_norm, ours.norm
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def worst_mean(model: ViT) -> float:
    seen = model.observe(IMAGES)
    return max(x.mean(dim=-1).abs().max().item() for x in (seen.embedded, *(step.x for step in seen.steps)))


@pytest.mark.paper("S092")
def test_the_norms_agree_where_the_mean_is_zero():
    x = normal(50, DIM)
    x = x - x.mean(dim=-1, keepdim=True)
    layer, rms = nn.LayerNorm(DIM, 1e-6).double(), nn.RMSNorm(DIM, 1e-6).double()
    checks.equal(rms(x), layer(x), 5e-15, "RMSNorm and LayerNorm")
    checks.equal(CRMSNorm(DIM - 1, 1e-6)(x[:, :-1]), layer(x)[:, :-1], 5e-15, "CRMSNorm and LayerNorm")


@pytest.mark.paper("S092")
@CONVERSIONS
@pytest.mark.parametrize("options", [{}, {"init_values": 0.1}, {"global_pool": "avg"}])
def test_a_timm_model_keeps_its_logits_and_gradients(convert, options):
    ours, theirs = from_timm(**options)
    converted = convert(ours)
    checks.exact_limit(converted, theirs, IMAGES, tol=1e-10)
    checks.equal_gradients(converted, theirs, IMAGES, tol=1e-10)
    kinds = {type(m) for m in converted.modules() if "Norm" in type(m).__name__}
    assert kinds == {nn.RMSNorm if convert is to_pre_rmsnorm else CRMSNorm}


@pytest.mark.paper("S092")
@pytest.mark.parametrize("options", [{}, {"layer_scale": 0.1}, {"registers": 2, "pool": "avg"}])
def test_the_tokens_have_mean_zero_after_every_block(options):
    vit = small_vit(**options)
    assert worst_mean(vit) > 0.1
    assert worst_mean(to_pre_rmsnorm(vit)) <= 1e-12


@pytest.mark.paper("S092")
def test_the_stream_is_one_coordinate_narrower_and_so_is_the_bill():
    vit, n, hidden = small_vit(), 17, 4 * DIM
    narrow = to_pre_crmsnorm(vit)
    assert {step.x.shape[-1] for step in narrow.observe(IMAGES).steps} == {DIM - 1}
    for layer in (module for module in narrow.modules() if isinstance(module, nn.Linear)):
        assert (layer.out_features, layer.in_features) == layer.weight.shape
    for model, stream in ((vit, DIM), (narrow, DIM - 1)):
        model.last = "full"
        block = n * stream * (4 * DIM + 2 * hidden) + 2 * n * n * DIM
        checks.cost_law(16 * stream * 48 + DEPTH * block + stream * 5, model, IMAGES[:1])


@CONVERSIONS
@pytest.mark.parametrize(
    "options", [{"registers": 2, "class_token": True, "pool": "avg"}, {"positions": False}, {"impl": "plain"}]
)
def test_every_plain_vit_keeps_its_logits(convert, options):
    vit = small_vit(**options)
    before = [weight.clone() for weight in vit.state_dict().values()]
    checks.exact_limit(convert(vit), vit, IMAGES, tol=1e-10)
    checks.equal(list(vit.state_dict().values()), before, what="the model it was made from")


@CONVERSIONS
def test_a_vit_in_pairs_keeps_its_logits(convert):
    vit = parallel(randomized(ViT(16, 4, 5, DIM, 4, HEADS, layer_scale=0.1)))
    checks.exact_limit(convert(vit), vit, IMAGES, tol=1e-10)


@CONVERSIONS
def test_where_a_norm_ends_the_embedding_the_tokens_are_centred(convert):
    vit = randomized(ViT(16, 4, 5, DIM, DEPTH, HEADS, patching=HMLPStem(4, DIM).eval()))
    checks.exact_limit(convert(vit), vit, IMAGES, tol=1e-10)
    for part, name in ((lambda vit: vit, "norm_pre"), (lambda vit: vit.patch_embed, "norm")):
        vit = small_vit()
        setattr(part(vit), name, randomized(nn.LayerNorm(DIM)))
        checks.exact_limit(convert(vit), vit, IMAGES, tol=1e-10)
        assert worst_mean(to_pre_rmsnorm(vit)) <= 1e-12


@CONVERSIONS
def test_two_heads_an_attention_pool_and_gated_mlps_keep_their_logits(convert):
    two_heads = DistilledViT(16, 4, 5, DIM, DEPTH, HEADS)
    pooled = ViT(16, 4, 5, DIM, DEPTH, HEADS, pool=AttentionPool(DIM, HEADS))
    pooled.fc_norm = nn.LayerNorm(DIM)
    gated = ViT(16, 4, 5, DIM, 2, HEADS)
    gated.blocks[0].mlp, gated.blocks[1].mlp = GatedMLP(DIM, 32), SplitGatedMLP(DIM, 32)
    for vit in map(randomized, (two_heads, pooled, gated)):
        checks.exact_limit(convert(vit), vit, IMAGES, tol=1e-10)


@CONVERSIONS
def test_attention_without_a_bias_gets_one(convert):
    vit = small_vit()
    for block in vit.blocks:
        block.attn.qkv.register_parameter("bias", None)
    checks.exact_limit(convert(vit), vit, IMAGES, tol=1e-10)


def test_in_float32_the_logits_agree_as_far_as_float32_does():
    vit = ViT(16, 4, 5, DIM, DEPTH, HEADS).eval()
    for convert in (to_pre_rmsnorm, to_pre_crmsnorm):
        checks.exact_limit(convert(vit), vit, IMAGES.float(), tol=1e-5)


def test_what_cannot_be_converted_is_a_sentence():
    with pytest.raises(LabkitError, match="Block 0 normalises with RMSNorm; expected a LayerNorm"):
        to_pre_rmsnorm(ViT(16, 4, 5, DIM, 1, HEADS, norm=nn.RMSNorm))
    with pytest.raises(LabkitError, match="Block 0 normalises with RMSNorm"):
        to_pre_rmsnorm(to_pre_rmsnorm(small_vit()))
    with pytest.raises(LabkitError, match="Block 0 normalises with BatchNorm1d"):
        to_pre_rmsnorm(ViT(16, 4, 5, DIM, 1, HEADS, norm=nn.BatchNorm1d))
    with pytest.raises(LabkitError, match="The gain and shift of the last norm have nowhere to go"):
        to_pre_rmsnorm(ViT(16, 4, 5, DIM, 1, HEADS, pool=nn.Flatten()))
    with pytest.raises(LabkitError, match="have nowhere to go"):
        to_pre_rmsnorm(ViT(16, 4, 0, DIM, 1, HEADS))
    vit = small_vit()
    vit.blocks[2].attn = nn.MultiheadAttention(DIM, HEADS)
    with pytest.raises(LabkitError, match="Nothing folds into MultiheadAttention"):
        to_pre_rmsnorm(vit)
    vit = small_vit()
    vit.blocks[1] = nn.Identity()
    with pytest.raises(LabkitError, match="Block 1 is a Identity; expected a Block or a ParallelBlock"):
        to_pre_rmsnorm(vit)


def test_a_model_with_the_compressed_norm_can_be_built_and_trained():
    vit = ViT(16, 4, 5, DIM, 1, HEADS, norm=CRMSNorm)
    checks.gradients_flow(vit, torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
