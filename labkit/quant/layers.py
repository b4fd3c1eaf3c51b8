"""The layers of a quantized ViT: floats that carry integers, so that every result is the one that integers give.

    codes of x − zero  ·  codes of W − zero  →  an exact sum of integers  →  · scale of x · scale of W + bias

A layer is born with its float weight and rounds nothing: the first run of the model is the calibration. `freeze`
then puts codes in the weight's place. Uniform grids multiply integers; any other, or one with a scale for each
group of inputs, multiplies the values that the codes stand for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from labkit.evidence import Evidence
from labkit.evidence import Grid as PatchGrid
from labkit.layers import Attention, Impl
from labkit.quant.fold import centre_keys
from labkit.quant.grids import Float8, Uniform, prepared
from labkit.quant.point import Point, moved
from labkit.quant.rotation import rotate
from labkit.quant.weights import group_width

GAPLESS = 2**24  # as far as float32 counts every integer; beyond, float64 carries the sums

WeightGrid = Uniform | Float8


class Kernel(Protocol):
    """Another way to compute a layer, made from it: `labkit.quant.int8` has one."""

    def __init__(self, layer: RoundedLinear) -> None: ...
    def encode(self, x: Tensor) -> Tensor: ...
    def __call__(self, x: Tensor, first: int | None = None, last: int | None = None) -> Tensor: ...


class RoundedLinear(nn.Module):
    """A linear layer with a point at its input and integer codes (out, in) for its weight."""

    codes: Tensor | None

    def __init__(self, linear: nn.Linear, rotated: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rotated = linear.in_features, linear.out_features, rotated
        self.input = Point()
        weight = linear.weight.detach()
        self.float_weight: nn.Parameter | None = nn.Parameter(rotate(weight) if rotated else weight)
        self.bias = linear.bias
        self.register_buffer("codes", None)
        self.grid: WeightGrid | None = None
        self.kernel: Kernel | None = None

    @property
    def weight_bytes(self) -> float:
        """What the weight takes as it is stored: codes with no bit to spare, scales and zero points, or floats."""
        if self.codes is None or self.grid is None:
            return self.weight.numel() * self.weight.element_size()
        if not isinstance(self.grid, Uniform):
            return self.codes.numel() + 4 * self.out_features
        scales = self.grid.scale.numel() / (group_width(self.grid) if self.grid.scale.ndim else 1)
        return self.codes.numel() * self.grid.bits / 8 + (4 if self.grid.signed else 5) * scales

    def freeze(self, grid: WeightGrid, weight: Tensor | None = None) -> None:
        """Put the codes of `weight`, by default the layer's own, in its place."""
        weight = self.float_weight if weight is None else weight
        assert weight is not None
        self.grid, self.codes, self.float_weight = grid, grid.encode(weight.detach()), None

    @property
    def weight(self) -> Tensor:
        """What the layer multiplies with: the values of its codes; without codes, the float weight or, where there is
        a grid already, that weight rounded on its way, as in training."""
        if self.codes is None:
            assert self.float_weight is not None
            return self.float_weight if self.grid is None else self.grid.round(self.float_weight)
        assert self.grid is not None
        return self.grid.decode(self.codes)

    def forward(self, x: Tensor, first: int | None = None, last: int | None = None) -> Tensor:
        return self.part(x, first, last)

    def part(self, x: Tensor, first: int | None = None, last: int | None = None) -> Tensor:
        """The outputs from `first` to before `last`, at the cost of these alone."""
        x = rotate(x) if self.rotated else x
        if self.kernel is not None:
            self.input.watch(x)
            return self.kernel(x, first, last)
        grid, bias = self.input.grid_for(x), None if self.bias is None else self.bias[first:last]
        counts = isinstance(self.grid, Uniform) and (self.grid.scale.ndim == 0 or self.grid.scale.shape[1] == 1)
        if not counts or not isinstance(grid, Uniform):
            return F.linear(self.input(x), self.weight[first:last].to(x.dtype), bias)
        self.input.watch(x)
        return self._count(x, grid, slice(first, last), bias)

    def _count(self, x: Tensor, grid: Uniform, rows: slice, bias: Tensor | None) -> Tensor:
        """The sum of integers, exact, and its scale."""
        assert isinstance(self.grid, Uniform) and self.codes is not None
        scale, zero = (t.expand(self.out_features, 1)[rows] for t in (self.grid.scale, self.grid.zero))
        weight, steps = self.codes[rows] - zero, grid.steps(x)
        low, high = (int(end) for end in grid.zero.aminmax()) if x.numel() else (0, 0)
        largest = max(grid.ends[1] - low, high - grid.ends[0])
        carrier = torch.float32 if largest * int(weight.abs().sum(dim=1).max()) < GAPLESS else torch.float64
        sums = F.linear(steps.to(carrier), weight.to(carrier)).to(torch.promote_types(x.dtype, torch.float32))
        out = sums * (grid.scale * scale[:, 0]).to(sums)  # half precision could not hold the sums themselves
        return (out if bias is None else out + bias).to(x.dtype)

    def _apply(self, fn, recurse: bool = True) -> RoundedLinear:  # type: ignore[no-untyped-def]
        super()._apply(fn, recurse)
        self.grid = moved(self.grid, fn)
        self.kernel = None if self.kernel is None else type(self.kernel)(self)
        return self


