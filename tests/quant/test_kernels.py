"""8-bit kernels: exact sums, the numbers of the oracle, every shape and grid, and a plain way where one is missing."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from labkit.errors import LabkitError
from labkit.quant import kernels
from labkit.quant.grids import Uniform
from labkit.quant.kernels import encode_uint8, exact_linear, integer_product, linear, pack, token_linear
from tests import checks

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SHAPES = [(1, 8, 8), (1, 3, 1), (5, 17, 33), (197, 384, 100), (64, 1536, 7), (40, 1, 16)]
SENTENCE = "The 8-bit kernel is missing (a test took it away); computed in float64."


def draw(*shape: int, low: int, high: int, dtype: torch.dtype) -> torch.Tensor:
    dice = torch.Generator().manual_seed(sum(shape))
    return torch.randint(low, high + 1, shape, generator=dice, dtype=dtype)


def layer(rows: int, inputs: int, outputs: int, bits: int = 8, zero: int = 100, bias: bool = True):
    """Codes of the inputs, and a packed layer whose outputs are about as large as 1."""
    top = 2 ** (bits - 1) - 1
    codes = draw(outputs, inputs, low=-top, high=top, dtype=torch.int8)
    scale = torch.linspace(0.5, 2, outputs) / (top * inputs**0.5)
    grid = Uniform(torch.tensor(4 / 2**bits), torch.tensor(min(zero, 2**bits - 1), dtype=torch.int32), bits)
    b = torch.linspace(-1, 1, outputs) if bias else None
    return draw(rows, inputs, low=0, high=2**bits - 1, dtype=torch.uint8), pack(codes, scale, b, grid)


def ways(packed: kernels.Packed) -> dict[str, kernels.Packed]:
    """The kernel of this device, signed products as a GPU computes them, and no kernel at all."""
    return {"own": packed, "signed": replace(packed, weight=packed.codes), "none": replace(packed, weight=None)}


def test_this_machine_has_the_kernel_or_says_why_not():
    problem = kernels.available("cpu")
    assert problem is None or "float64" in problem
    assert "mps" in kernels.available("mps")


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("low, high", [(-3.0, 3.0), (0.0, 5.0), (-5.0, 0.0), (-0.1, 7.0)])
def test_codes_are_those_of_the_grid(bits, low, high, monkeypatch):
    """Away from ties: which way one goes is decided by the last digit of a product, or of a quotient."""
    grid = Uniform.of(low, high, bits)
    x = torch.empty(7, 301).uniform_(2 * low - 1, 2 * high + 1, generator=torch.Generator().manual_seed(0))
    steps = x.double() / grid.scale.double()
    x = x[((steps - steps.floor() - 0.5).abs() > 1e-4)]
    x = torch.cat([x, torch.tensor([1e6, -1e6, 0.0])]).repeat(40)  # as long as kernels take all at once, and a rest
    for one_pass in (kernels._rounds_in_one_pass(), False):
        monkeypatch.setattr(kernels, "_rounds_in_one_pass", lambda one_pass=one_pass: one_pass)
        codes = encode_uint8(x, grid)
        assert codes.dtype == torch.uint8 and codes.shape == x.shape
        checks.equal(codes, grid.encode(x))
        assert codes.min() == 0 and codes.max() == 2**bits - 1


def test_every_precision_and_layout_is_encoded(monkeypatch):
    grid = Uniform.of(-2.0, 3.0, 8)
    x = torch.randn(4, 6, 10, generator=torch.Generator().manual_seed(0))
    for one_pass in (kernels._rounds_in_one_pass(), False):
        monkeypatch.setattr(kernels, "_rounds_in_one_pass", lambda one_pass=one_pass: one_pass)
        for given in (x.double(), x.bfloat16(), x.half(), x.transpose(0, 2), x[:, ::2], x.requires_grad_(True)):
            codes = encode_uint8(given, grid)
            checks.equal(codes, grid.encode(given.detach()))
            assert not codes.requires_grad
        assert encode_uint8(x[:0], grid).shape == (0, 6, 10)
        with torch.inference_mode():
            checks.equal(encode_uint8(x, grid), grid.encode(x))
    for device in DEVICES:
        moved = Uniform(grid.scale.to(device), grid.zero.to(device), 8)
        checks.equal(encode_uint8(x.to(device), moved), grid.encode(x))


def test_encoding_keeps_what_it_was_given():
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    before, codes = x.clone(), encode_uint8(x, Uniform.of(-2.0, 2.0, 8))
    kept = codes.clone()
    encode_uint8(-x, Uniform.of(-2.0, 2.0, 8))
    assert x.equal(before) and codes.equal(kept)  # the memory that codes lie in is theirs alone


def test_encoding_warns_of_nothing():
    """In a process of its own: what torch says, it says once."""
    code = (
        "import torch, labkit.quant.kernels as k; from labkit.quant.grids import Uniform\n"
        "k.encode_uint8(torch.ones(9), Uniform.of(-1.0, 1.0, 8))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0 and "UserWarning" not in run.stderr, run.stderr


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_oracles_numbers(shape, gelu):
    codes, packed = layer(*shape)
    for name, way in ways(packed).items():
        y = linear(codes, way, gelu)
        assert y.dtype == torch.float32 and y.shape == (shape[0], shape[2]), name
        checks.equal(y, exact_linear(codes, packed, gelu), 2e-5, name)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bits", range(2, 9))
def test_every_number_of_bits_and_the_zero_points_at_both_ends(bits, gelu):
    for zero in (0, 1, 2**bits - 1):
        codes, packed = layer(20, 48, 24, bits, zero)
        y = exact_linear(codes, packed, gelu)
        out = Uniform.of(y.amin() / 2, y.amax() / 2, bits)  # half of the outputs' range, so that both ends are met
        for name, way in ways(packed).items():
            checks.equal(linear(codes, way, gelu), y, 2e-5, name)
            found, expected = linear(codes, way, gelu, out), out.encode(y)
            assert found.dtype == torch.uint8 and found.max() == 2**bits - 1
            apart = (found.int() - expected).abs()
            assert apart.max() <= 1 and apart.float().mean() < 0.002, name


def test_the_oracle_is_the_float_layer_on_the_values_of_the_codes():
    codes, packed = layer(30, 50, 20)
    weight = packed.codes.double() * packed.scale.double()[:, None]
    x = packed.grid.scale.double() * (codes.double() - packed.grid.zero)
    y = F.linear(x, weight, packed.bias.double())
    checks.equal(exact_linear(codes, packed), y, 1e-6)
    checks.equal(exact_linear(codes, packed, gelu=True), F.gelu(y), 1e-6)
    assert (F.gelu(y) - F.gelu(y, approximate="tanh")).abs().max() > 1e-4  # a kernel with tanh would be found out
    no_bias = layer(30, 50, 20, bias=False)[1]
    checks.equal(linear(codes, no_bias), F.linear(x, weight), 2e-5)


def test_leading_axes_and_strides_are_kept():
    codes, packed = layer(12, 16, 9)
    y = exact_linear(codes, packed)
    for name, way in ways(packed).items():
        checks.equal(linear(codes.reshape(3, 4, 16), way), y.reshape(3, 4, 9), 2e-5, name)
        checks.equal(linear(codes.reshape(3, 2, 2, 16), way), y.reshape(3, 2, 2, 9), 2e-5, name)
        checks.equal(linear(codes[0], way), y[0], 2e-5, name)
        checks.equal(linear(codes[::2], way), y[::2], 2e-5, name)
        checks.equal(linear(codes.reshape(3, 4, 16)[:, :1], way), y.reshape(3, 4, 9)[:, :1], 2e-5, name)
        checks.equal(linear(codes.t().contiguous().t(), way), y, 2e-5, name)
        for empty in ((0, 16), (2, 0, 16)):
            assert linear(codes.new_zeros(empty), way).shape == (*empty[:-1], 9), name
            none = linear(codes.new_zeros(empty), way, out=packed.grid)
            assert none.shape == (*empty[:-1], 9) and none.dtype == torch.uint8, name


@pytest.mark.parametrize("inputs", [2, 63, 64, 515, 4096])
def test_the_largest_sums_are_exact(inputs):
    """255 · 127 · 2 has 17 bits and overflows 16; 255 · 127 · 4096 has 27, and is rounded once, to a float32."""
    codes_x = 255 * draw(5, inputs, low=0, high=1, dtype=torch.uint8)
    codes = 254 * draw(9, inputs, low=0, high=1, dtype=torch.int16) - 127
    codes_x[0], codes[0], codes[1] = 255, 127, -127
    for zero in (0, 7, 255):
        grid = Uniform(torch.tensor(1.0), torch.tensor(zero, dtype=torch.int32), 8)
        packed = pack(codes.to(torch.int8), torch.tensor(1.0), None, grid)
        sums = (codes_x.long() - zero) @ codes.long().t()
        assert sums[0, 0] == (255 - zero) * 127 * inputs
        for name, way in ways(packed).items():
            assert linear(codes_x, way).equal(sums.float()), name
        for name, way in ways(replace(packed, scale=torch.full((9,), 2.0**-8))).items():
            ends = linear(codes_x, way, out=replace(grid, scale=torch.tensor(1.0)))
            checks.equal(ends, (sums / 256 + zero).round().clamp(0, 255), 0, name)


def test_one_scale_serves_all_outputs():
    codes, packed = layer(5, 8, 4)
    for scale in (torch.tensor(0.01), torch.tensor([0.01]), torch.full((4, 1), 0.01)):
        one = pack(packed.codes, scale, packed.bias, packed.grid)
        checks.equal(linear(codes, one), exact_linear(codes, replace(packed, scale=torch.full((4,), 0.01))), 1e-5)


def test_a_copy_works_and_owns_what_it_has():
    codes, packed = layer(6, 10, 5)
    y = linear(codes, packed)
    for twin in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert twin.codes.data_ptr() != packed.codes.data_ptr()
        assert linear(codes, twin).equal(y)
    packed.codes.zero_()
    assert linear(codes, twin).equal(y)


def test_where_the_kernel_is_missing_a_warning_says_so_and_the_numbers_are_the_same(monkeypatch):
    codes, packed = layer(6, 10, 5)
    monkeypatch.setattr(kernels, "available", lambda device: SENTENCE)
    with pytest.warns(UserWarning, match="a test took it away"):
        slow = pack(packed.codes, packed.scale, packed.bias, packed.grid)
    assert slow.weight is None
    checks.equal(linear(codes, slow, gelu=True), linear(codes, packed, gelu=True), 1e-5)


def test_a_torch_without_the_kernel_and_a_processor_that_overflows_are_recognised(monkeypatch):
    class Gone:
        def __getattr__(self, name):
            raise AttributeError(f"there is no {name}")

    real = torch.ops.onednn.qlinear_pointwise
    available = kernels.available.__wrapped__
    monkeypatch.setattr(torch.ops.onednn, "qlinear_pointwise", lambda *a: real(*a).clamp(max=32767 * 32))
    assert "16 bits" in available("cpu")
    monkeypatch.setattr(torch.ops, "onednn", Gone())
    assert "there is no qlinear_prepack" in available("cpu")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [*SHAPES, (0, 8, 5)])
def test_products_of_signed_codes_are_exact(shape, device):
    rows, inputs, outputs = shape
    x = draw(rows, inputs, low=-127, high=127, dtype=torch.int8)
    codes = draw(outputs, inputs, low=-127, high=127, dtype=torch.int8)
    product = integer_product(x.to(device), codes.to(device))
    assert product.dtype == torch.int32 and product.shape == (rows, outputs)
    checks.equal(product, x.double() @ codes.double().t())


@pytest.mark.parametrize("device", DEVICES)
def test_tokens_are_rounded_by_their_own_largest_number(device):
    dice = torch.Generator().manual_seed(0)
    x = torch.randn(2, 9, 40, generator=dice) * torch.logspace(-3, 3, 9)[:, None]
    x[0, 4] = 0
    codes, scale = draw(30, 40, low=-127, high=127, dtype=torch.int8), torch.linspace(0.5, 2, 30) / 127
    bias = torch.linspace(-1, 1, 30)
    x, codes, scale, bias = (t.to(device) for t in (x, codes, scale, bias))
    step = x.abs().amax(dim=-1, keepdim=True).double() / 127
    rounded = (x.double() / step).nan_to_num().round() * step
    expected = F.linear(rounded, codes.double() * scale.double()[:, None], bias.double())
    relative = step * 127 * 40**0.5 + 1
    checks.equal(token_linear(x, codes, scale, bias) / relative, expected / relative, 1e-5)
    checks.equal(token_linear(x, codes, scale[:, None]) / relative, (expected - bias) / relative, 1e-5)
    checks.batch_independent(lambda x: token_linear(x, codes, scale, bias), x, 0)
    checks.follows_dtype_and_device(lambda x: token_linear(x, *(t.to(x.device) for t in (codes, scale, bias))), x)
    assert token_linear(x[:, :0], codes, scale, bias).shape == (2, 0, 30)
    x[1, 3, 7], x[1, 5, 0] = torch.nan, torch.inf
    lost = ~token_linear(x, codes, scale, bias).isfinite()
    assert lost[1, [3, 5]].all() and lost.sum() == 60


def test_what_does_not_fit_is_refused():
    codes, packed = layer(4, 8, 3)
    scale, zero = torch.tensor(0.1), torch.tensor(0, dtype=torch.int32)
    for grid in (Uniform(scale, zero, 8, signed=True), Uniform(scale, zero, 9), Uniform(scale.expand(8), zero, 8)):
        for call in (
            lambda grid=grid: encode_uint8(torch.zeros(2, 8), grid),
            lambda grid=grid: pack(packed.codes, packed.scale, None, grid),
            lambda grid=grid: linear(codes, packed, out=grid),
        ):
            with pytest.raises(LabkitError, match="one unsigned grid of at most 8 bits"):
                call()
    for bad in (codes.int(), codes[:, :7]):
        for apply in (linear, exact_linear):
            with pytest.raises(LabkitError, match=r"expected \(\.\.\., 8\) of uint8"):
                apply(bad, packed)
    for bad, scales in ((packed.codes.int(), scale), (packed.codes[0], scale), (packed.codes, torch.ones(2))):
        with pytest.raises(LabkitError, match="int8 codes"):
            pack(bad, scales, None, packed.grid)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_computes_the_same():
    codes, packed = layer(37, 50, 21)
    grid = Uniform(packed.grid.scale.cuda(), packed.grid.zero.cuda(), 8)
    there = pack(packed.codes.cuda(), packed.scale.cuda(), packed.bias.cuda(), grid)
    checks.equal(linear(codes.cuda(), there, gelu=True), exact_linear(codes, packed, gelu=True), 2e-5)
    apart = linear(codes.cuda(), there, gelu=True, out=grid).cpu().int() - linear(codes, packed, True, packed.grid)
    assert apart.abs().max() <= 1
