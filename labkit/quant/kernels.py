"""Products of 8-bit integers that the processor really computes as such, several for the time of one of floats.

Weights are codes w from -127 to 127, activations codes x from 0 to 255 with a zero z. What surrounds the integer sum
happens once for each output, while it is still in the processor's registers: a scale, a bias and, where asked for,
GELU and the rounding to the grid of the next layer.

    y = gelu(scale_x · scale_w · Σ (x - z) w + bias)

    packed = pack(codes, scale, bias, grid)              # weights for inputs on `grid`, put in order once
    y = linear(encode_uint8(x, grid), packed)            # float32; with out=next_grid codes again
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.errors import LabkitError
from labkit.quant.grids import Uniform

NOTHING: tuple[str, list[float], str] = ("none", [], "")  # is done to what the kernel computes
GELU: tuple[str, list[float], str] = ("gelu", [], "none")  # "none": by the error function, not approximated by tanh


def encode_uint8(x: Tensor, grid: Uniform) -> Tensor:
    """The codes of `grid.encode`, ties apart, in uint8; on the CPU in one pass over the memory.

    NaN, infinity and what is 2³¹ steps away may get any code, for the search is another pass: look where it is cheap.
    """
    scale, zero = _numbers(grid)
    x = x if x.dtype == torch.float32 else x.float()
    if x.is_cpu and _rounds_in_one_pass():
        codes = _round_in_one_pass(x, scale, zero)
        return codes if grid.bits == 8 else codes.clamp_(max=grid.ends[1])
    codes = x.div(scale).round_().add_(zero).clamp_(0, grid.ends[1])
    return codes.to(torch.int32).to(torch.uint8)  # two casts that processors know are faster than the one


@dataclass(frozen=True, eq=False)
class Packed:
    """A layer as its kernel wants it, made by `pack`; a deep copy, or what was pickled, is packed again."""

    codes: Tensor  # int8 (out, in)
    scale: Tensor  # float32 (out,)
    bias: Tensor | None  # float32 (out,)
    grid: Uniform  # of the inputs
    weight: Tensor | None  # the codes in the kernel's own order; None where it is missing
    zeros: Tensor  # (out,), the zeros of the codes, which the kernel asks for

    def __reduce__(self) -> tuple[Callable[..., Packed], tuple[Tensor, Tensor, Tensor | None, Uniform]]:
        return pack, (self.codes, self.scale, self.bias, self.grid)


def pack(codes: Tensor, scale: Tensor, bias: Tensor | None, grid: Uniform) -> Packed:
    """Codes int8 (out, in) whose zero is 0, their scale, one or (out,), and the grid that the inputs will be on.

    Where the kernel is missing a warning says so, and `linear` computes the same numbers more slowly.
    """
    if codes.ndim != 2 or codes.dtype != torch.int8 or scale.numel() not in (1, len(codes)):
        raise LabkitError(
            f"Codes {tuple(codes.shape)} of {codes.dtype} with {scale.numel()} scales cannot be packed; expected "
            "int8 codes (out, in) of a symmetric grid, and one scale or one for each output."
        )
    _numbers(grid)
    problem, weight = available(codes.device), None
    if problem:
        warnings.warn(problem, stacklevel=2)
    else:
        weight = codes if codes.is_cuda else torch.ops.onednn.qlinear_prepack(codes, None)
    scale = scale.detach().float().flatten().expand(len(codes)).contiguous()
    bias = None if bias is None else bias.detach().float()
    return Packed(codes, scale, bias, grid, weight, torch.zeros_like(scale, dtype=torch.int64))


def linear(codes_x: Tensor, packed: Packed, gelu: bool = False, out: Uniform | None = None) -> Tensor:
    """uint8 codes (..., in) → float32 (..., out), through the exact GELU if asked, or uint8 codes of the grid `out`."""
    _check_codes(codes_x, packed)
    if packed.weight is None or not codes_x.numel():
        return exact_linear(codes_x, packed, gelu, out)
    if not packed.weight.is_mkldnn:
        return _by_signed_product(codes_x, packed, gelu, out)
    scale, zero, kind = 1.0, 0, torch.float32
    if out is not None:
        (scale, zero), kind = _numbers(out), torch.uint8
    inputs = (codes_x, *_numbers(packed.grid))
    weights = (packed.weight, packed.scale, packed.zeros, packed.bias)
    y: Tensor = torch.ops.onednn.qlinear_pointwise(*inputs, *weights, scale, zero, kind, *(GELU if gelu else NOTHING))
    return y if out is None or out.bits == 8 else y.clamp_(max=out.ends[1])


def exact_linear(codes_x: Tensor, packed: Packed, gelu: bool = False, out: Uniform | None = None) -> Tensor:
    """What `linear` computes, written out: float64 counts to 2⁵³, so no sum of integers is rounded."""
    _check_codes(codes_x, packed)
    return _finish((codes_x.double() - packed.grid.zero) @ packed.codes.double().mT, packed, gelu, out)


def token_linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Floats (..., in) → (..., out) of the same precision; each token's codes reach to its own largest number.

    A token that holds NaN or infinity gets no finite number, and no other token is touched.
    """
    rows = x.detach().to(torch.promote_types(x.dtype, torch.float32)).reshape(-1, x.shape[-1])
    largest = rows.abs().amax(dim=1, keepdim=True)
    step = torch.where(largest == 0, torch.ones_like(largest), largest / 127)
    sums = integer_product((rows / step).round_().to(torch.int8), codes)
    y = sums * step * scale.flatten().to(step)
    y = y if bias is None else y + bias
    return y.to(x.dtype).reshape(*x.shape[:-1], len(codes))


