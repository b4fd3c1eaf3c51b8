"""Parameters, MACs and bytes: equal to the closed formulas and to torch's counter, whether fused or not."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from labkit.cost import PARTS, block_macs, count
from labkit.errors import LabkitError
from labkit.operations import operations, part_of
from labkit.vit import ViT

DEIT_SMALL = 4_598_882_304  # MACs of one image, every row of the last block included
TABLE = """\
part       parameters (M)  MACs (G)    share  weights (MB)  activations (MB)
---------  --------------  --------  -------  ------------  ----------------
patch               0.295     0.058    1.3 %         1.181             0.903
qkv                 5.322     1.046   22.7 %        21.289            14.524
attention           0.000     0.358    7.8 %         0.000            14.524
proj                1.774     0.349    7.6 %         7.096             7.262
mlp                14.179     2.789   60.6 %        56.715            36.311
head                0.385     0.000    0.0 %         1.540             0.006
other               0.095     0.000    0.0 %         0.381             0.000
total              22.051     4.599  100.0 %        88.203            73.531"""

SMALL = {"image_size": 32, "patch_size": 8, "classes": 10, "dim": 24, "depth": 3, "heads": 4}


def small(**options) -> ViT:
    torch.manual_seed(0)
    return ViT(**SMALL | options)


def deit_small(**options) -> ViT:
    with torch.device("meta"):
        vit = ViT(dim=384, heads=6, **options)
    vit.last = "full"
    return vit


def timm_deit_small(fused: bool) -> nn.Module:
    before = timm.layers.use_fused_attn()
    timm.layers.set_fused_attn(fused)
    try:
        with torch.device("meta"):
            return timm.create_model("deit_small_patch16_224").eval()
    finally:
        timm.layers.set_fused_attn(bool(before))


def torch_counts(model, images) -> float:
    """MACs by torch's own counter, which counts two operations for each."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(images)
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("impl", ["plain", "fast"])
def test_deit_small_has_4599_million_macs_fused_or_not(impl):
    assert count(deit_small(impl=impl)).macs == DEIT_SMALL
    assert count(timm_deit_small(fused=impl == "fast")).macs == DEIT_SMALL


def test_ours_and_timms_agree_part_by_part():
    assert count(deit_small(impl="fast")).parts == count(timm_deit_small(fused=True)).parts
    assert count(deit_small(impl="plain")).parts == count(timm_deit_small(fused=False)).parts


def test_the_class_row_saves_319_million_macs():
    vit = deit_small()
    vit.last = "class"
    full, row = block_macs(197, 384), block_macs(197, 384, rows=1)
    saved = sum(full.values()) - sum(row.values())
    assert round(saved / 1e6) == 319
    assert count(vit).macs == DEIT_SMALL - saved


def test_the_counter_of_torch_agrees_where_nothing_is_fused():
    images = torch.zeros(1, 3, 224, 224, device="meta")
    for model in (timm_deit_small(fused=False), deit_small(impl="plain")):
        assert torch_counts(model, images) == pytest.approx(DEIT_SMALL, rel=3e-3)


def test_the_counter_of_torch_loses_fused_attention():
    """On a CPU an older torch counts 4.241 of 4.599 G, and every torch loses part of its own fused layer."""
    knows_fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu in flop_registry
    model = timm_deit_small(fused=True).to_empty(device="cpu")
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    seen = torch_counts(model, torch.zeros(1, 3, 224, 224)) / 1e9
    assert seen == pytest.approx(4.599 if knows_fused else 4.241, abs=1e-3)
    assert count(model).macs == DEIT_SMALL

    n, d, x = 17, 32, torch.zeros(1, 17, 32)
    layer = nn.TransformerEncoderLayer(d, 4, 4 * d, batch_first=True).eval()
    law = sum(block_macs(n, d).values())
    assert sum(step.macs for step in operations(layer, x)) == law
    assert torch_counts(layer, x) < 0.7 * law


@pytest.mark.parametrize("impl", ["plain", "fast"])
@pytest.mark.parametrize("last", ["class", "full"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"registers": 3},
        {"pool": "avg"},
        {"pool": "avg", "class_token": True, "registers": 2},
        {"mlp_ratio": 2.5, "channels": 1},
        {"image_size": (24, 40)},
        {"layer_scale": 0.1, "positions": False},
    ],
    ids=str,
)
def test_the_closed_formulas_hold(options, last, impl):
    vit = small(impl=impl, **options)
    vit.last = last
    (h, w), d, channels = vit.grid, SMALL["dim"], options.get("channels", 3)
    n, ratio = vit.prefix + h * w, options.get("mlp_ratio", 4.0)
    one_row = last == "class" and impl == "fast" and options.get("pool", "class") == "class"
    blocks = [block_macs(n, d, ratio)] * 2 + [block_macs(n, d, ratio, rows=1 if one_row else None)]
    law = {part: sum(block[part] for block in blocks) for part in blocks[0]}
    law |= {"patch": h * w * d * channels * 8 * 8, "head": 10 * d, "other": 0}
    assert {part: costs["macs"] for part, costs in count(vit).parts.items()} == law


