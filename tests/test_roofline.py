"""Operations, bytes and time: the identity, the roofline, and a block whose middle stays in its tile."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from labkit import roofline as module
from labkit.cost import count
from labkit.errors import LabkitError
from labkit.fuse import ResidualBlock, tile_fused_block
from labkit.operations import operations
from labkit.roofline import Machine, efficiency_gap, layers, peak, predict, roofline
from labkit.vit import ViT

MACHINE = Machine(flops=100e9, bandwidth=10e9, threads=1, device="imagined")


def small_vit() -> ViT:
    torch.manual_seed(0)
    return ViT(image_size=32, patch_size=8, classes=10, dim=24, depth=2, heads=4, impl="plain")


def intensity(layer: nn.Module, x: torch.Tensor) -> float:
    """MACs per byte of a layer's only operation."""
    (step,) = operations(layer, x)
    return step.macs / step.bytes


@pytest.mark.paper("S383")
def test_latency_times_peak_times_efficiency_is_operations():
    costs = {"vit": count(small_vit()), "block": count(ResidualBlock(8), 16)}
    gaps = efficiency_gap(costs, {"vit": 0.003, "block": 0.0002}, MACHINE)
    for name, gap in gaps.items():
        assert gap.measured * MACHINE.flops * gap.efficiency == pytest.approx(gap.ops, rel=1e-12)
        assert gap.ops == 2 * costs[name].macs
        assert gap.ideal <= gap.predicted == predict(costs[name], MACHINE)


@pytest.mark.paper("S383")
@pytest.mark.parametrize("model, size", [(small_vit(), 32), (ResidualBlock(8, kernel=5), (12, 20))])
def test_operations_are_those_of_torchs_counter(model, size):
    h, w = (size, size) if isinstance(size, int) else size
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 8 if isinstance(model, ResidualBlock) else 3, h, w))
    assert 2 * count(model, size).macs == counter.get_total_flops()


@pytest.mark.paper("S383")
def test_pointwise_intensity_grows_with_width():
    h = w = 16
    found = []
    for c in (8, 16, 32, 64):
        found.append(intensity(nn.Conv2d(c, c, 1, bias=False), torch.zeros(1, c, h, w)))
        assert found[-1] == c * c * h * w / (4 * (2 * c * h * w + c * c))
    assert found == sorted(found) and found[-1] > 6 * found[0]


