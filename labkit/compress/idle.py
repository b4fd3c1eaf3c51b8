"""Some hidden channels of an MLP skip the bend; after training their two linear layers are one matrix.

Folded, it costs d² + 2 d h (1 - idle_ratio) MACs per token instead of 2 d h: less as soon as
idle_ratio > d / 2h, an eighth for the usual h = 4 d. "RePaViT: Scalable Vision Transformer Acceleration via
Structural Reparameterization on Feedforward Network Layers", 2025 (S311).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from labkit.compress.fold import absorb_affine
from labkit.errors import LabkitError
from labkit.vit import MLP, Block, ViT


class FoldedFFN(nn.Module):
    """direct(x) + bent(x): one matrix for the idle channels, an MLP for the active ones if there are any."""

    def __init__(self, dim: int, active: int) -> None:
        super().__init__()
        self.direct = nn.Linear(dim, dim)
        self.bent = MLP(dim, active) if active else None
        if self.bent is not None:
            self.bent.fc2.register_parameter("bias", None)  # the sum needs one bias, and `direct` has it

    def forward(self, x: Tensor) -> Tensor:
        return self.direct(x) if self.bent is None else self.direct(x) + self.bent(x)


class ChannelIdleFFN(nn.Module):
    """An MLP whose last `idle_ratio` of the hidden channels see no activation; at 0 it is the plain MLP."""

    def __init__(self, dim: int, hidden: int, idle_ratio: float, act: Callable[[], nn.Module] = nn.GELU) -> None:
        super().__init__()
        if not 0 <= idle_ratio <= 1:
            raise LabkitError(f"idle_ratio={idle_ratio} is no fraction; choose a number from 0 to 1.")
        self.active = hidden - round(hidden * idle_ratio)
        self.fc1 = nn.Linear(dim, hidden)
        self.act = act()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        bent = self.act(hidden[..., : self.active])
        return self.fc2(torch.cat([bent, hidden[..., self.active :]], dim=-1))

    @torch.no_grad()
    def reparameterize(self) -> FoldedFFN:
        """The same function: over the idle channels, W₂ (W₁ x + b₁) + b₂ becomes one linear layer."""
        w1, b1, w2, b2 = self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias
        a = self.active
        folded = FoldedFFN(self.fc1.in_features, a).to(w1)
        folded.direct.weight.copy_(w2[:, a:] @ w1[a:])
        folded.direct.bias.copy_(w2[:, a:] @ b1[a:] + b2)
        if folded.bent is not None:
            folded.bent.fc1.weight.copy_(w1[:a])
            folded.bent.fc1.bias.copy_(b1[:a])
            folded.bent.act = copy.deepcopy(self.act)
            folded.bent.fc2.weight.copy_(w2[:, :a])
        return folded.train(self.training)


def fold_idle(vit: ViT) -> ViT:
    """A copy with every `ChannelIdleFFN` folded, and with it the gain and shift of the norm that it reads."""
    vit = copy.deepcopy(vit)
    blocks = [block for block in vit.modules() if isinstance(block, Block)]
    idle = [block for block in blocks if isinstance(block.mlp, ChannelIdleFFN)]
    if not idle:
        raise LabkitError(
            "No block of this model has a ChannelIdleFFN: give it one with block.mlp = ChannelIdleFFN(…)."
        )
    for block in idle:
        ffn: Any = block.mlp
        if isinstance(block.norm2, nn.LayerNorm | nn.RMSNorm):
            absorb_affine(block.norm2, [ffn.fc1])
        block.mlp = ffn.reparameterize()
    return vit
