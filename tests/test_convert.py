"""Every plain timm vision transformer becomes ours and goes back, exactly; every other is refused by its odd part."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import Attention, RmsNorm
from timm.layers.mlp import GluMlp, SwiGLU
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from labkit.convert import from_timm, to_timm_state_dict
from labkit.distill import DistilledViT
from labkit.errors import LabkitError
from labkit.vit import ViT
from tests import checks

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}


def scrambled(model: nn.Module) -> nn.Module:
    """Values that let every part speak: at the start tokens and biases are 0, gains 1, LayerScale next to nothing."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            draw = torch.randn(p.shape, generator=generator)
            matrix = p.ndim > 1 and len(p) > 1
            gain = not matrix and name.endswith(("weight", "gamma"))
            p.copy_(draw / p[0].numel() ** 0.5 if matrix else 0.5 * draw + gain)
    return model.eval()


def tiny(kind: type = VisionTransformer, **options) -> VisionTransformer:
    return scrambled(kind(**{**TINY, **options}))


def images(*shape: int) -> torch.Tensor:
    return torch.rand(shape or (2, 3, 16, 16), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def check_equal(theirs: VisionTransformer, x: torch.Tensor, tol: float = 1e-5) -> ViT:
    """Logits and the features of every block, both ways; the strict proof that one is the other."""
    ours, expected = from_timm(theirs), theirs(x)
    assert expected.std() > 0.1, "the logits hardly vary: equality would prove nothing"
    checks.equal(ours(x), expected, tol, "logits")
    seen = ours.observe(x)
    checks.equal(seen.logits, expected, tol, "observed logits")
    features = theirs.forward_intermediates(x, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True)
    for feature, step in zip(features, seen.steps, strict=True):
        feature = torch.cat(feature[::-1], dim=1) if isinstance(feature, tuple) else feature
        checks.equal(step.x, feature, tol * max(1, feature.abs().max().item()), "features of a block")
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    for p in theirs.parameters():
        p.zero_()
    theirs.load_state_dict(to_timm_state_dict(ours), strict=True)
    checks.equal(theirs(x), expected, 0, "timm before and after the way back")
    return ours


# --- every name ----------------------------------------------------------------------------------------------
def names_of_the_class() -> list[str]:
    """All that timm lists as VisionTransformer or a subclass: the entry points of the modules that know the class."""
    family, new = set(), {VisionTransformer}
    while new:
        family |= new
        new = {sub for kind in new for sub in kind.__subclasses__()} - family
    names = []
    for name in timm.list_models():
        module = sys.modules[timm.model_entrypoint(name).__module__]
        if any(isinstance(value, type) and value in family for value in vars(module).values()):
            names.append(name)
    return names


def test_every_name_is_equal_or_refused_with_its_odd_part():
    equal, refused = [], {}
    for name in names_of_the_class():
        sketch = timm.create_model(name, depth=1, device="meta")
        try:
            from_timm(sketch)
        except LabkitError as reason:
            refused[name] = str(reason)
            continue
        heads, patch = sketch.blocks[0].attn.num_heads, sketch.patch_embed.patch_size[0]
        # The same parts at a smaller size, which leaves the same rest behind the last whole patch.
        size = 3 * patch + sketch.patch_embed.img_size[0] % patch
        small = timm.create_model(name, depth=2, embed_dim=8 * heads, img_size=size)
        check_equal(scrambled(small), images(2, 3, size, size))
        equal.append(name)
    parts = Counter(reason.split(": its ")[1].split(", expected")[0] for reason in refused.values())
    print(f"{len(equal)} equal, {len(refused)} refused: {dict(parts)}")
    assert parts.keys() == {
        "patch embedding is HybridEmbed",
        "block is ParallelThingsBlock",
        "block is ParallelScalingBlock",
        "block is DiffParallelScalingBlock",
        "block is ResPostBlock",
        "attention is DiffAttention",
    }
    assert all(reason.startswith("This model is not a plain ViT: its ") for reason in refused.values())
    assert {"deit_small_patch16_224", "vit_so400m_patch14_siglip_384", "vit_giant_patch14_reg4_dinov2"} <= set(equal)
    if timm.__version__ == "1.0.31":
        assert (len(equal), len(refused)) == (169, 37)


OTHERS = [
    *("beit_base_patch16_224", "cait_xxs24_224", "coat_tiny", "convit_tiny", "crossvit_tiny_240", "davit_tiny"),
    *("eva02_tiny_patch14_224", "gcvit_xxtiny", "hiera_tiny_224", "levit_128s", "maxvit_tiny_tf_224", "mixer_s32_224"),
    *("mvitv2_tiny", "naflexvit_base_patch16_gap", "nest_tiny", "pit_ti_224", "pvt_v2_b0", "samvit_base_patch16_224"),
    *("swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "tiny_vit_5m_224", "tnt_s_legacy_patch16_224"),
    *("twins_svt_small", "visformer_tiny", "vit_relpos_small_patch16_224", "volo_d1_224", "xcit_nano_12_p16_224"),
]


@pytest.mark.parametrize("name", OTHERS)
def test_other_families_are_refused(name):
    with torch.device("meta"), pytest.raises(LabkitError) as reason:
        from_timm(name)
    kind = type(timm.create_model(name, device="meta")).__name__
    assert str(reason.value) == (
        f"{name} is not a plain ViT: its class is {kind}, expected VisionTransformer or VisionTransformerDistilled; "
        'a model with the parts of "deit_small_patch16_224" would work.'
    )


# --- as they are published -----------------------------------------------------------------------------------
@pytest.mark.paper("S207")
@pytest.mark.parametrize(
    "name, kind",
    [
        ("deit_small_patch16_224", ViT),
        ("deit_small_distilled_patch16_224", DistilledViT),
        ("deit3_small_patch16_224", ViT),  # LayerScale, no position for the class token
        ("vit_small_patch14_reg4_dinov2", ViT),  # registers, 1369 patches, no head
        ("vit_base_patch32_clip_224", ViT),  # norm before the blocks, no bias in the patch embedding
        ("vit_base_patch16_siglip_224", ViT),  # attention pooling
    ],
)
@torch.no_grad()
def test_full_size_with_the_start_values(name, kind):
    theirs = timm.create_model(name).eval()
    ours = from_timm(theirs)
    assert type(ours) is kind
    x = images(1, 3, *theirs.patch_embed.img_size) * 2 - 1
    checks.equal(ours(x), theirs(x), 1e-5)
    checks.equal(ours.set_impl("plain")(x), theirs(x), 1e-5)


# --- every option --------------------------------------------------------------------------------------------
OPTIONS = {
    "plain": {},
    "no bias in qkv": {"qkv_bias": False},
    "no bias in proj": {"proj_bias": False},
    "norms on q and k": {"qk_norm": True},
    "norms inside attention and mlp": {"scale_attn_norm": True, "scale_mlp_norm": True},
    "RMSNorm everywhere": {"norm_layer": RmsNorm, "qk_norm": True, "scale_attn_norm": True, "pre_norm": True},
    "an eps that matters": {"norm_layer": partial(nn.LayerNorm, eps=0.3)},
    "a norm without gain": {"norm_layer": partial(nn.LayerNorm, elementwise_affine=False)},
    "a norm without shift": {"norm_layer": partial(nn.LayerNorm, bias=False)},
    "a norm in the patch embedding": {"embed_norm_layer": "layernorm"},
    "norm before the blocks": {"pre_norm": True},
    "norm after pooling": {"fc_norm": True},
    "no final norm": {"final_norm": False},
    "LayerScale": {"init_values": 0.1},
    "registers": {"reg_tokens": 3},
    "registers without positions": {"reg_tokens": 3, "no_embed_class": True},
    "no positions": {"pos_embed": "none"},
    "average": {"global_pool": "avg"},
    "average without class token": {"global_pool": "avg", "class_token": False},
    "average of all tokens": {"global_pool": "avg", "reg_tokens": 2, "pool_include_prefix": True},
    "attention pooling": {"global_pool": "map"},
    "attention pooling of all tokens": {"global_pool": "map", "pool_include_prefix": True, "act_layer": "quick_gelu"},
    "GluMlp": {"mlp_layer": GluMlp},
    "GluMlp, gate first": {"mlp_layer": partial(GluMlp, gate_last=False), "act_layer": "silu"},
    "SwiGLU": {"mlp_layer": SwiGLU, "scale_mlp_norm": True, "act_layer": "silu"},
    "ReLU": {"act_layer": "relu"},
    "GELU by tanh": {"act_layer": "gelu_tanh"},
    "QuickGELU": {"act_layer": "quick_gelu"},
    "no head": {"num_classes": 0},
    "one channel": {"in_chans": 1},
    "an oblong image": {"img_size": (16, 40)},
    "oblong patches": {"img_size": (16, 40), "patch_size": (8, 10)},
    "pixels behind the last patch": {"img_size": (21, 31)},
    "dropout in eval mode": {"drop_rate": 0.5, "pos_drop_rate": 0.5, "attn_drop_rate": 0.5, "drop_path_rate": 0.5},
    "distilled": {"kind": VisionTransformerDistilled},
    "distilled without head": {"kind": VisionTransformerDistilled, "num_classes": 0, "init_values": 0.1},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option(options):
    theirs = tiny(**options)
    check_equal(theirs, images(2, theirs.in_chans, *theirs.patch_embed.img_size))


@pytest.mark.parametrize("shape", [(16, 16), (48, 48), (8, 72), (40, 24)])
@pytest.mark.parametrize(
    "options", [{}, {"reg_tokens": 2}, {"no_embed_class": True}, {"class_token": False}, "distilled"]
)
def test_other_sizes_of_image(options, shape):
    """(8, 72) has as many patches as the positions' grid and must be resampled all the same."""
    if options == "distilled":
        options = {"kind": VisionTransformerDistilled}
    elif not options.get("class_token", True):
        options = {**options, "global_pool": "avg"}
    theirs = tiny(img_size=24, dynamic_img_size=True, **options)
    check_equal(theirs, images(2, 3, *shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtype_device_and_mode_follow_timm(dtype):
    theirs = tiny(global_pool="map").to(dtype)
    ours = from_timm(theirs)
    assert {p.dtype for p in ours.parameters()} == {dtype}
    assert not ours.training and from_timm(theirs.train()).training
    x = images().to(dtype)
    checks.equal(ours(x), theirs.eval()(x), 0.05 if dtype == torch.bfloat16 else 1e-12)
    assert {p.device.type for p in from_timm(VisionTransformer(**TINY, device="meta")).parameters()} == {"meta"}


def test_our_own_model_goes_to_timm():
    ours = scrambled(ViT(16, 8, 5, 24, 2, 3, registers=2, layer_scale=0.1))
    eps = partial(nn.LayerNorm, eps=1e-5)
    theirs = VisionTransformer(**TINY, reg_tokens=2, init_values=1, norm_layer=eps).eval()
    theirs.load_state_dict(to_timm_state_dict(ours), strict=True)
    checks.equal(theirs(images()), ours(images()), 1e-5)


def test_the_method_of_the_class_is_the_function():
    assert type(ViT.from_timm("deit_tiny_distilled_patch16_224", depth=1, num_classes=7)) is DistilledViT


# --- refusals by part ----------------------------------------------------------------------------------------
class OwnBlock(Block):
    pass


class OwnViT(VisionTransformer):
    pass


def altered(**parts) -> VisionTransformer:
    """A plain model in which something was exchanged after it was built."""
    model = tiny(global_pool=parts.pop("global_pool", "token"))
    for path, part in parts.items():
        owner, _, name = path.replace("__", ".").rpartition(".")
        setattr(model.get_submodule(owner), name, part)
    return model


@pytest.mark.parametrize(
    "build, sentence",
    [
        (lambda: tiny(patch_drop_rate=0.5), "patch_drop is PatchDropout, expected Identity"),
        (lambda: tiny(dynamic_img_pad=True), "pads or overlaps; dynamic_img_pad=False would work"),
        (lambda: tiny(block_fn=OwnBlock), "block is OwnBlock, expected Block"),
        (lambda: tiny(OwnViT), "class is OwnViT, expected VisionTransformer or"),
        (lambda: tiny(global_pool="max"), "global_pool is 'max'; 'token', 'avg' or 'map' would work"),
        (lambda: tiny(global_pool="avgmax"), "global_pool is 'avgmax'"),
        (lambda: tiny(global_pool=""), "global_pool is ''"),
        (lambda: tiny(global_pool="prr"), "pooling is AttentionPoolPrr, expected AttentionPoolLatent"),
        (lambda: tiny(act_layer="mish"), "activation is Mish, expected GELU or SiLU"),
        (lambda: tiny(norm_layer="simplenorm"), "is SimpleNorm, expected Identity or LayerNorm"),
        (lambda: tiny(VisionTransformerDistilled, fc_norm=True), "fc_norm is LayerNorm, expected Identity"),
        (lambda: tiny(VisionTransformerDistilled, reg_tokens=2), "reg_token is Parameter, expected none"),
        (lambda: altered(blocks__0__attn__gate=nn.Linear(24, 24)), "attention's gate is Linear, expected none"),
        (lambda: altered(blocks__1__attn=Attention(24, 3, attn_head_dim=16)), "attention is 48 wide in .* width 24"),
        (lambda: altered(blocks__0__mlp=nn.Identity()), "MLP is Identity, expected Mlp or GluMlp or SwiGLU"),
        (lambda: altered(blocks__0__mlp__fc1=nn.Conv1d(24, 96, 1)), "fc1 is Conv1d, expected Linear"),
        (lambda: altered(blocks__0__ls1=nn.Dropout()), "LayerScale is Dropout, expected LayerScale or Identity"),
        (lambda: altered(head=nn.Sequential(nn.Linear(24, 5))), "head is Sequential, expected Linear or Identity"),
        (lambda: altered(patch_embed__proj=nn.Conv2d(3, 24, 8, 4)), "patch embedding pads or overlaps"),
        (lambda: altered(extra=nn.Parameter(torch.ones(3))), r"extra is \(3,\), here it would be None"),
        (lambda: altered(pos_embed=nn.Parameter(torch.ones(1, 9, 24))), r"pos_embed is \(1, 9, 24\), .* \(1, 5, 24\)"),
        (lambda: altered(global_pool="map", attn_pool__latent_len=2), "pooling has more than one query"),
        (lambda: altered(global_pool="map", attn_pool__q_norm=nn.LayerNorm(8)), "pooling's q_norm is LayerNorm"),
    ],
)
def test_refused_by_part(build, sentence):
    with pytest.raises(LabkitError, match="^This model is not a plain ViT: its .*" + sentence):
        from_timm(build())


def test_a_buffer_or_a_shared_weight_is_not_passed_over():
    model = tiny()
    model.register_buffer("scale", torch.ones(2))
    with pytest.raises(LabkitError, match=r"its scale is \(2,\), here it would be None"):
        from_timm(model)
    model = tiny()
    model.blocks[1].norm1 = model.blocks[0].norm1
    with pytest.raises(LabkitError, match=r"its blocks.1.norm1.weight is None, here it would be \(24,\)"):
        from_timm(model)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda vit: setattr(vit.blocks[0], "reducer", "ToMe"), "the token reducer of blocks.0"),
        (lambda vit: setattr(vit.blocks[0], "attn", nn.Bilinear(2, 2, 2)), "blocks.0.attn, Bilinear"),
        (lambda vit: setattr(vit, "patch_embed", nn.Unfold(8)), "patch_embed, Unfold"),
    ],
)
def test_what_timm_has_no_place_for_is_not_written_back(change, sentence):
    vit = ViT(16, 8, 5, 24, 2, 3)
    change(vit)
    with pytest.raises(LabkitError, match=f"timm's VisionTransformer has no place for {sentence}; write back"):
        to_timm_state_dict(vit)


# --- names and weights ---------------------------------------------------------------------------------------
SMALL = {"depth": 1, "embed_dim": 24, "img_size": 32, "num_classes": 5}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "deit.safetensors"
    save_file(scrambled(timm.create_model("deit_tiny_patch16_224", **SMALL)).state_dict(), path)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    """An empty cache of downloads, and a network that is off."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def same_as_the_file(ours: ViT) -> bool:
    theirs = scrambled(timm.create_model("deit_tiny_patch16_224", **SMALL))
    return torch.equal(ours.state_dict()["blocks.0.attn.qkv.weight"], theirs.blocks[0].attn.qkv.weight)


def test_weights_from_a_file(weights):
    x = images(1, 3, 32, 32)
    theirs = scrambled(timm.create_model("deit_tiny_patch16_224", **SMALL))
    ours = from_timm("deit_tiny_patch16_224", weights=weights, **SMALL).eval()
    checks.equal(ours(x), theirs(x), 1e-5)
    path = weights.with_name("back.safetensors")
    save_file(to_timm_state_dict(ours), path)
    options = {name: value for name, value in SMALL.items() if name != "num_classes"}  # the file knows its classes
    again = from_timm("deit_tiny_patch16_224", weights=str(path), **options).eval()
    checks.equal(again(x), ours(x))


def test_weights_from_a_file_are_adapted(weights):
    ours = from_timm("deit_tiny_patch16_224", weights=weights, **{**SMALL, "num_classes": 9, "img_size": 48})
    assert same_as_the_file(ours)
    assert ours.grid == (3, 3) and ours.head.out_features == 9 and ours.head.weight.std() < 0.1  # a new head


def test_published_weights_come_as_safetensors_from_the_cache_or_the_network(weights, monkeypatch):
    asked = []

    def download(repo: str, filename: str, local_files_only: bool) -> str:
        asked.append((repo, filename, local_files_only))
        return str(weights)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.delenv("LABKIT_OFFLINE", raising=False)
    assert same_as_the_file(from_timm("deit_tiny_patch16_224.fb_in1k", pretrained=True, **SMALL))
    monkeypatch.setenv("LABKIT_OFFLINE", "1")
    assert same_as_the_file(from_timm("deit_tiny_patch16_224", pretrained=True, **SMALL))
    repo = "timm/deit_tiny_patch16_224.fb_in1k"
    assert asked == [(repo, "model.safetensors", False), (repo, "model.safetensors", True)]


@pytest.mark.parametrize("offline, why", [("1", "LABKIT_OFFLINE forbids a download"), ("0", "cannot be fetched")])
def test_without_a_network(cache, monkeypatch, offline, why):
    monkeypatch.setenv("LABKIT_OFFLINE", offline)
    sentence = (
        rf"weights of deit_tiny_patch16_224 are not on this machine and {why}.*; fetch model.safetensors of timm/"
    )
    with pytest.raises(LabkitError, match=sentence):
        from_timm("deit_tiny_patch16_224", pretrained=True)


@pytest.mark.parametrize(
    "name, options, sentence",
    [
        ("deit_smal_patch16_224", {}, 'knows no model "deit_smal_patch16_224". Did you mean "deit_small_patch16_224"'),
        ("no such thing", {}, r"timm.list_models\(\) gives all names"),
        ("deit_tiny_patch16_224", {"colour": "red"}, "cannot build deit_tiny_patch16_224 like this: .*colour"),
        ("deit_tiny_patch16_224", {"embed_dim": 50}, "like this: .*divisible"),
        ("deit_tiny_patch16_224", {"checkpoint_path": "x.pth"}, 'as a pickle; use weights="file.safetensors"'),
        ("deit_tiny_patch16_224.fb_in2k", {"pretrained": True}, 'No weights .* "deit_tiny_patch16_224.fb_in1k"'),
        ("vit_base_patch16_xp_224", {"pretrained": True}, "No weights are published for .*Use pretrained=False"),
        ("deit_tiny_patch16_224", {"weights": "x.pth"}, "x.pth is not a .safetensors file, and loading a pickle"),
        ("deit_tiny_patch16_224", {"weights": "x.safetensors"}, "There is no weights file x.safetensors"),
    ],
)
def test_bad_names_and_arguments(name, options, sentence):
    with pytest.raises(LabkitError, match=sentence):
        from_timm(name, **options)


def test_bad_files(weights):
    with pytest.raises(LabkitError, match=r"cannot build vit_tiny_patch16_224 like this: .*size mismatch"):
        from_timm("vit_tiny_patch16_224", weights=weights, depth=1)
    weights.write_bytes(b"not safetensors")
    with pytest.raises(
        LabkitError, match=r"deit.safetensors is not a readable safetensors file \(.*\); fetch it again"
    ):
        from_timm("deit_tiny_patch16_224", weights=weights)
    with pytest.raises(LabkitError, match="built already; weights and timm's arguments go with a name"):
        from_timm(tiny(), pretrained=True)


def test_timm_is_imported_only_when_it_is_asked_for():
    code = "import sys, labkit.convert; sys.exit('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
