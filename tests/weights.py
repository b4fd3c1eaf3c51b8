"""Models whose every weight matters: gains that start at one and biases at zero would hide mistakes."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def randomized(model: M, std: float = 0.2) -> M:
    """The model in float64 and eval mode with random weights, the same every time; gains keep their size."""
    draw = torch.Generator().manual_seed(0)
    model = model.double().eval()
    statistics = [(name, buffer) for name, buffer in model.named_buffers() if "running" in name]
    for name, tensor in [*model.named_parameters(), *statistics]:
        noise = std * torch.randn(tensor.shape, generator=draw, dtype=tensor.dtype)
        is_gain = tensor.ndim == 1 and not name.endswith(("bias", "running_mean"))
        tensor.copy_(tensor + noise if is_gain else noise)
    return model


def normal(*shape: int) -> torch.Tensor:
    """Standard normal float64 numbers; the same every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
