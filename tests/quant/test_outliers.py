"""Outliers: what is measured is what was put in, and what is planted changes no logit."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import labkit
from labkit import data
from labkit.blocks import parallel
from labkit.distill import DistilledViT
from labkit.errors import LabkitError
from labkit.mlp import GatedMLP, SplitGatedMLP
from labkit.positions.rope import RoPEAxial
from labkit.quant import Recipe, quantize
from labkit.quant.outliers import PLACES, channel_outliers, pathologies, plant, table, tail_exponent
from labkit.tokens import Keep, attach, class_attention
from labkit.vit import ViT
from tests import checks
from tests.weights import normal, randomized

SHAPE = {"image_size": 16, "patch_size": 4, "classes": 5, "dim": 32, "depth": 2, "heads": 2}
IMAGES = normal(6, 3, 16, 16)
FEW = 2


def vit(**options) -> ViT:
    return randomized(ViT(**(SHAPE | options)))


def gated(kind: type[nn.Module]) -> ViT:
    model = ViT(**SHAPE)
    for block in model.blocks:
        block.mlp = kind(32, 24)
    return randomized(model)


def normed(norm: type[nn.Module], **options) -> ViT:
    """Queries and keys are normalised, each head by the same gain."""
    model = ViT(**SHAPE)
    for block in model.blocks:
        block.attn.q_norm, block.attn.k_norm = norm(16, **options), norm(16, **options)
    return randomized(model)


def key_normed() -> ViT:
    model = normed(nn.LayerNorm)
    for block in model.blocks:
        block.attn.q_norm = nn.Identity()
    return model


def without_bias() -> ViT:
    model = vit()
    for block in model.blocks:
        block.attn.qkv.bias, block.mlp.fc1.bias = None, None
    return model


def plain_norms() -> ViT:
    return vit(norm=lambda d: nn.LayerNorm(d, elementwise_affine=False))


MODELS = {
    "plain": vit,
    "LayerScale": lambda: vit(layer_scale=0.3),
    "registers, mean": lambda: vit(registers=2, pool="avg"),
    "oblong": lambda: vit(image_size=(16, 16), patch_size=(4, 8), impl="plain"),
    "qk-norm": lambda: normed(nn.LayerNorm),
    "qk RMS norm": lambda: normed(nn.RMSNorm),
    "key norm": key_normed,
    "gated": lambda: gated(GatedMLP),
    "split gate": lambda: gated(SplitGatedMLP),
    "no biases": without_bias,
    "no gains": plain_norms,
    "distilled": lambda: randomized(DistilledViT(**SHAPE)),
}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def inside(model: ViT) -> list[dict[str, torch.Tensor]]:
    """What each block's norms put out, and its queries, keys, values and attention."""
    out = [{} for _ in model.blocks]
    hooks = [
        getattr(block, name).register_forward_hook(lambda _, x, y, seen=seen, name=name: seen.update({name: y}))
        for block, seen in zip(model.blocks, out, strict=True)
        for name in ("norm1", "norm2")
    ]
    with torch.no_grad():
        for seen, step in zip(out, model.observe(IMAGES).steps, strict=True):
            seen |= {"q": step.evidence.q, "k": step.evidence.k, "v": step.evidence.v}
            seen |= {"attn": step.evidence.attention(), "x": step.x}
    for hook in hooks:
        hook.remove()
    return out


