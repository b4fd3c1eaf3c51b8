"""The families of timm: what each map is, that nothing is left behind, and that no layout is claimed unknown."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from labkit.tracing.record import trace
from tests.timm_families import FAMILIES, build, described, pictures

BLIND = ["efficientvit_b", "poolformer"]


def insides(model: nn.Module) -> list[object]:
    """Everything of a model that a tracer could leave changed: hooks, flags and modes; and torch's own."""
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]
    flags = [getattr(m, "fused_attn", None) for m in model.modules()]
    everywhere = [len(hooks) for name, hooks in vars(nn.modules.module).items() if name.endswith("_hooks")]
    modes, grad = torch._C._len_torch_function_stack(), torch.is_grad_enabled()
    return [hooks, flags, [m.training for m in model.modules()], everywhere, modes, grad]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_shows_its_maps_and_computes_what_it_computed(name):
    model, images = build(name), pictures(FAMILIES[name].size)
    with torch.no_grad():
        plain = model(images)
    before = insides(model)
    seen = trace(model, images)
    graph = trace(model, images, grads=True)
    assert insides(model) == before
    assert torch.equal(seen.logits, plain)
    assert (graph.logits - plain).abs().max() <= 1e-5
    assert described(seen.layers) == FAMILIES[name].maps
    assert (seen.why != "") == (name in BLIND)
    assert all(gradient.shape == attn.shape for gradient, attn in zip(graph.gradients(0), graph.attention, strict=True))
    assert all(gradient.abs().sum() > 0 for gradient in graph.gradients(0))


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in BLIND])
def test_rows_are_distributions(name):
    model, images = build(name), pictures(FAMILIES[name].size)
    for keep in ("float32", "uint8"):
        seen = trace(model, images, keep=keep)
        for layer, attn in zip(seen.layers, seen.attention, strict=True):
            torch.testing.assert_close(attn.sum(dim=-1), torch.ones(attn.shape[:-1]), atol=1e-5, rtol=0)
            assert attn.shape[:2] == (2, layer.heads)
            if layer.kind in ("self", "reduced", "class"):
                assert attn.shape[2:] == (layer.queries, layer.keys)
                assert seen.rows(seen.layers.index(layer), 1).shape == attn.shape[1:]


def test_prefix_tokens_have_their_names():
    names = {name: trace(build(name), pictures(FAMILIES[name].size)).layers[-1].prefix_names for name in PREFIXED}
    assert names == PREFIXED


PREFIXED = {
    "vit": ("class",),
    "deit": ("class", "distillation"),
    "dinov2 with registers": ("class", "register 1", "register 2", "register 3", "register 4"),
    "cait": ("class",),
    "swin": (),
}


@pytest.mark.parametrize("name", BLIND)
def test_a_model_without_maps_says_so(name):
    seen = trace(build(name), pictures(FAMILIES[name].size))
    assert FAMILIES[name].name in seen.why and "nothing to draw" in seen.why
    assert seen.layers == [] and list(seen.attention) == [] and seen.patches == (0, 0)


@pytest.mark.parametrize("name", ["swin, padded", "maxvit", "mobilevit", "hiera", "twins svt"])
def test_rows_hold_each_window_and_nothing_else(name):
    seen = trace(build(name), pictures(FAMILIES[name].size))
    for number, layer in enumerate(seen.layers):
        if layer.kind == "windowed":
            rows, attn = seen.rows(number, 1), seen.attention[number][1]
            expected = torch.zeros(layer.heads, layer.queries, layer.keys)
            for i, (asking, looked_at) in enumerate(zip(layer.windows, layer.key_windows, strict=True)):
                for m in (asking >= 0).nonzero().flatten():
                    expected[:, asking[m], looked_at[looked_at >= 0]] = attn[:, i, m][:, looked_at >= 0]
            assert torch.equal(rows, expected)
            assert torch.equal(seen.rows(number, -1, [3, 0]), expected[:, [3, 0]])
            assert torch.equal(seen.rows(number, 1, slice(1, 4)), expected[:, 1:4])


@pytest.mark.parametrize("name", ["hiera", "swin", "vit", "deit"])
def test_a_model_inside_another_shows_the_same(name):
    model, images = build(name), pictures(FAMILIES[name].size)
    alone, wrapped = trace(model, images), trace(nn.Sequential(nn.Identity(), model), images)
    assert described(wrapped.layers) == described(alone.layers)
    assert wrapped.layers[0].prefix_names == alone.layers[0].prefix_names
    assert all(torch.equal(a, b) for a, b in zip(wrapped.attention, alone.attention, strict=True))


def test_provenance_of_coarser_cells_is_the_area_they_cover():
    seen = trace(build("pvt_v2"), pictures(FAMILIES["pvt_v2"].size))
    assert seen.patches == (16, 24)
    finest, coarsest = seen.provenance[0][0], seen.provenance[-1][0]
    assert torch.equal(finest, torch.eye(16 * 24))
    assert coarsest.shape == (6, 16 * 24)
    blocks = coarsest.view(2, 3, 2, 8, 3, 8)  # each of 2 x 3 cells is 8 x 8 patches
    for r in range(2):
        for c in range(3):
            torch.testing.assert_close(blocks[r, c, r, :, c], torch.full((8, 8), 1 / 64))
    torch.testing.assert_close(coarsest.sum(dim=1), torch.ones(6))


@pytest.mark.parametrize(
    ("name", "size", "maps"),
    [
        ("coat_lite_tiny", (64, 64), []),  # a softmax over keys and one over queries: no map is ever made
        (
            "crossvit_tiny_240",
            (240, 240),
            ["self 20x20 +1", "4 x self 14x14 +1", "class -> 14x14 +1", "class -> 20x20 +1"] * 3,
        ),
        (
            "gcvit_xxtiny",
            (64, 64),
            ["2 x windowed 16x16 in 64 of 4", "2 x windowed 8x8 in 16 of 4", "6 x self 4x4", "2 x self 2x2"],
        ),
        (
            "mvitv2_tiny",
            (64, 64),
            [
                *("reduced 16x16 -> 4x4", "self 8x8", "reduced 8x8 -> 4x4"),
                *("reduced 4x4 -> 8x8", "4 x self 4x4", "reduced 2x2 -> 4x4", "self 2x2"),
            ],
        ),
        ("nextvit_small", (64, 96), ["3 x unknown", "self 2x3"]),  # its keys are runs of tokens, not squares of them
        ("volo_d1_224", (64, 64), ["4 x unknown", "14 x self 4x4", "2 x class -> 4x4 +1"]),
        ("tnt_s_legacy_patch16_224", (64, 64), ["24 x unknown"]),
        ("botnet26t_256", (256, 256), ["3 x unknown"]),  # its heads stand where windows would
    ],
)
def test_other_families_claim_only_what_is_known(name, size, maps):
    torch.manual_seed(0)
    options = {"img_size": 64} if size == (64, 64) else {}
    seen = trace(timm.create_model(name, **options).eval(), pictures(size, 1))
    assert described(seen.layers) == maps
