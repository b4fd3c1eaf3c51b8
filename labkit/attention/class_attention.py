"""The class token comes late and is the only one to ask: it gathers from the patches, which stay as they are.

One query instead of n makes a layer linear in the tokens, and the blocks before it serve the patches alone.
"Going deeper with Image Transformers", 2021 (S182). Parameters carry the names of timm's `ClassAttn`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.layers import MLP, LayerScale, log_sizes


class ClassAttention(nn.Module):
    """The class row of full attention over [cls, patches], and no other row: 2d² + 2d(d + 1)(n + 1) MACs."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise LabkitError(f"Width {dim} does not divide into {heads} heads; choose a multiple of {heads}.")
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, cls: Tensor, patches: Tensor, sizes: Tensor | None = None) -> Tensor:
        """(b, 1, d) and (b, n, d) → what the class token gathers, (b, 1, d)."""
        x = torch.cat([cls, patches], dim=1)
        q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=self.heads) for t in (self.q(cls), self.k(x), self.v(x)))
        bias = None if sizes is None else F.pad(log_sizes(sizes), (1, 0))[:, None, None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(rearrange(out, "b h n d -> b n (h d)"))


class ClassBlock(nn.Module):
    """A transformer block that updates the class token alone."""

    def __init__(self, dim: int, heads: int, layer_scale: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = ClassAttention(dim, heads)
        self.ls1 = LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, 4 * dim)
        self.ls2 = LayerScale(dim, layer_scale)

    def forward(self, cls: Tensor, patches: Tensor, sizes: Tensor | None = None) -> Tensor:
        cls = cls + self.ls1(self.attn(self.norm1(cls), self.norm1(patches), sizes))
        return cls + self.ls2(self.mlp(self.norm2(cls)))


class ClassStage(nn.Module):
    """A class token and the blocks that fill it: patches (b, n, d) → (b, d), so `ViT(pool=ClassStage(…))`.

    As in the paper once the final norm follows the stage: `vit.norm, vit.fc_norm = vit.fc_norm, vit.norm`.
    """

    def __init__(self, dim: int, heads: int, depth: int = 2, layer_scale: float = 1e-4) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.blocks = nn.ModuleList(ClassBlock(dim, heads, layer_scale) for _ in range(depth))

    def forward(self, patches: Tensor, sizes: Tensor | None = None) -> Tensor:
        cls = self.cls_token.expand(len(patches), -1, -1)
        for block in self.blocks:
            cls = block(cls, patches, sizes)
        return cls[:, 0]
