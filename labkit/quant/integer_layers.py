"""The layers of an integer-only ViT, made from those that `quantize` gave codes: linear layer, norm, block.

"I-ViT: Integer-only Quantization for Efficient Vision Transformer Inference", 2022 (S015). What flows are codes less
their zero point. Floats are used while a layer is made, and none while it runs.

    behind a linear layer    (sum · multiplier + bias) >> shift; LayerScale is a part of the multiplier
    residual stream          16 bits on one scale for all blocks, so that branches are simply added
    softmax, GELU, norms     16 bits, then the grid that the calibration gave to what reads them
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from labkit.layers import LayerScale
from labkit.quant.integer import (
    Dyadic,
    Exponent,
    IntegerLayerNorm,
    dyadic_requant,
    gelu_codes,
    rounding_shift,
    softmax_codes,
)

WIDE = 16  # bits of what is added, normalised or bent
TOP = 2 ** (WIDE - 1) - 1
SHARES = 2**WIDE - 1  # the code of probability 1
FLAT = 8.0  # from here on GELU is x, or nothing


class Span(NamedTuple):
    """What integers stand for: multiples of a scale, from low to high."""

    scale: float
    low: int
    high: int

    @classmethod
    def of(cls, grid: Any) -> Span:
        zero = int(grid.zero)
        return cls(float(grid.scale), grid.ends[0] - zero, grid.ends[1] - zero)

    @classmethod
    def wide(cls, largest: float) -> Span:
        return cls(max(largest / TOP, 2.0**-20), -TOP, TOP)  # no integer LayerNorm takes a finer scale


class Step:
    """A change of scale, or a norm; what lies outside the span behind it is clipped."""

    def __init__(self, how: float | IntegerLayerNorm, to: Span) -> None:
        self.how = how if isinstance(how, IntegerLayerNorm) else Dyadic.of(how / to.scale)
        self.low, self.high = to.low, to.high

    def __call__(self, q: Tensor) -> Tensor:
        q = dyadic_requant(q, self.how, WIDE) if isinstance(self.how, Dyadic) else self.how(q)
        return q.clamp(self.low, self.high)


def norm_step(norm: nn.LayerNorm, source: Span, to: Span) -> Step:
    return Step(IntegerLayerNorm.of(norm, source.scale, to.scale, WIDE, WIDE), to)


def saturated(q: Tensor) -> Tensor:
    """Within the codes of the residual stream."""
    return q.clamp(-TOP, TOP)


class IntegerLinear:
    """All channels share the shift, so that one which is dead, or which LayerScale has turned off, multiplies by 0.

    The bias is on the output's scale: on the accumulator's, tiny weights would give it more bits than there are.
    """

    def __init__(self, layer: Any, to: Span, gain: nn.Module | None = None, rows: slice = slice(None)) -> None:
        self.weight, source = layer.codes[rows].int(), Span.of(layer.input.grid)
        gamma = gain.gamma.detach().double() if isinstance(gain, LayerScale) else 1.0
        ratio = layer.grid.scale.double().flatten().expand(layer.out_features)[rows] * (source.scale / to.scale) * gamma
        bias = ratio * 0 if layer.bias is None else layer.bias.detach()[rows].double() / to.scale * gamma
        sums = self.weight.abs().sum(dim=1).clamp(min=1) * max(-source.low, source.high)
        largest = (sums * ratio.abs() + bias.abs()).max()
        self.shift = 61 - max(int(torch.frexp(largest).exponent), 0)  # before it, nothing comes to 2^62
        self.multiplier, self.bias = ((x * 2.0**self.shift).round().long() for x in (ratio, bias))
        self.low, self.high = to.low, to.high

    def __call__(self, q: Tensor) -> Tensor:
        """On the CPU, where torch multiplies matrices of integers."""
        total = (q.int() @ self.weight.mT).long() * self.multiplier + self.bias
        return rounding_shift(total, self.shift).clamp(self.low, self.high).int()


class IntegerBlock:
    """x += attention(norm(x)); x += mlp(norm(x)), for x on the scale of `stream`.

    `reach` tells how large the inputs of norms at queries and keys become.
    """

    def __init__(self, block: Any, stream: Span, reach: dict[str, float], name: str) -> None:
        self._make_attention(block.attn, stream, block.ls1, reach, f"{name}.attn")
        self.norm1 = norm_step(block.norm1, stream, Span.of(block.attn.qkv.input.grid))
        self.norm2 = norm_step(block.norm2, stream, Span.of(block.mlp.fc1.input.grid))
        bent = Span.of(block.mlp.fc2.input.grid)
        hidden = Span.wide(max(bent.high * bent.scale, FLAT))  # GELU(x) ≤ x for x > 0: what is larger would be clipped
        self.fc1, self.gelu = IntegerLinear(block.mlp.fc1, hidden), Exponent.of(1.702 * hidden.scale)
        self.bent = Step(hidden.scale / SHARES, bent)
        self.fc2 = IntegerLinear(block.mlp.fc2, stream, block.ls2)

    def _make_attention(self, attn: Any, stream: Span, gain: nn.Module, reach: dict[str, float], name: str) -> None:
        d, self.heads = attn.proj.in_features, attn.heads
        q, k, v, soft = (Span.of(point.grid) for point in (attn.q, attn.k, attn.v, attn.softmax))
        self.q_norm: Step | None = None
        self.k_norm: Step | None = None
        raw_q, raw_k = q, k
        if isinstance(attn.q_norm, nn.LayerNorm):
            raw_q = Span.wide(reach[f"{name}.q_norm"])
            self.q_norm = norm_step(attn.q_norm, raw_q, q)
        if isinstance(attn.k_norm, nn.LayerNorm):
            raw_k = Span.wide(reach[f"{name}.k_norm"])
            self.k_norm = norm_step(attn.k_norm, raw_k, k)
        spans = enumerate((raw_q, raw_k, v))
        self.q, self.k, self.v = (IntegerLinear(attn.qkv, to, rows=slice(i * d, i * d + d)) for i, to in spans)
        self.exponent = Exponent.of(q.scale * k.scale * (d // self.heads) ** -0.5)
        self.soft = Step(1 / SHARES, soft)
        self.mixed = Step(soft.scale * v.scale, Span.of(attn.proj.input.grid))
        self.proj = IntegerLinear(attn.proj, stream, gain)

    def __call__(self, x: Tensor) -> Tensor:
        x = saturated(x + self.attend(self.norm1(x)))
        y = gelu_codes(self.fc1(self.norm2(x)), self.gelu, WIDE)
        return saturated(x + self.fc2(self.bent(y)))

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (rearrange(part(x), "b n (h d) -> b h n d", h=self.heads) for part in (self.q, self.k, self.v))
        q = q if self.q_norm is None else self.q_norm(q)
        k = k if self.k_norm is None else self.k_norm(k)
        attn = self.soft(softmax_codes(q @ k.mT, self.exponent, WIDE))
        return self.proj(rearrange(self.mixed(attn @ v), "b h n d -> b n (h d)"))