@pytest.mark.parametrize("size", [32, (16, 48)])
def test_another_image_size_is_another_number_of_tokens(size):
    vit = small()
    vit.last = "full"
    n = 1 + (16 if size == 32 else 12)
    assert count(vit, size).parts["attention"]["macs"] == 3 * block_macs(n, 24)["attention"]


@pytest.mark.parametrize("batch", [2, 5])
def test_a_batch_costs_that_many_images_and_one_set_of_weights(batch):
    vit = small(impl="plain")
    one, many = count(vit), count(vit, batch=batch)
    assert many.macs == batch * one.macs == torch_counts(vit, torch.zeros(batch, 3, 32, 32))
    assert many.total("activation_bytes") == batch * one.total("activation_bytes")
    assert many.total("weight_bytes") == one.total("weight_bytes")
    assert many.params == one.params == sum(p.numel() for p in vit.parameters())


class FirstTokens:
    """Keeps the first m tokens."""

    def __init__(self, m: int) -> None:
        self.m = m

    def reduce(self, x, evidence, sizes, prefix):
        return x[:, : self.m], torch.eye(self.m, x.shape[1]).expand(len(x), -1, -1)


@pytest.mark.parametrize("impl", ["plain", "fast"])
def test_only_the_tokens_that_flow_are_counted(impl):
    vit = small(impl=impl)
    vit.last = "full"
    before = count(vit).parts
    vit.blocks[0].reducer = FirstTokens(5)
    after, slim, full = count(vit).parts, block_macs(5, 24), block_macs(17, 24)
    for part in ("qkv", "attention", "proj"):
        assert after[part]["macs"] == full[part] + 2 * slim[part]
    assert after["mlp"]["macs"] == 3 * slim["mlp"]
    assert after["other"]["macs"] == 0  # choosing tokens and counting their patches multiplies nothing
    assert after["head"] == before["head"]


def test_bytes_follow_the_dtype_and_written_scores_cost_bytes_not_macs():
    n, d, heads = 17, 24, 4
    fast, plain = small(impl="fast"), small(impl="plain")
    fast.last = "full"
    fused, written = count(fast).parts["attention"], count(plain).parts["attention"]
    assert fused["activation_bytes"] == 3 * 4 * (3 * n * d + n * d)
    assert written["activation_bytes"] == fused["activation_bytes"] + 3 * 4 * 2 * heads * n * n
    assert written["macs"] == fused["macs"]
    half = count(fast.to(torch.bfloat16))
    assert half.bytes * 2 == count(small_full()).bytes


def small_full() -> ViT:
    vit = small()
    vit.last = "full"
    return vit


@pytest.mark.parametrize(
    "layer, shape",
    [
        (nn.Linear(8, 5), (2, 3, 8)),
        (nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)),
        (nn.Conv2d(4, 6, 3, stride=2, groups=2), (2, 4, 9, 7)),
        (nn.Conv2d(4, 4, 3, dilation=2, padding="same", groups=4), (1, 4, 9, 7)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (1, 4, 5, 6)),
    ],
    ids=str,
)
def test_every_layer_counts_as_torch_counts_it(layer, shape):
    (step,) = operations(layer, torch.zeros(shape))
    assert step.macs == torch_counts(layer, torch.zeros(shape))
    assert step.weight_bytes == 4 * layer.weight.numel()
    assert step.activation_bytes == 4 * (torch.zeros(shape).numel() + layer(torch.zeros(shape)).numel())


@pytest.mark.parametrize(
    "fn, macs",
    [
        (lambda a, b: torch.einsum("bnd,bmd->bnm", a, b), 2 * 3 * 3 * 4),
        (lambda a, b: a @ b.mT, 2 * 3 * 3 * 4),
        (lambda a, b: a @ b[0, 0], 2 * 3 * 4),
        (lambda a, b: torch.baddbmm(a @ b.mT, a, b.mT), 2 * 2 * 3 * 3 * 4),
        (lambda a, b: F.scaled_dot_product_attention(a, b, b), 2 * 2 * 3 * 3 * 4),
        (lambda a, b: torch._int_mm(torch.ones(32, 16).char(), torch.ones(16, 8).char()), 32 * 16 * 8),
        (lambda a, b: a * b + a.softmax(-1), 0),
    ],
)
def test_products_of_activations_are_counted(fn, macs):
    a, b = torch.ones(2, 3, 4), torch.ones(2, 3, 4)
    steps = operations(fn, a, b)
    assert sum(step.macs for step in steps) == macs
    assert all(step.weight_bytes == 0 for step in steps)


