"""One scale for each block: what it costs, what it saves, whom an outlier harms; and functions as tables."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from labkit.errors import LabkitError
from labkit.quant.blocks import Table, exp_table, gelu_table, quantize_blocks, table_softmax
from labkit.quant.grids import Uniform
from tests import checks
from tests.weights import normal

X = normal(12, 40)
sizes = pytest.mark.parametrize("block", [1, 7, 16, 40, 480, 1000])
every_bits = pytest.mark.parametrize("bits", [2, 3, 4, 8])


@sizes
@every_bits
@pytest.mark.paper("S171")
def test_the_error_is_half_a_step_of_the_block_and_no_step_is_longer_than_the_tensor_s(block, bits):
    small, whole = quantize_blocks(X, block, bits), quantize_blocks(X, X.numel(), bits)
    steps = small.scale.double().expand(-1, block).flatten()[: X.numel()].reshape(X.shape)
    assert ((small.restore() - X).abs() <= steps / 2 * (1 + 1e-12)).all()
    assert (small.scale <= whole.scale).all()
    assert small.codes.dtype == torch.int8 and small.codes.abs().amax() <= 2 ** (bits - 1) - 1


@sizes
@every_bits
@pytest.mark.paper("S171")
def test_blocks_are_idempotent(block, bits):
    once = quantize_blocks(X, block, bits)
    twice = quantize_blocks(once.restore(), block, bits)
    assert twice.codes.equal(once.codes) and twice.scale.equal(once.scale)


@pytest.mark.paper("S171")
def test_an_outlier_harms_its_own_block_only():
    wild = X.clone()
    wild[3, 21] = 1e4
    calm, spoilt = quantize_blocks(X, 20, 4), quantize_blocks(wild, 20, 4)
    same = (calm.codes == spoilt.codes).all(dim=1) & (calm.scale == spoilt.scale).flatten()
    assert same.tolist() == [i != 3 * 2 + 1 for i in range(24)]
    others = (spoilt.restore() - wild).reshape(24, 20)[same].abs().amax()
    assert (
        others < 0.3 and (quantize_blocks(wild, 480, 4).restore() != 0).sum() == 1
    )  # one scale: only the outlier left


@pytest.mark.paper("S171")
@pytest.mark.parametrize("block, dim", [(480, None), (40, 1)], ids=["tensor", "row"])
def test_one_block_is_the_tensor_and_a_row_is_a_row(block, dim):
    top = X.abs().amax() if dim is None else X.abs().amax(dim=dim, keepdim=True)
    grid = Uniform.of(-top, top, 8, symmetric=True)
    rounded = Uniform(grid.scale.bfloat16().double(), grid.zero, 8, signed=True)  # a block's scale has 16 bits
    small = quantize_blocks(X, block)
    assert small.codes.reshape(X.shape).int().equal(rounded.encode(X))
    checks.equal(small.restore(), rounded.round(X), 1e-12)
    checks.equal(small.restore(), grid.round(X), float(grid.scale.max()) * 1.26)  # a code, and a quarter of a step


@pytest.mark.paper("S171")
@pytest.mark.parametrize("bits, block", [(8, 64), (4, 64), (4, 16), (3, 480)])
def test_the_ratio_counts_codes_and_scales(bits, block):
    small = quantize_blocks(normal(960), block, bits)
    assert small.ratio == pytest.approx(32 / (bits + 16 / block))
    stored = small.codes.numel() * bits + small.scale.numel() * 8 * small.scale.element_size()
    assert small.ratio == pytest.approx(960 * 32 / stored)


def test_zeros_and_tiny_and_huge_numbers_are_finite():
    x = torch.tensor([[0.0, 0.0], [1e-40, -1e-40], [1e38, -3e37], [1e-20, 0.0]])
    restored = quantize_blocks(x, 2).restore()
    assert restored.isfinite().all() and restored[0].tolist() == [0, 0]
    checks.equal(restored[2:] / x[2:].abs().amax(dim=1, keepdim=True), torch.tensor([[1, -0.3], [1, 0]]), 5e-3)
    assert quantize_blocks(X.bfloat16(), 8).restore().dtype == torch.float32


INPUTS = Uniform.of(-4.0, 4.0, 8)


@pytest.mark.paper("S171")
@pytest.mark.parametrize("bits", [4, 8])
def test_a_table_of_gelu_is_exact_on_its_grid(bits):
    inputs, outputs = Uniform.of(-4.0, 4.0, bits), Uniform.of(-0.17, 4.3, 8)  # the top input level is 4 + half a step
    table = gelu_table(inputs, outputs)
    assert len(table.entries) == 2**bits
    x = inputs.levels()
    out = table(inputs.encode(x))
    assert out.equal(outputs.encode(F.gelu(x)))
    assert ((outputs.decode(out) - F.gelu(x)).abs() <= outputs.scale / 2 * (1 + 1e-6)).all()
    codes = inputs.encode(X)
    assert table(codes).equal(outputs.encode(F.gelu(inputs.decode(codes)))) and table(codes).dtype == torch.int32


@pytest.mark.parametrize("signed", [False, True])
def test_a_table_serves_any_function_and_signed_codes(signed):
    inputs = Uniform.of(-4.0, 4.0, 8, symmetric=signed)
    table = Table.of(torch.sin, inputs, Uniform.of(-1.0, 1.0, 8))
    codes = inputs.encode(X)
    checks.equal(table.outputs.decode(table(codes)), inputs.decode(codes).sin(), 1 / 255 + 1e-6)


@pytest.mark.paper("S171")
@pytest.mark.parametrize("tokens", [1, 2, 40, 197])
def test_a_softmax_of_tables_is_exact_on_its_grid(tokens):
    """The entries are the exponentials to half a last place; the codes are the nearest to the quotient of entries."""
    scale, precision = 0.0625, 15
    table = exp_table(scale, 8, precision)
    assert len(table) == 256 and table[0] == 2**precision
    assert ((table / 2**precision - torch.exp(-scale * torch.arange(256.0).double())).abs() <= 0.5**precision / 2).all()
    scores = Uniform(torch.tensor(scale), torch.tensor(128), 8).encode(3 * normal(5, 3, tokens))
    codes = table_softmax(scores, table)
    assert codes.dtype == torch.int32 and codes.amin() >= 0 and codes.amax() <= 255
    exact = (scores.double() * scale).softmax(dim=-1)
    # Half an output code, and the table: each of the n + 1 entries in a quotient is off by half a last place at most.
    bound = 0.5 / 255 + (tokens + 1) * 0.5**precision / 2
    assert ((codes / 255 - exact).abs() <= bound).all()
    assert tokens > 1 or codes.eq(255).all()
    assert table_softmax(scores + 7, table).equal(codes)  # only differences count


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: quantize_blocks(X, 0), "Blocks of 0 of 480 numbers"),
        (lambda: quantize_blocks(X[:0]), "Blocks of 64 of 0 numbers"),
        (lambda: quantize_blocks(X / 0), "holds infinity"),
        (lambda: quantize_blocks(X * torch.nan), "holds NaN"),
        (lambda: quantize_blocks(X, bits=9), "from 2 to 8 bits"),
        (lambda: gelu_table(Uniform.of(-X.abs(), X.abs(), 4), INPUTS), "one scale for all its inputs"),
        (lambda: table_softmax(X, exp_table(0.1, 8)), "takes integer codes"),
        (lambda: exp_table(0.1, 13), "from 1 to 12 bits"),
    ],
)
def test_what_cannot_be_is_a_sentence(make, sentence):
    with pytest.raises(LabkitError, match=sentence):
        make()