class RoundedPatches(RoundedLinear):
    """A convolution whose stride is its kernel is a linear layer over the pixels of each patch."""

    def __init__(self, conv: nn.Conv2d, rotated: bool = False) -> None:
        flat = nn.Linear(conv.weight[0].numel(), conv.out_channels, device="meta")
        flat.weight = nn.Parameter(conv.weight.detach().flatten(1))
        flat.bias = conv.bias  # type: ignore[assignment]
        super().__init__(flat, rotated)
        self.stride, self.in_channels = conv.stride, conv.in_channels

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        p, q = self.stride
        kind = images.dtype if images.is_floating_point() else torch.float32
        images = prepared(images).to(kind)  # where NaN is looked for when kernels run: later it would pass unseen
        if self.kernel is not None and self.input.seen is None:
            images = self.kernel.encode(images)  # a byte for each pixel is a quarter of the memory to rearrange
        h, w = images.shape[-2] // p, images.shape[-1] // q
        patches = rearrange(images[..., : h * p, : w * q], "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=q)
        return rearrange(self.part(patches), "b (h w) d -> b d h w", h=h).to(kind)


@dataclass
class RoundedEvidence(Evidence):
    """Evidence of queries and keys that are rounded already; the probabilities go through a point as well."""

    softmax: Point | None = None

    def attention(self, rows: slice = slice(None)) -> Tensor:
        if self.attn is not None or self.softmax is None:
            return super().attention(rows)
        return self.softmax(super().attention(rows))


class RoundedAttention(Attention):
    """Attention with points at its queries, keys, probabilities and values, as they meet in the two products.

    With `centred` keys lose their mean over the tokens first, which softmax does not see and a grid need not pay for.
    """

    def __init__(self, attn: Attention, centred: bool = False) -> None:
        nn.Module.__init__(self)
        self.heads, self.centred = attn.heads, centred
        self.qkv, self.proj, self.position = attn.qkv, attn.proj, attn.position
        self.q_norm, self.k_norm, self.norm = attn.q_norm, attn.k_norm, attn.norm
        self.q, self.k, self.softmax, self.v = Point(), Point(), Point(), Point()

    @property
    def impl(self) -> Impl:  # type: ignore[override]
        """Always written out: a fused kernel would not round the probabilities."""
        return "plain"

    @impl.setter
    def impl(self, impl: Impl) -> None:
        pass

    def project(self, x: Tensor, rows: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().project(x, rows)
        return q, k, self.v(v)

    def locate(self, q: Tensor, k: Tensor, bias: Tensor | None, grid: PatchGrid, prefix: int) -> Evidence:
        placed = super().locate(q, k, bias, grid, prefix)
        k = centre_keys(placed.k) if self.centred else placed.k
        return RoundedEvidence(self.q(placed.q), self.k(k), placed.bias, softmax=self.softmax)
