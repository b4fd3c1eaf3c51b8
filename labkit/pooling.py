"""Attention pooling: one learned query looks at all tokens and decides what of them describes the image.

"Set Transformer: A Framework for Attention-based Permutation-Invariant Neural Networks", 2019; SigLIP reads
its images this way. Parameters carry the names of timm's `AttentionPoolLatent`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Evidence
from labkit.layers import MLP, Impl, log_sizes


class AttentionPool(nn.Module):
    """Tokens (b, n, d) → (b, d), for `ViT(pool=AttentionPool(…))`: one row of attention, then an MLP."""

    def __init__(
        self,
        dim: int,
        heads: int,
        mlp_ratio: float = 4.0,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        act: Callable[[], nn.Module] = nn.GELU,
        impl: Impl = "fast",
    ) -> None:
        super().__init__()
        if dim % heads:
            raise LabkitError(f"Width {dim} does not divide into {heads} heads; choose a multiple of {heads}.")
        self.heads, self.impl = heads, impl
        self.latent = nn.Parameter(torch.randn(1, 1, dim) * dim**-0.5)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm = norm(dim)
        self.mlp = MLP(dim, int(dim * mlp_ratio), act)

    def attend(self, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Evidence]:
        """The pooled feature (b, d) and the evidence, whose attention (b, heads, 1, n) says what was read."""
        q = rearrange(self.q(self.latent), "1 1 (h d) -> 1 h 1 d", h=self.heads).expand(len(x), -1, -1, -1)
        k, v = rearrange(self.kv(x), "b n (two h d) -> two b h n d", two=2, h=self.heads)
        evidence = Evidence(q, k, None if sizes is None else log_sizes(sizes)[:, None, None], v=v)
        if self.impl == "plain":
            evidence.attn = evidence.attention()
            out = evidence.attn @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=evidence.bias)
        pooled = self.proj(rearrange(out, "b h 1 d -> b (h d)"))
        return pooled + self.mlp(self.norm(pooled)), evidence

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        return self.attend(x, sizes)[0]
