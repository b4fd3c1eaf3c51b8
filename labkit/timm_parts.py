"""A timm vision transformer, part by part: each is looked at and rebuilt from our blocks, in timm's shapes.

Only the very types that are named here pass, because a subclass may compute something else. The values of the
weights are another matter: `labkit.convert` fills them in.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from labkit.distill import DistilledViT
from labkit.errors import LabkitError
from labkit.mlp import GatedMLP, QuickGELU, SplitGatedMLP
from labkit.pooling import AttentionPool
from labkit.vit import MLP, Attention, Block, LayerScale, PatchEmbed, ViT

Timm = Any  # a module of timm, whose attributes are known to timm alone
PLAIN = {  # what a model that timm can read back is made of
    *(
        ViT,
        DistilledViT,
        PatchEmbed,
        Block,
        Attention,
        MLP,
        GatedMLP,
        SplitGatedMLP,
        LayerScale,
        AttentionPool,
    ),
    *(nn.ModuleList, nn.Conv2d, nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Identity),
    *(nn.GELU, QuickGELU, nn.SiLU, nn.ReLU, nn.Sigmoid),
}
WOULD_WORK = 'a model with the parts of "deit_small_patch16_224" would work.'


def vit(model: Timm) -> ViT:
    """A ViT with the parts of a timm VisionTransformer, or the sentence that names the part it lacks."""
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    _expect(model, "class", VisionTransformer, VisionTransformerDistilled)
    _expect(model.patch_drop, "patch_drop", nn.Identity)
    distilled = type(model) is VisionTransformerDistilled
    if distilled:  # timm accepts these beside a distillation token, and then passes over them
        _expect(model.fc_norm, "fc_norm", nn.Identity)
        _expect(model.reg_token, "reg_token", type(None))
    patch = model.patch_embed
    ours = (DistilledViT if distilled else ViT)(
        patching=_patch_embed(patch),
        image_size=(patch.grid_size[0] * patch.patch_size[0], patch.grid_size[1] * patch.patch_size[1]),
        channels=patch.proj.in_channels,
        classes=1,
        dim=model.embed_dim,
        depth=0,
        pool=_pool(model),
        class_token=model.cls_token is not None,
        registers=0 if model.reg_token is None else model.reg_token.shape[1],
        positions=model.pos_embed is not None,
        prefix_positions=not model.no_embed_class,
    )
    ours.blocks = nn.ModuleList(_block(block) for block in model.blocks)
    ours.pools_prefix = getattr(model, "pool_include_prefix", False)
    return _like(ours, model)


def _patch_embed(patch: Timm) -> PatchEmbed:
    import timm.layers

    _expect(patch, "patch embedding", timm.layers.PatchEmbed)
    _expect(patch.proj, "patch projection", nn.Conv2d)
    conv = patch.proj
    if patch.dynamic_img_pad or conv.stride != conv.kernel_size or any(conv.padding):
        raise LabkitError("its patch embedding pads or overlaps; dynamic_img_pad=False would work.")
    ours = PatchEmbed(conv.kernel_size, conv.in_channels, conv.out_channels, bias=conv.bias is not None)
    # At a fixed size timm drops the pixels behind the last whole patch; a SigLIP has 384 = 27 · 14 + 6.
    ours.crop = any(size % p for size, p in zip(patch.img_size, patch.patch_size, strict=True))
    return _like(ours, patch)


def _block(block: Timm) -> Block:
    from timm.models.vision_transformer import Block as TimmBlock

    _expect(block, "block", TimmBlock)
    attn, mlp = _attention(block.attn), _mlp(block.mlp)
    ours = Block(attn.qkv.in_features, attn.heads, mixer=attn, mlp=mlp)
    ours.ls1, ours.ls2 = _layer_scale(block.ls1), _layer_scale(block.ls2)
    return _like(ours, block)


def _layer_scale(scale: Timm) -> nn.Module:
    from timm.models.vision_transformer import LayerScale as TimmLayerScale

    _expect(scale, "LayerScale", TimmLayerScale, nn.Identity)
    return nn.Identity() if isinstance(scale, nn.Identity) else LayerScale(len(scale.gamma))


def _attention(attn: Timm) -> Attention:
    import timm.layers

    _expect(attn, "attention", timm.layers.Attention)
    _expect(getattr(attn, "gate", None), "attention's gate", type(None))
    dim, width = attn.qkv.in_features, attn.num_heads * attn.head_dim
    if dim != width:
        raise LabkitError(f"its attention is {width} wide in a model of width {dim}; {WOULD_WORK}")
    return _like(Attention(dim, attn.num_heads), attn)


def _mlp(mlp: Timm) -> Any:
    from timm.layers import GluMlp, Mlp, SwiGLU

    _expect(mlp, "MLP", Mlp, GluMlp, SwiGLU)
    dim, hidden, act = mlp.fc2.out_features, mlp.fc2.in_features, _act(mlp.act)
    if type(mlp) is GluMlp:
        return _like(GatedMLP(dim, hidden, lambda: act, mlp.gate_last), mlp)
    return _like((MLP if type(mlp) is Mlp else SplitGatedMLP)(dim, hidden, lambda: act), mlp)


def _act(act: Timm) -> nn.Module:
    import timm.layers as tl

    known: dict[type, type[nn.Module]] = {kind: kind for kind in (nn.GELU, nn.SiLU, nn.ReLU, nn.Sigmoid)}
    known |= {tl.GELU: nn.GELU, tl.QuickGELU: QuickGELU, tl.Sigmoid: nn.Sigmoid, tl.GELUTanh: nn.GELU}
    _expect(act, "activation", *known)
    tanh = type(act) is tl.GELUTanh or getattr(act, "approximate", "none") == "tanh"
    return nn.GELU("tanh") if tanh else known[type(act)]()


def _pool(model: Timm) -> Literal["class", "avg"] | AttentionPool:
    from timm.layers import AttentionPoolLatent

    pool = model.attn_pool
    if pool is None:
        if model.global_pool not in ("token", "avg"):
            raise LabkitError(f"its global_pool is {model.global_pool!r}; 'token', 'avg' or 'map' would work.")
        return "class" if model.global_pool == "token" else "avg"
    _expect(pool, "pooling", AttentionPoolLatent)
    for name, kind in {"pos_embed": type(None), "q_norm": nn.Identity, "k_norm": nn.Identity}.items():
        _expect(getattr(pool, name), f"pooling's {name}", kind)
    if pool.latent_len != 1 or pool.pool != "token":
        raise LabkitError("its pooling has more than one query; latent_len=1, pool_type='token' would work.")
    ours = AttentionPool(pool.kv.in_features, pool.num_heads)
    ours.mlp = _mlp(pool.mlp)
    return _like(ours, pool)


def _like(ours: Any, theirs: Timm) -> Any:
    """Our part with every linear layer and norm made to the measures of the one that timm calls the same."""
    for name, child in list(ours.named_children()):
        if isinstance(child, nn.Linear):
            setattr(ours, name, _linear(getattr(theirs, name), name))
        elif "norm" in name:
            setattr(ours, name, _norm(getattr(theirs, name), name))
    return ours


def _linear(linear: Timm, name: str) -> nn.Module:
    _expect(linear, name, nn.Linear, nn.Identity)
    if isinstance(linear, nn.Identity):
        return nn.Identity()
    return nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None)


def _norm(norm: Timm, name: str) -> nn.Module:
    import timm.layers as tl

    layer_norms = (nn.LayerNorm, tl.LayerNorm, tl.LayerNormFp32)
    rms_norms = (nn.RMSNorm, tl.RmsNorm, tl.RmsNormFp32)
    _expect(norm, name, nn.Identity, *layer_norms, *rms_norms)
    if isinstance(norm, nn.Identity):
        return nn.Identity()
    shape, affine = norm.normalized_shape, norm.weight is not None
    if isinstance(norm, rms_norms):
        return nn.RMSNorm(shape, norm.eps, elementwise_affine=affine)
    return nn.LayerNorm(shape, norm.eps, elementwise_affine=affine, bias=norm.bias is not None)


def _expect(part: Any, name: str, *kinds: type) -> None:
    if type(part) not in kinds:
        known = dict.fromkeys("none" if kind is type(None) else kind.__name__ for kind in kinds)
        found = type(part).__name__ if type(part).__name__ not in known else str(type(part))
        raise LabkitError(f"its {name} is {found}, expected {' or '.join(known)}; {WOULD_WORK}")
