"""Multiply the scores by a mixture of Gaussians of the distance: a learned focus for two numbers a Gaussian.

"Toward a Deeper Understanding: RetNet Viewed through Convolution", 2023 (S105):
score x Σ a_k exp(-distance² / 2 σ_k²). The mask acts before the softmax: where it is zero, a key gets the weight of
score zero, not no weight. Tokens before the patches keep their scores.

    vit = replace_attention(labkit.ViT(64, 8, 10, 64, 6, 4), GaussianAttention)
    vit.blocks[0].attn.mask((8, 8))            # (64, 64), the same for all heads
    GaussianAttention(64, 4, kernels=3)        # 2 x 3 parameters more than plain attention
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.evidence import Grid
from labkit.positions.grid import displacements, for_each_pair
from labkit.positions.mixer import OpenAttention


class GaussianAttention(OpenAttention):
    """Plain attention when Σ a = 1 and every σ is infinite; begins with Σ a = 1 and σ = 2, 4, 8, … patches."""

    def __init__(self, dim: int, heads: int, kernels: int = 3) -> None:
        super().__init__(dim, heads)
        self.amplitude = nn.Parameter(torch.full((kernels,), 1 / kernels))
        self.log2_sigma = nn.Parameter(torch.arange(1.0, kernels + 1))

    def mask(self, grid: Grid) -> Tensor:
        """(n, n), symmetric, a function of the displacement."""
        sharpness = 2 ** (-2 * self.log2_sigma) / 2
        squares = (displacements(grid, sharpness.device) ** 2).sum(dim=1, keepdim=True)
        return for_each_pair((-squares * sharpness).exp() @ self.amplitude[:, None], grid)[0]

    def change(self, scores: Tensor, grid: Grid, prefix: int) -> Tensor:
        return scores * F.pad(self.mask(grid), (prefix, 0, prefix, 0), value=1.0)[: scores.shape[2]]
