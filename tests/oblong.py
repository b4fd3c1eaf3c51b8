"""A small ViT on a grid that is not square, 4 x 6, with attention that is far from uniform, and images for it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.vit import ViT

POOLS = [{}, {"registers": 2}, {"pool": "avg"}, {"pool": "avg", "class_token": True, "registers": 1}]


def model(**options) -> ViT:
    torch.manual_seed(0)
    vit = ViT((32, 48), 8, 5, dim=32, depth=3, heads=2, **options).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return vit


def images(n: int = 3) -> Tensor:
    return torch.rand(n, 3, 32, 48, generator=torch.Generator().manual_seed(1))


class TwoGrids(nn.Module):
    """Not a plain ViT: 4 x 6 cells look at each other, then at 2 x 3 larger ones; there is no class token."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.head = nn.Conv2d(3, 16, 8, 8), nn.Linear(16, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        cells = self.cut(pixels)
        for keys in (cells, F.avg_pool2d(cells, 2)):
            q, k = (t.flatten(2).transpose(1, 2).unflatten(2, (2, 8)).transpose(1, 2) for t in (cells, keys))
            mixed = F.scaled_dot_product_attention(5 * q, k, k).transpose(1, 2).flatten(2)
            cells = cells + mixed.transpose(1, 2).unflatten(2, cells.shape[-2:])
        return self.head(cells.mean(dim=(2, 3)))


def two_grids() -> TwoGrids:
    torch.manual_seed(0)
    return TwoGrids().eval()
