"""Integer arithmetic: every step against its float meaning, and no float between the codes that enter and leave."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from labkit.errors import LabkitError
from labkit.quant.float_walk import FloatWalk
from labkit.quant.integer import (
    Dyadic,
    IntegerLayerNorm,
    dyadic_requant,
    int_sqrt,
    integer_linear,
    rounding_shift,
    shift_exp,
    shift_gelu,
    shiftmax,
)
from tests import checks
from tests.weights import normal


def codes(x: torch.Tensor, bits: int = 8) -> tuple[torch.Tensor, float]:
    scale = (x.abs().max() / (2 ** (bits - 1) - 1)).item()
    return (x / scale).round().int(), scale


@pytest.mark.paper("S015")
def test_the_two_approximations_are_as_close_as_they_should_be():
    r = torch.linspace(-1, 0, 100_001, dtype=torch.float64)
    ratio = (1 + r / 2) / 2**r
    assert ratio.min() >= 1 and 1.0614 < ratio.max() < 1.0615
    assert abs((1 + 1 / 2 - 1 / 16) / math.log2(math.e) - 1) < 0.0037


@pytest.mark.paper("S015")
@pytest.mark.parametrize("scale", [1e-5, 1e-3, 0.01, 0.1, 0.5, 1.0, 3.0])
def test_the_exponential_is_at_most_so_much_too_large(scale):
    """The two errors multiply; the second, 0.0052 of an octave for each unit, grows with the distance from 0."""
    q = -torch.arange(int(15 / scale) + 1)[:200_000]
    exp, one = shift_exp(q, scale)
    ratio = exp / one / torch.exp(q.double() * scale)
    assert ratio[0] == 1
    assert ((ratio > 1 - 1e-3) & (ratio < 1.0615 * 2 ** (0.0052 * q.abs() * scale) + 1e-3)).all()
    assert (exp.diff() <= 0).all()
    far, _ = shift_exp(torch.tensor([-(2**31), -(2**20)]), max(scale, 0.01))
    assert far.tolist() == [0, 0]
    assert shift_exp(torch.tensor([0, -1, -100]), 1e4 * scale + 64)[0].tolist()[1:] == [0, 0]  # shifts beyond 63 bits


@pytest.mark.paper("S015")
def test_the_square_root_is_exact():
    n = torch.arange(2**20)
    assert int_sqrt(n).tolist() == [math.isqrt(i) for i in range(2**20)]
    large = [2**63 - 1, 2**62, 2**62 - 1, (2**31 - 1) ** 2, (2**31 - 1) ** 2 - 1, 10**18]
    assert int_sqrt(torch.tensor(large)).tolist() == [math.isqrt(i) for i in large]
    with pytest.raises(LabkitError, match="negative number"):
        int_sqrt(torch.tensor([4, -1]))


@pytest.mark.paper("S015")
def test_dyadic_rescaling_is_within_one_code_of_the_float_product():
    """It is the nearest code but where the float product is a tie, so within half a code and a little."""
    draw = torch.Generator().manual_seed(0)
    q = torch.randint(-(2**31), 2**31, (2000, 9), generator=draw).int()
    ratios = torch.tensor([1e-9, 3.3e-8, 1e-7, 1 / 3e5, 2**-20, 0.001, 0.75, 1.0, 5.5], dtype=torch.float64)
    by = Dyadic.of(ratios)
    checks.equal(by.multiplier * 2.0**-by.shift, ratios, 5.5 * 2**-31)
    for bits, signed in ((8, True), (8, False), (16, True)):
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        exact = (q.double() * ratios).clamp(low, high)
        checks.equal(dyadic_requant(q, by, bits, signed), exact, 0.5 + 1e-4)
    assert dyadic_requant(torch.tensor([-3, -1, 1, 3]), Dyadic.of(0.5)).tolist() == [-1, 0, 1, 2]
    assert rounding_shift(torch.tensor([5, -5]), 0).tolist() == [5, -5]
    assert dyadic_requant(torch.arange(-128, 128), Dyadic.of(1.0)).tolist() == list(range(-128, 128))


@pytest.mark.paper("S015")
@pytest.mark.parametrize("ratio", [0.0, -1.0, torch.nan, torch.inf, 2.0**31])
def test_a_ratio_that_no_dyadic_holds_is_refused(ratio):
    with pytest.raises(LabkitError, match="ratio of scales is not between"):
        Dyadic.of(torch.tensor([0.5, ratio]))


@pytest.mark.paper("S015")
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_shiftmax_is_softmax_to_what_the_exponential_costs(bits):
    q, scale = codes(3 * normal(50, 30))
    out, out_scale = shiftmax(q, scale, bits)
    expected = (q.double() * scale).softmax(dim=-1)
    assert ((out * out_scale / expected - 1).abs() < 0.09)[expected > 0.05].all()
    checks.equal(out * out_scale, expected, 0.02)
    checks.equal(out.sum(dim=-1) * out_scale, torch.ones(50), 15 * out_scale)  # half a code for each of 30
    assert out.max() <= 2**bits - 1 and out.min() >= 0
    one_hot, _ = shiftmax(torch.tensor([[0, 127, -128]]), 0.5, bits)
    assert one_hot.tolist() == [[0, 2**bits - 1, 0]]


@pytest.mark.paper("S015")
def test_shiftmax_does_not_see_an_offset_and_treats_equals_alike():
    q, scale = codes(3 * normal(50, 30))
    checks.equal(shiftmax(q + 1000, scale)[0], shiftmax(q, scale)[0])
    assert shiftmax(torch.full((1, 5), -7), 1e-6)[0].tolist() == [[51] * 5]
    assert shiftmax(torch.tensor([[3]]), 0.1)[0].tolist() == [[255]]
    assert shiftmax(torch.tensor([[0, 1]]), 5e5)[0].tolist() == [[0, 255]]


@pytest.mark.paper("S015")
def test_shift_gelu_is_near_gelu_and_a_number_does_not_depend_on_its_neighbours():
    """0.020 of the error is the sigmoid's in place of the normal distribution's; the published code is 0.197 off."""
    q, scale = torch.arange(-(2**15), 2**15), 8 / 2**15
    out, out_scale = shift_gelu(q, scale, 12)
    x = q.double() * scale
    checks.equal(out * out_scale, nn.functional.gelu(x), 0.025)
    checks.equal(out * out_scale, x * (1.702 * x).sigmoid(), 0.01)
    checks.equal(shift_gelu(q[:10], scale, 12)[0], out[:10])
    checks.equal(out[[0, 2**15, -1]].double() * out_scale, torch.stack([0 * x[0], 0 * x[0], x[-1]]), 1e-12)


@pytest.mark.paper("S015")
@pytest.mark.parametrize(("bits", "d"), [(8, 384), (16, 384), (16, 768), (8, 2), (4, 64)])
def test_layer_norm_is_the_float_one_to_half_a_code(bits, d):
    norm, numbers = nn.LayerNorm(d).double(), normal(12, d)
    norm.weight.data.copy_(1 + 0.3 * numbers[0])
    norm.bias.data.copy_(0.2 * numbers[1])
    q, scale = codes(3 * numbers[2:] + 0.7, bits)
    exact = norm(q.double() * scale).detach()
    for out_bits in (8, 16):
        out_scale = (exact.abs().max() / (2 ** (out_bits - 1) - 1)).item()
        out = IntegerLayerNorm.of(norm, scale, out_scale, bits, out_bits)(q)
        checks.equal(out, exact / out_scale, 0.5 + 1e-3)


@pytest.mark.paper("S015")
def test_layer_norm_is_finite_with_zero_weights_and_constant_rows():
    """The published one divides the bias by the weight."""
    norm = nn.LayerNorm(16).double()
    norm.weight.data[3:6] = 0
    norm.bias.data.copy_(normal(16))
    q = torch.cat([torch.full((1, 16), 5), torch.zeros(1, 16), codes(normal(3, 16))[0]]).int()
    out = IntegerLayerNorm.of(norm, 0.05, 0.05)(q)
    checks.equal(out, norm(q.double() * 0.05).detach() / 0.05, 0.51)
    norm.weight.data.zero_()
    checks.equal(IntegerLayerNorm.of(norm, 0.05, 0.05)(q), norm.bias.expand(5, 16) / 0.05, 0.51)
    norm.bias.data.zero_()
    assert not IntegerLayerNorm.of(norm, 0.05, 0.05)(q).any()
    bare = nn.LayerNorm(16, elementwise_affine=False)
    checks.equal(IntegerLayerNorm.of(bare, 0.05, 0.05)(q), bare(q * 0.05) / 0.05, 0.51)


@pytest.mark.paper("S015")
def test_epsilon_counts_where_the_variance_is_small():
    norm, q = nn.LayerNorm(8, eps=1e-2).double(), torch.tensor([[0, 1, 2, 0, 1, 2, 0, 2]])
    out = IntegerLayerNorm.of(norm, 0.01, 0.001)(q)
    checks.equal(out, norm(q.double() * 0.01).detach() / 0.001, 0.51)
    norm, q = nn.LayerNorm(384).double(), codes(normal(3, 384))[0]
    out = IntegerLayerNorm.of(norm, 2.0**-20, 2.0**-12, out_bits=16)(q)  # a variance of 1e-9 beside an epsilon of 1e-5
    checks.equal(out, norm(q.double() * 2.0**-20).detach() * 2**12, 0.51)


def test_what_would_overflow_is_refused_before_it_does():
    with pytest.raises(LabkitError, match="16 bits and width 4096 overflow"):
        IntegerLayerNorm.of(nn.LayerNorm(4096), 0.1, 0.1, bits=16)
    with pytest.raises(LabkitError, match="outside the 8 signed bits"):
        IntegerLayerNorm.of(nn.LayerNorm(4), 0.1, 0.1)(torch.tensor([[0, 1, 200, 3]]))
    for scale in (0.0, -1.0, torch.nan, torch.inf):
        for use in (lambda s: shiftmax(torch.ones(1, 2), s), lambda s: IntegerLayerNorm.of(nn.LayerNorm(4), s, 0.1)):
            with pytest.raises(LabkitError, match="is not between"):
                use(scale)


@pytest.mark.paper("S015")
def test_no_float_operation_lies_between_the_codes_that_enter_and_leave():
    """Norm, q k v, softmax, fc1, GELU and fc2 in a row, each operation watched; the float result to a few percent."""
    d, x = 32, normal(40, 32)
    norm, numbers = nn.LayerNorm(d).double(), normal(5 * d + 40, d)[40:] / d**0.5
    weights = dict(zip(["q", "k", "v", "fc1", "fc2"], numbers.split(d), strict=True))
    value = {"x": x, "y": norm(x).detach()}
    value |= {name: value["y"] @ weights[name].mT for name in "qkv"}
    value["mixed"] = (value["q"] @ value["k"].mT).div(d**0.5).softmax(dim=-1) @ value["v"]
    value["fc1"] = value["mixed"] @ weights["fc1"].mT
    value["bent"] = nn.functional.gelu(value["fc1"])
    value["fc2"] = value["bent"] @ weights["fc2"].mT

    scale = {name: codes(v)[1] for name, v in value.items()}
    w = {name: codes(weight)[0] for name, weight in weights.items()}
    source = {"q": "y", "k": "y", "v": "y", "fc1": "mixed", "fc2": "bent"}
    to = {name: Dyadic.of(scale[source[name]] * codes(weights[name])[1] / scale[name]) for name in weights}
    to["mixed"], to["bent"] = (
        Dyadic.of(scale["v"] / 255 / scale["mixed"]),
        Dyadic.of(scale["fc1"] / 255 / scale["bent"]),
    )
    first, q, nothing = (
        IntegerLayerNorm.of(norm, scale["x"], scale["y"]),
        codes(x)[0],
        torch.zeros(d, dtype=torch.int32),
    )

    with FloatWalk() as walk:
        y = first(q)
        queries, keys, values = (integer_linear(y, w[name], nothing, to[name]) for name in "qkv")
        attn, _ = shiftmax(queries @ keys.mT, scale["q"] * scale["k"] / d**0.5)
        mixed = dyadic_requant(attn @ values, to["mixed"])
        bent, _ = shift_gelu(integer_linear(mixed, w["fc1"], nothing, to["fc1"]), scale["fc1"])
        out = integer_linear(dyadic_requant(bent, to["bent"]), w["fc2"], nothing, to["fc2"])
    assert not walk.floating and walk.all.total() > 100 and out.dtype == torch.int32
    assert (out * scale["fc2"] - value["fc2"]).norm() / value["fc2"].norm() < 0.05


@pytest.mark.paper("S015")
def test_a_layer_is_its_float_self_to_half_a_code_and_its_bias_counts():
    weight, bias = normal(9, 16)[:, :8], normal(9, 16)[:, 8]
    q, scale = codes(normal(30, 8) - 1)
    wq, w_scale = codes(weight)
    exact = (q * scale) @ (wq * w_scale).mT + bias
    out_scale = codes(exact)[1] * torch.linspace(1, 2, 9, dtype=torch.float64)  # one scale for each output channel
    accumulated = (bias / (scale * w_scale)).round().int()
    out = integer_linear(q, wq, accumulated, Dyadic.of(scale * w_scale / out_scale))
    checks.equal(out, exact / out_scale, 0.52)
