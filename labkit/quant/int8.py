"""A quantized ViT on the processor's integer kernels: the same codes, and sums that `layers` only carries in floats.

Two things make it fast beside the products: an input is turned into codes once, and the hidden layer of an MLP leaves
its kernel through GELU as the codes that the next layer reads. Attention's two products stay in float, where one fused
kernel does them; a recipe that rounds them (`attention=8`) runs as it simulates, which is slower.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.layers import MLP
from labkit.quant import kernels
from labkit.quant.grids import Uniform
from labkit.quant.layers import RoundedLinear


class Int8Kernel:
    """Runs a layer's integers; parts of its outputs are laid out for the processor when they are first asked for."""

    def __init__(self, layer: RoundedLinear) -> None:
        assert isinstance(layer.grid, Uniform) and layer.codes is not None
        self.codes = layer.codes.to(torch.int8)
        self.scale = layer.grid.scale.flatten().expand(layer.out_features)
        self.bias, self.grid, self.per_token = layer.bias, layer.input.grid, layer.input.token_bits is not None
        self.packed: dict[tuple[int | None, int | None], kernels.Packed] = {}
        if not self.per_token:
            self.pack()  # says at once where a kernel is missing

    def __call__(self, x: Tensor, first: int | None = None, last: int | None = None) -> Tensor:
        """Outputs `first` to before `last` from values, or from codes that `encode` has made."""
        rows = slice(first, last)
        bias = None if self.bias is None else self.bias[rows]
        if self.per_token:
            return kernels.token_linear(x, self.codes[rows], self.scale[rows], bias)
        kind = x.dtype if x.is_floating_point() else torch.float32
        return kernels.linear(self.encode(x), self.pack(first, last)).to(kind)

    def encode(self, x: Tensor) -> Tensor:
        """Codes, for which a layer with one grid asks only once; tokens that find their own keep their values."""
        if self.per_token or x.dtype == torch.uint8:
            return x
        assert isinstance(self.grid, Uniform)
        return kernels.encode_uint8(x, self.grid)

    def pack(self, first: int | None = None, last: int | None = None) -> kernels.Packed:
        if (first, last) not in self.packed:
            assert isinstance(self.grid, Uniform)
            rows = slice(first, last)
            bias = None if self.bias is None else self.bias[rows]
            self.packed[first, last] = kernels.pack(self.codes[rows].contiguous(), self.scale[rows], bias, self.grid)
        return self.packed[first, last]


class Int8MLP(MLP):
    """fc1, GELU and the next codes in one kernel, then fc2; its parts are those of the MLP that it stands for."""

    def __init__(self, mlp: MLP) -> None:
        nn.Module.__init__(self)
        self.fc1, self.act, self.norm, self.fc2 = mlp.fc1, mlp.act, mlp.norm, mlp.fc2

    def forward(self, x: Tensor) -> Tensor:
        fc1: Any = self.fc1
        fc2: Any = self.fc2
        if fc1.input.seen is not None or fc2.input.seen is not None:  # whoever watches wants to see what flows between
            return super().forward(x)
        hidden = kernels.linear(fc1.kernel.encode(x), fc1.kernel.pack(), gelu=True, out=fc2.kernel.grid)
        return kernels.linear(hidden, fc2.kernel.pack()).to(x.dtype)


def execute(model: nn.Module) -> None:
    """Gives every rounded layer its kernel, in place; the sentence names the first layer that no kernel can run."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, RoundedLinear) and layer.codes is not None:
            problem = refusal(layer)
            if problem:
                raise LabkitError(
                    f'{name} cannot run on int8 kernels: {problem} Change that, or take backend="simulate".'
                )
            layer.kernel = Int8Kernel(layer)
    for name, module in list(model.named_modules()):
        if type(module) is MLP and _fuses(module):
            model.set_submodule(name, Int8MLP(module))


def refusal(layer: RoundedLinear) -> str | None:
    """What int8 kernels cannot do for this layer, as a sentence."""
    weight, grid, bits = layer.grid, layer.input.grid, layer.input.token_bits
    if not isinstance(weight, Uniform) or weight.bits > 8 or not weight.signed:
        return "its weights are on no symmetric grid of at most 8 bits."
    if weight.scale.ndim and weight.scale.shape[1] != 1:
        return 'its weights have a scale for each group of inputs, and kernels one for each output (per="channel").'
    if bits is not None:
        return None if bits == 8 else f"tokens find their own grids of 8 bits there, not of {bits}."
    if not isinstance(grid, Uniform) or grid.bits > 8:
        return "its inputs are on no uniform grid of at most 8 bits."
    return None


def _fuses(mlp: MLP) -> bool:
    for layer in (mlp.fc1, mlp.fc2):
        kernel = getattr(layer, "kernel", None)
        if not isinstance(kernel, Int8Kernel) or kernel.per_token or getattr(layer, "rotated", False):
            return False
    return type(mlp.norm) is nn.Identity and type(mlp.act) is nn.GELU and mlp.act.approximate == "none"
