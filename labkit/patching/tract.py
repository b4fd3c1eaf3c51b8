"""Train the first layer as if its activations were the parameters: contrast no longer decides how much is learned.

"TrAct: Making First-layer Pre-Activations Trainable", 2024 (S350). Plain gradients of W are proportional to the
pixels. Instead, let the m activations z = W x step along their own gradients G, and take for W the step that comes
nearest: the minimum of ||X dWᵀ + G||² / m + λ ||dW||², which is dW = -Gᵀ X / m (Xᵀ X / m + λ)⁻¹. A loss that is a
mean sends G / m back, so what is left to do is one multiplication of the usual gradient; nothing else changes.

    vit.patch_embed.proj = TrActConv2d(vit.patch_embed.proj, lam=0.1)
    loss.backward()                            # weight.grad is -dW; any optimizer, same weights, same outputs
    TrActLinear(linear, lam=1e9)               # the direction of plain gradients, 1e9 times shorter
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from labkit.errors import LabkitError


class _Activations(torch.autograd.Function):
    """The weights as they are; on the way back, their gradient times (Xᵀ X / m + λ)⁻¹."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, inputs: Tensor, rows: Callable[[Tensor], Tensor], lam: float) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.rows, ctx.lam = rows, lam
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        x = ctx.rows(*ctx.saved_tensors)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        gram = x.T @ x / len(x)
        gram.diagonal().add_(ctx.lam)
        step = torch.linalg.solve(gram, gradient.flatten(1).to(gram.dtype).T).T
        return step.reshape(gradient.shape).to(gradient.dtype), None, None, None


class TrActLinear(nn.Linear):
    """A linear layer with the same parameters and outputs, whose weights get the gradient of their activations."""

    def __init__(self, linear: nn.Linear, lam: float = 0.1) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias, self.lam = linear.weight, linear.bias, _checked(lam)

    def forward(self, x: Tensor) -> Tensor:
        weight = _Activations.apply(self.weight, x, lambda x: x.flatten(0, -2), self.lam)
        return F.linear(x, weight, self.bias)


class TrActConv2d(nn.Conv2d):
    """The same for a convolution, which is a linear layer on the pixels under its kernel."""

    def __init__(self, conv: nn.Conv2d, lam: float = 0.1) -> None:
        if conv.groups > 1 or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise LabkitError("TrAct unfolds the image under the kernel: one group and zeros for a padding, please.")
        shape: dict[str, Any] = {name: getattr(conv, name) for name in ("kernel_size", "stride", "padding", "dilation")}
        super().__init__(conv.in_channels, conv.out_channels, **shape, bias=False, device="meta")
        self.weight, self.bias, self.lam = conv.weight, conv.bias, _checked(lam)

    def rows(self, images: Tensor) -> Tensor:
        """The pixels under the kernel in each of its m places, (m, c k²)."""
        unfolded = F.unfold(images, self.kernel_size, self.dilation, self.padding, self.stride)  # type: ignore[arg-type]
        return unfolded.transpose(1, 2).flatten(0, 1)

    def forward(self, images: Tensor) -> Tensor:
        weight = _Activations.apply(self.weight, images, self.rows, self.lam)
        return F.conv2d(images, weight, self.bias, self.stride, self.padding, self.dilation)


def _checked(lam: float) -> float:
    if lam <= 0:
        raise LabkitError(f"lam={lam} leaves what no pixel speaks of undecided; choose lam > 0, such as 0.1.")
    return lam