@pytest.mark.paper("S383")
@pytest.mark.parametrize("k", [3, 5, 7])
def test_depthwise_intensity_is_k_squared_over_two_values_whatever_the_width(k):
    """In MACs per byte it is k² / (2 · bytes of a value); in floating-point operations, twice that."""
    found = [
        intensity(
            nn.Conv2d(c, c, k, padding=k // 2, groups=c, bias=False, dtype=dtype),
            torch.zeros(1, c, 32, 32, dtype=dtype),
        )
        * torch.finfo(dtype).bits
        / 8
        for c in (4, 64)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert max(found) - min(found) < 1e-9
    assert found[0] == pytest.approx(k * k / 2, rel=0.03)


@pytest.mark.paper("S383")
@pytest.mark.parametrize(
    "ops, moved, seconds, bound",
    [
        (100e9, 1e9, 1.0, "compute"),
        (1e9, 20e9, 2.0, "memory"),
        (10e9, 1e9, 0.1, "compute"),
        (0, 1e9, 0.1, "memory"),
    ],
)
def test_time_is_the_larger_of_arithmetic_and_traffic(ops, moved, seconds, bound):
    predicted = roofline(ops, moved, MACHINE)
    assert predicted == (pytest.approx(seconds), bound, pytest.approx(ops / moved))
    assert (predicted.intensity >= MACHINE.balance) == (bound == "compute")


def whole(block: ResidualBlock, generator: torch.Generator) -> ResidualBlock:
    """Weights that are small whole numbers: every sum is exact, in whatever order it is formed."""
    for parameter in block.parameters():
        parameter.data = torch.randint(-2, 3, parameter.shape, generator=generator).float()
    return block


@pytest.mark.paper("S383")
@pytest.mark.parametrize("tile", [1, 3, 8, 64])
@pytest.mark.parametrize("kernel, size", [(3, (13, 17)), (7, (16, 8)), (1, (5, 5))])
def test_tiles_with_halo_give_the_unfused_block_exactly(tile, kernel, size):
    generator = torch.Generator().manual_seed(0)
    block = whole(ResidualBlock(4, kernel), generator)
    x = torch.randint(-3, 4, (2, 4, *size), generator=generator).float()
    with torch.no_grad():
        out = tile_fused_block(block, x, tile).out
        assert torch.equal(out, block(x))
        assert out.abs().max() < 2**24  # exact in float32


@pytest.mark.paper("S383")
def test_live_bytes_scale_with_the_tile():
    block, x = ResidualBlock(8, kernel=1), torch.zeros(1, 8, 32, 32)
    live = {tile: tile_fused_block(block, x, tile).live_bytes for tile in (4, 8, 16, 32, 100)}
    widest = 4 * (32 + 32)  # bytes per pixel before and after the activation
    assert live == {tile: widest * min(tile, 32) ** 2 for tile in live}
    reach = ResidualBlock(8, kernel=5)
    assert tile_fused_block(reach, x, 8).live_bytes == widest * 8 * 8  # the halo is gone where it is widest


@pytest.mark.paper("S383")
def test_the_price_of_a_tile_is_its_halo_computed_again():
    x = torch.zeros(1, 8, 32, 32)

    def macs(block, tile):
        return sum(step.macs for step in operations(lambda x: tile_fused_block(block, x, tile), x))

    deep = ResidualBlock(8, kernel=3)
    deep.body.extend([nn.Conv2d(8, 8, 3, padding=1)])
    plain = sum(step.macs for step in operations(deep, x))
    assert macs(deep, 32) == plain
    assert 1.2 * plain < macs(deep, 8) < macs(deep, 4)


def test_several_convolutions_and_borders_agree_within_rounding():
    torch.manual_seed(0)
    block = ResidualBlock(4, kernel=3)
    block.body = nn.Sequential(
        nn.Conv2d(4, 6, (3, 5), padding=(1, 2)),
        nn.GELU(),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=3),
        nn.SiLU(),
        nn.Conv2d(6, 4, 3, padding=1),
    ).double()
    x = torch.randn(2, 4, 11, 9, dtype=torch.float64)
    with torch.no_grad():
        for tile in (1, 2, 5, 20):
            assert (tile_fused_block(block, x, tile).out - block(x)).abs().max() < 1e-12


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 2, padding=1),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.BatchNorm2d(4),
    ],
    ids=str,
)
def test_a_layer_that_does_not_tile_is_refused(layer):
    block = ResidualBlock(4)
    block.body.append(layer)
    with pytest.raises(LabkitError, match=f"cannot pass through {type(layer).__name__}"):
        tile_fused_block(block, torch.zeros(1, 4, 8, 8), 4)
    with pytest.raises(LabkitError, match="holds nothing"):
        tile_fused_block(ResidualBlock(4), torch.zeros(1, 4, 8, 8), 0)


def test_layers_of_a_kind_share_a_line():
    cost = count(small_vit())
    table = layers(cost, MACHINE)
    lines = {row[0]: row for row in table.rows}
    assert list(lines) == [
        "patch_embed.proj",
        "blocks.*.attn.qkv",
        "blocks.*.attn",
        "blocks.*.attn.proj",
        "blocks.*.mlp.fc1",
        "blocks.*.mlp.fc2",
        "head",
    ]
    assert [row[1] for row in table.rows] == ["1", "2", "4", "2", "2", "2", "1"]
    assert sum(float(row[2]) for row in table.rows) == pytest.approx(cost.macs / 1e6, abs=0.004)
    assert lines["head"][5] == "memory"  # one vector against a matrix: nothing is used twice
    assert float(lines["head"][7].removesuffix(" %")) < 10


def test_a_larger_batch_uses_the_weights_more_often():
    vit = small_vit()
    one, many = count(vit), count(vit, batch=64)
    assert predict(many, MACHINE) < 64 * predict(one, MACHINE)


def test_the_peak_is_the_best_of_what_was_seen(monkeypatch):
    times = iter([0.5, 0.1, 0.3, 0.4, 0.08, 0.4])
    now = [0.0]

    def fake_sample(work, arguments, clock, device):
        seconds = next(times)
        now[0] += seconds
        work()
        return seconds

    monkeypatch.setattr(module, "sample", fake_sample)
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    machine = peak(seconds=2.0)
    assert machine.flops == pytest.approx(2 * 1024**3 / 0.1)
    assert machine.bandwidth == pytest.approx(2 * 2**24 * 4 / 0.08)
    assert now[0] < 2.0
    assert machine.threads == torch.get_num_threads() and machine.device


def test_a_missing_time_is_a_sentence():
    with pytest.raises(LabkitError, match='"vit" has a cost and no measured seconds'):
        efficiency_gap({"vit": count(small_vit())}, {"vit2": 1.0}, MACHINE)
