"""Other bends for the MLP: one half of the hidden layer opens and closes the other half, channel by channel.

"GLU Variants Improve Transformer", 2020. With SiLU as the gate this is SwiGLU, the MLP of DINOv2's giant and
of AIMv2. Parameters carry the names of timm's `GluMlp` and `SwiGLU`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x): the approximation of GELU that OpenAI's CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class GatedMLP(nn.Module):
    """fc2(act(a) · b), where a and b are the halves of one layer `fc1`; `hidden` is the width of one half."""

    def __init__(self, dim: int, hidden: int, act: Callable[[], nn.Module] = nn.SiLU, gate_last: bool = False) -> None:
        super().__init__()
        self.gate_last = gate_last  # a · act(b) instead
        self.fc1 = nn.Linear(dim, 2 * hidden)
        self.act = act()
        self.norm: nn.Module = nn.Identity()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(self.norm(a * self.act(b) if self.gate_last else self.act(a) * b))


class SplitGatedMLP(nn.Module):
    """fc2(act(fc1_g(x)) · fc1_x(x)): the same with the gate in a layer of its own."""

    def __init__(self, dim: int, hidden: int, act: Callable[[], nn.Module] = nn.SiLU) -> None:
        super().__init__()
        self.fc1_g = nn.Linear(dim, hidden)
        self.fc1_x = nn.Linear(dim, hidden)
        self.act = act()
        self.norm: nn.Module = nn.Identity()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(self.act(self.fc1_g(x)) * self.fc1_x(x)))