def test_layers_that_compute_their_weights_are_found_by_where_they_run():
    class Rounded(nn.Linear):
        def forward(self, x):
            return F.linear(x, (self.weight * 8).round() / 8, self.bias)

    vit = small_full()
    before = count(vit).parts
    for block in vit.blocks:
        attn = block.attn
        attn.qkv, attn.proj, block.mlp.fc1 = Rounded(24, 72), Rounded(24, 24), Rounded(24, 96)
    macs = {part: costs["macs"] for part, costs in count(vit).parts.items()}
    assert macs == {part: costs["macs"] for part, costs in before.items()}


def test_a_layer_between_q_and_the_scores_is_no_attention_and_hides_none():
    vit = small_full()
    before = count(vit).parts
    vit.blocks[1].attn.q_norm = nn.Linear(6, 6)
    after = count(vit).parts
    assert after["other"]["macs"] == 17 * 24 * 6
    assert after["attention"]["macs"] == before["attention"]["macs"]


@pytest.mark.parametrize(
    "path, part",
    [
        ("patch_embed.proj.weight", "patch"),
        ("patch_embed.norm.bias", "patch"),
        ("blocks.3.attn.qkv.bias", "qkv"),
        ("blocks.3.attn.q_norm.weight", "other"),
        ("blocks.3.attn.proj.weight", "proj"),
        ("blocks.3.mlp.fc1.weight", "mlp"),
        ("blocks.3.norm1.weight", "other"),
        ("encoder.layers.encoder_layer_0.self_attention.in_proj_weight", "qkv"),
        ("encoder.layers.encoder_layer_0.self_attention.out_proj.weight", "proj"),
        ("attn_pool.q.weight", "head"),
        ("head_dist.bias", "head"),
        ("heads.head.weight", "head"),
        ("fc_norm.weight", "other"),
        ("cls_token", "other"),
        ("pos_embed", "other"),
    ],
)
def test_paths_tell_the_part(path, part):
    assert part_of(path) == part


def test_any_torch_model_can_be_counted():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 10))
    cost = count(net, 8)
    assert cost.parts["other"]["macs"] == cost.macs == 64 * 8 * 27 + 8 * 64 * 10
    assert list(cost.parts) == list(PARTS)
    with torch.device("meta"):
        siglip = timm.create_model("vit_base_patch16_siglip_224")
    assert count(siglip).parts["head"]["macs"] > 0


def test_channels_are_said_where_the_first_layer_named_is_not_the_first_that_runs():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.Conv2d(8, 4, 1), nn.Conv2d(3, 8, 1)

        def forward(self, x):
            return self.last(self.first(x))

    assert count(Backwards(), 2, channels=3).macs == 4 * (3 * 8 + 8 * 4)
    with pytest.raises(RuntimeError, match="channels"):
        count(Backwards(), 2)


def test_the_table_is_always_the_same_text():
    cost = count(deit_small())
    assert repr(cost.table()) == repr(cost) == TABLE
    assert cost._repr_html_().startswith("<table>") and "4.599" in cost._repr_html_()


def test_counting_leaves_no_trace():
    vit = small()
    vit.blocks[1].eval()
    modes = [m.training for m in vit.modules()]
    images = torch.rand(1, 3, 32, 32)
    expected = vit(images)
    count(vit)
    with pytest.raises(LabkitError, match="divisible"):
        count(vit, 33)
    assert [m.training for m in vit.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in vit.modules())
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.equal(vit(images), expected) and vit(images).requires_grad


def test_watching_does_not_change_what_is_computed():
    vit, kept = small(), []
    images = torch.rand(2, 3, 32, 32)
    operations(lambda x: kept.append(vit.eval()(x)), images)
    assert torch.equal(kept[0], vit(images))


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ((torch.relu,), "count takes a torch model, got builtin_function_or_method"),
        ((nn.Conv2d(3, 1, 1),), "Conv2d does not say how large its images are"),
        ((nn.Conv2d(3, 1, 1), "large"), "image_size='large' is not a size"),
        ((nn.Conv2d(3, 1, 1), (8, 0)), "not a size"),
        ((nn.Conv2d(3, 1, 1), 8, 0), "A batch of 0 images"),
    ],
)
def test_errors_are_sentences(arguments, sentence):
    with pytest.raises(LabkitError, match=sentence):
        count(*arguments)