def grown(after: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """How many times as far each channel reaches."""
    ends = [x.flatten(0, -2).aminmax(dim=0) for x in (after, before)]
    return (ends[0][1] - ends[0][0]) / (ends[1][1] - ends[1][0])


@every_model
@pytest.mark.parametrize("places", [("norms",), ("queries",), ("values",), PLACES])
def test_the_same_function_with_a_few_channels_that_reach_further(make, places):
    model = make()
    weights = copy.deepcopy(model.state_dict())
    harder = plant(model, 48, FEW, 0, places, offset=1.5)
    checks.equal(harder(IMAGES), model(IMAGES), 1e-10, "the logits of the planted model and the plain")
    checks.equal(list(model.state_dict().values()), list(weights.values()))
    for ours, plain in zip(inside(harder), inside(model), strict=True):
        for name, where, times in (
            ("norm1", "norms", 48), ("norm2", "norms", 48), ("q", "queries", 48), ("k", "queries", 1 / 48),
            ("v", "values", 48),
        ):  # fmt: skip
            found = grown(ours[name], plain[name]).sort(descending=times > 1).values
            few = FEW if where in places else 0
            checks.equal(found[:few], torch.full((few,), float(times)), 1e-9, name)
            checks.equal(found[few:], torch.ones(len(found) - few), 1e-9, f"the others of {name}")
        checks.equal([ours["attn"], ours["x"]], [plain["attn"], plain["x"]], 1e-9, "what the block computes")


@every_model
def test_in_single_precision_logits_move_by_less_than_a_ten_thousandth(make):
    model = make().float()
    images = IMAGES.float()
    for ratio in (20, 60):
        off = plant(model, ratio, FEW, 1, PLACES, offset=2.0)(images) - model(images)
        assert off.abs().max() <= 1e-4 * model(images).abs().max()


def test_ratio_one_is_the_model_itself():
    model = vit(layer_scale=0.3)
    same = plant(model, 1, places=PLACES, offset=3.0)
    checks.equal(list(same.parameters()), list(model.parameters()))


def test_the_seed_says_which_channels_and_blocks_differ():
    model = vit()
    plain, first, again, other = (inside(m) for m in (model, plant(model), plant(model), plant(model, seed=1)))

    def outliers(seen, block, name):
        return set((grown(seen[block][name], plain[block][name]) > 2).nonzero().flatten().tolist())

    assert outliers(first, 0, "norm1") == outliers(again, 0, "norm1") != outliers(other, 0, "norm1")
    assert len({frozenset(outliers(first, block, name)) for block in (0, 1) for name in ("norm1", "norm2")}) > 2
    assert len(outliers(first, 0, "norm1")) == 3


def test_an_offset_moves_outliers_up_and_down_by_their_gains():
    model = vit()
    plain, centred, moved = (inside(m) for m in (model, plant(model, 40, 8), plant(model, 40, 8, offset=2.0)))
    gain = model.blocks[0].norm1.weight
    shift = (moved[0]["norm1"] - centred[0]["norm1"]) / (40 * gain)
    outlier = grown(centred[0]["norm1"], plain[0]["norm1"]) > 2
    checks.equal(shift[..., ~outlier], torch.zeros_like(shift[..., ~outlier]), 1e-10)
    checks.equal(shift[..., outlier].abs(), torch.full_like(shift[..., outlier], 2.0), 1e-9)
    assert shift.min() < -1.9 and shift.max() > 1.9


@pytest.mark.parametrize("name", ["shapes-vit", "digits-vit"])
def test_the_shipped_models_are_tame_in_their_norms_until_planted(name):
    model = labkit.load(name)
    images = (
        data.shapes("train", 16, start=10_000_000).images if name == "shapes-vit" else data.digits("val")[:16].images
    )
    before, after = pathologies(model, images), pathologies(plant(model), images)
    for plain, hard in zip(before, after, strict=True):
        assert max(plain.norm1, plain.norm2) < 3 and plain.norm1_far == plain.norm2_far == 0
        assert min(hard.norm1, hard.norm2) > 20
        assert hard.norm1_far == hard.norm2_far == 3 / model.blocks[0].attn.proj.in_features
        assert hard.tiny == pytest.approx(plain.tiny, abs=1e-3) and hard.high == pytest.approx(plain.high, rel=1e-3)
        assert -0.18 < plain.low < -0.16 and plain.high > 3 and plain.negative > 0.5
    if name == "shapes-vit":  # most of its attention is below a step of eight bits in the later blocks
        assert max(row.tiny for row in before) > 0.4 and min(row.tail for row in before) < 1.5


def test_outliers_cost_what_a_uniform_grid_can_tell_and_folding_takes_them_away():
    """The same function, rounded to six bits: each channel's grid, folded into one, does not see what was planted."""
    model = labkit.load("shapes-vit")
    images = data.shapes("train", 16, start=10_000_000).images
    with torch.no_grad():
        plain = model(images)

    def error(of: ViT, fold: str) -> float:
        return float((quantize(of, Recipe(None, 6, fold=fold), images)(images) - plain).detach().norm())

    harder = plant(model)
    assert error(harder, "none") > 4 * error(model, "none")
    assert error(harder, "channels") < 1.5 * error(model, "channels")


def test_rows_say_what_the_blocks_hold():
    model = vit()
    rows = pathologies(model, IMAGES)
    assert [row.block for row in rows] == [0, 1]
    seen = inside(model)
    for row, block in zip(rows, seen, strict=True):
        assert (row.norm1, row.norm1_far) == channel_outliers(block["norm1"])
        assert (row.norm2, row.norm2_far) == channel_outliers(block["norm2"])
        assert row.tiny == (block["attn"] < 1 / 256).double().mean() and row.largest == block["attn"].max()
        assert row.tail == tail_exponent(block["attn"])
    hidden = model.blocks[1].mlp.act(model.blocks[1].mlp.fc1(seen[1]["norm2"]))
    assert (rows[1].low, rows[1].high) == (hidden.min(), hidden.max())
    assert rows[1].negative == (hidden < 0).double().mean()
    assert not any(module._forward_hooks for module in model.modules())
    text = str(table(rows)).splitlines()
    assert len(text) == 4 and text[2].split()[:2] == ["0", f"{rows[0].norm1:.1f}"]


def test_hooks_go_even_where_the_model_fails():
    model = vit()
    with pytest.raises(LabkitError):
        pathologies(model, IMAGES[:, :2])
    assert not any(module._forward_hooks for module in model.modules())


def test_channel_outliers_of_known_channels():
    x = torch.linspace(-1, 1, 11)[:, None] * torch.tensor([1.0, 2.0, 1.0, 1.0, 9.0, 4.0, 1.0])
    assert channel_outliers(x) == (9, pytest.approx(1 / 7))
    assert channel_outliers(x + 100) == (pytest.approx(9, rel=1e-4), pytest.approx(1 / 7))
    assert channel_outliers(torch.ones(5, 3)) == (1, 0)
    assert channel_outliers(x * torch.eye(7)[0]) == (math.inf, pytest.approx(1 / 7))


@pytest.mark.parametrize("exponent", [0.7, 1.5, 4.0])
def test_the_tail_of_a_power_law_is_its_exponent(exponent):
    x = (torch.arange(1, 40001, dtype=torch.float64) / 40000) ** (-1 / exponent)
    assert tail_exponent(x) == pytest.approx(exponent, rel=0.01)
    assert tail_exponent(torch.cat([x / 7, torch.zeros(1000)])) == pytest.approx(exponent, rel=0.01)


def test_uniform_attention_has_no_tail():
    assert tail_exponent(torch.full((4, 9), 1 / 9)) == math.inf == tail_exponent(torch.zeros(3))


def test_what_cannot_be_planted_is_a_sentence():
    model, reduced = vit(), attach(vit(), Keep(0.5, class_attention), [0])
    turned = vit(position=RoPEAxial(16))
    bare = normed(nn.RMSNorm, elementwise_affine=False)
    mixing = vit()
    mixing.blocks[1].attn.norm = nn.LayerNorm(32).double()
    for call, sentence in (
        (lambda: plant(model, 0.5), "ratio=0.5 makes no outlier"),
        (lambda: plant(model, math.inf), "ratio=inf makes no outlier"),
        (lambda: plant(model, channels=0), "channels=0 of 32 are not a few; choose a number from 1 to 31"),
        (lambda: plant(model, channels=16, places=("values",)), "channels=16 of 16 are not a few"),
        (lambda: plant(model, places=()), r"places=\(\) is not where to plant"),
        (lambda: plant(model, places="norms"), "places='norms' is not where to plant"),
        (lambda: plant(reduced), "A token reducer may decide by keys and values"),
        (lambda: plant(turned, places=("queries",)), "RoPEAxial reads queries and keys or turns them"),
        (lambda: plant(bare, places=("queries",)), "The norm of queries or keys has no gain"),
        (lambda: plant(mixing, places=("values",)), "A norm stands between values and projection"),
        (lambda: plant(vit(norm=nn.RMSNorm)), "this norm is RMSNorm"),
        (lambda: plant(parallel(model, 2)), "Block 0 has a ParallelBlock"),
        (lambda: plant(quantize(model, Recipe(attention=8), IMAGES)), "Block 0 has a RoundedAttention"),
        (lambda: pathologies(parallel(model, 2), IMAGES), "Block 0 has a ParallelBlock; expected plain attention"),
        (lambda: pathologies(model, IMAGES[:0]), "There are no images to look at"),
    ):
        with pytest.raises(LabkitError, match=sentence):
            call()
    for model, places in ((turned, ("norms", "values")), (mixing, ("norms", "queries"))):
        checks.equal(plant(model, places=places)(IMAGES), model(IMAGES), 1e-10)