def integer_product(x: Tensor, codes: Tensor) -> Tensor:
    """int8 (rows, in) and (out, in) → int32 (rows, out), every sum exact."""
    rows, outputs = len(x), len(codes)
    if x.is_cuda:  # this kernel wants multiples of 8, and more than 16 rows; zeros change no sum
        x, codes = (F.pad(t, (0, -t.shape[1] % 8, 0, -len(t) % 32)).contiguous() for t in (x, codes))
    return torch._int_mm(x, codes.t())[:rows, :outputs]


@functools.cache
def available(device: str | torch.device = "cpu") -> str | None:
    """None where there is an 8-bit kernel for the device that adds correctly; else a sentence that says what is not."""
    kind = torch.device(device).type
    try:
        if kind == "cuda":
            integer_product(*torch.ones(2, 8, 8, dtype=torch.int8, device=device))
        elif kind == "cpu":
            return _wrong_sums()
        else:
            raise RuntimeError(f'there is none for the device "{kind}"')
    except (AttributeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        return f"The 8-bit kernel is missing ({reason}); products of integers are computed in float64, more slowly."
    return None


def _wrong_sums() -> str | None:
    """Older processors add two products in 16 bits, where 255 · 127 + 255 · 127 does not fit."""
    x, codes = torch.full((4, 64), 255, dtype=torch.uint8), torch.full((16, 64), 127, dtype=torch.int8)
    weight, ones = torch.ops.onednn.qlinear_prepack(codes, None), torch.ones(16)
    zeros = torch.zeros(16, dtype=torch.int64)
    y = torch.ops.onednn.qlinear_pointwise(x, 1.0, 0, weight, ones, zeros, None, 1.0, 0, torch.float32, *NOTHING)
    if (y == 255 * 127 * 64).all():
        return None
    return "This processor's 8-bit kernel adds in 16 bits, and overflows; float64 takes its place, more slowly."


def _by_signed_product(codes_x: Tensor, packed: Packed, gelu: bool, out: Uniform | None) -> Tensor:
    """Σ (x - z) w = Σ (x - 128) w + (128 - z) Σ w, and the codes x - 128 are signed."""
    signed = (codes_x.reshape(-1, codes_x.shape[-1]) ^ 128).view(torch.int8)
    sums = integer_product(signed, packed.codes) + (128 - packed.grid.zero) * packed.codes.sum(dim=1, dtype=torch.int32)
    return _finish(sums.float().reshape(*codes_x.shape[:-1], -1), packed, gelu, out)


def _finish(sums: Tensor, packed: Packed, gelu: bool, out: Uniform | None) -> Tensor:
    y = sums * (packed.grid.scale.to(sums) * packed.scale.to(sums))
    y = y if packed.bias is None else y + packed.bias
    y = F.gelu(y) if gelu else y
    return y.float() if out is None else encode_uint8(y, out)


@functools.cache
def _rounds_in_one_pass() -> bool:
    """Torch announces that it will drop its quantized tensors, once, which the user can do nothing about."""
    x, codes = torch.tensor([[-9.0, -1.5, 0.0], [0.25, 3.0, 999.0]]), [[0, 0, 3], [4, 15, 255]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _round_in_one_pass(x, 0.25, 3).tolist() == codes
        except (AttributeError, RuntimeError):
            return False


def _round_in_one_pass(x: Tensor, scale: float, zero: int) -> Tensor:
    """Torch's quantized tensor, read where it lies: to hand its codes out takes longer than the rounding."""
    rounded = torch.quantize_per_tensor(x, scale, zero, torch.quint8)
    return torch.empty(0, dtype=torch.uint8).set_(rounded.untyped_storage(), 0, rounded.shape, rounded.stride())


@functools.lru_cache(maxsize=1024)  # a small batch would spend a tenth of its time on asking every tensor again
def _numbers(grid: Uniform) -> tuple[float, int]:
    """Scale and zero, of a grid that the kernel can take."""
    if grid.signed or grid.bits > 8 or grid.scale.numel() != 1:
        raise LabkitError(
            f"The kernel takes one unsigned grid of at most 8 bits for a tensor, not {grid.scale.numel()} grids of "
            f"{grid.bits} bits with signed={grid.signed}; make one with Uniform.of(x.amin(), x.amax(), bits=8)."
        )
    return grid.scale.item(), int(grid.zero.item())


def _check_codes(codes_x: Tensor, packed: Packed) -> None:
    if codes_x.dtype != torch.uint8 or codes_x.shape[-1:] != packed.codes.shape[1:]:
        raise LabkitError(
            f"Codes {tuple(codes_x.shape)} of {codes_x.dtype} do not fit; expected (..., {packed.codes.shape[1]}) "
            "of uint8, from encode_uint8(x, packed.grid)."
        )
