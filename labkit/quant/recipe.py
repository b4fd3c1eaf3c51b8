"""What is rounded, to how many bits and how: everything that `quantize` is told, and that a checkpoint remembers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, get_args

from labkit.errors import LabkitError, closest
from labkit.quant.weights import Per

Bits = int | Literal["e4m3", "e5m2"] | None
Clip = Literal["min_max", "percentile", "mse", "kl", "moving_average"]
Fold = Literal["none", "channels", "smooth", "rotate"]
Softmax = Literal["uniform", "log2", "log_sqrt2", "adalog", "twin", "tangent"]
Gelu = Literal["uniform", "twin"]
Rounding = Literal["nearest", "gptq", "adaptive"]
Backend = Literal["simulate", "int8"]
CHOICES = {"clip": Clip, "fold": Fold, "softmax": Softmax, "gelu": Gelu, "rounding": Rounding}


@dataclass(frozen=True)
class Recipe:
    """Bits are whole numbers from 2 to 16, an 8-bit float ("e4m3", "e5m2") or None, which leaves the tensor alone."""

    weights: Bits = 8
    activations: Bits = 8  # what linear layers read
    attention: int | None = None  # queries, keys, probabilities and values; None: both products stay in float
    ends: Bits | Literal["same"] = 8  # patch embedding and heads, where the others are rounded at all
    layers: Mapping[str, tuple[Bits, Bits]] = field(
        default_factory=dict
    )  # layer: (weights, activations), as an exception
    per: Per = "channel"  # one weight grid for the tensor, for each output channel, or for each group of so many inputs
    symmetric: bool = True  # weight grids without a zero point, which integer kernels want
    per_token: bool = False  # each token's activations on a grid of its own, found as they come
    clip: Clip = "min_max"  # where activation grids end
    fold: Fold = "none"  # done to LayerNorm and the layer behind it before rounding
    centred: bool = False  # keys lose their mean before they are rounded
    softmax: Softmax = "uniform"
    gelu: Gelu = "uniform"
    rounding: Rounding = "nearest"
    correct_bias: bool = False  # the mean error that rounding makes is moved into the bias

    def __post_init__(self) -> None:
        for name, kind in CHOICES.items():
            value, known = getattr(self, name), get_args(kind)
            if value not in known:
                hint = closest(str(value), known)
                raise LabkitError(f"{name}={value!r} is unknown; choose one of {', '.join(known)}.{hint}")
        for name, pair in self.layers.items():
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise LabkitError(f"layers[{name!r}]={pair!r}; expected the bits of both, (weights, activations).")
        for name, bits in self._all_bits():
            whole = isinstance(bits, int) and not isinstance(bits, bool) and 2 <= bits <= 16
            if not whole and bits not in (None, "e4m3", "e5m2"):
                raise LabkitError(
                    f'{name}={bits!r} are no bits; expected 2 to 16, "e4m3" or "e5m2", or None to leave it in float.'
                )
        if self.per not in ("tensor", "channel") and not (type(self.per) is int and self.per >= 1):
            raise LabkitError(f'per={self.per!r}; choose "tensor", "channel", or how many inputs share a scale, as 32.')
        self._check_pairs()

    def _check_pairs(self) -> None:
        """Choices that would have no effect together are refused: nobody should measure what was not done."""
        if isinstance(self.attention, str):
            raise LabkitError(f"attention={self.attention!r}; the two products take whole numbers of bits, or None.")
        if self.per_token and (self.fold == "channels" or self.gelu != "uniform"):
            raise LabkitError(
                'Tokens find their own uniform grids: per_token goes with neither fold="channels" nor gelu.'
            )
        read = [self.activations, self.ends, *(activations for _, activations in self.layers.values())]
        if self.per_token and any(bits in ("e4m3", "e5m2") for bits in read):
            raise LabkitError("Tokens find their own uniform grids: per_token goes with no activations of 8-bit float.")
        for name, value, idle in (("softmax", self.softmax, "uniform"), ("centred", self.centred, False)):
            if value != idle and self.attention is None:
                raise LabkitError(f"{name}={value!r} needs attention=bits; without, both products stay in float.")

    def _all_bits(self) -> list[tuple[str, Bits | Literal["same"]]]:
        pairs = [(f"layers[{name!r}]", bits) for name, pair in self.layers.items() for bits in pair]
        ends = [] if self.ends == "same" else [("ends", self.ends)]
        own = [(name, getattr(self, name)) for name in ("weights", "activations", "attention")]
        return [*own, *ends, *pairs]

    def bits(self, layer: str, end: bool) -> tuple[Bits, Bits]:
        """(weights, activations) of a layer; `end` is the patch embedding or a head."""
        if layer in self.layers:
            weights, activations = self.layers[layer]
            return weights, activations
        if end and self.ends != "same":
            return None if self.weights is None else self.ends, None if self.activations is None else self.ends
        return self.weights, self.activations

    @property
    def needs_images(self) -> bool:
        """False where nothing is read from data: weights go to the nearest level, and tokens find their own grids."""
        inputs = [self.activations, *(activations for _, activations in self.layers.values())]
        fixed = not self.per_token and any(bits is not None for bits in inputs)
        data = self.fold in ("channels", "smooth") or self.rounding != "nearest" or self.correct_bias
        return fixed or data or self.attention is not None

    def describe(self) -> str:
        """Everything that is not the default, in one line."""
        told = {f.name: getattr(self, f.name) for f in fields(self)}
        plain = Recipe()
        more = [f"{k}={v}" for k, v in told.items() if k not in ("weights", "activations") and v != getattr(plain, k)]
        return " · ".join([f"W{self.weights}/A{self.activations}", *more])
