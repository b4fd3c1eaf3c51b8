"""Maps that no model made: what luck, a photographer's habit and an edge detector would score.

An explanation earns trust by what it adds to these. "Sanity Checks for Saliency Maps", 2018, shows how many
explanations are hard to tell from an edge detector.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.evidence import Grid


def random_map(images: Tensor, grid: Grid, seed: int = 0) -> Tensor:
    """Uniform noise, (b, gh, gw); the same for the same seed on any device."""
    return torch.rand(len(images), *grid, generator=torch.Generator().manual_seed(seed)).to(images.device)


def centre_map(images: Tensor, grid: Grid) -> Tensor:
    """A bell in the middle of the frame, its standard deviation a quarter of each side: what matters is central."""
    rows, columns = (((torch.arange(side) + 0.5) / side - 0.5) / 0.25 for side in grid)
    bell = (-(rows[:, None] ** 2 + columns**2) / 2).exp()
    return bell.to(images.device).expand(len(images), *grid)


def edge_map(images: Tensor, grid: Grid) -> Tensor:
    """How strongly the brightness changes (Sobel's magnitude), the mean of each cell."""
    grey = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]).to(grey)
    changes = F.conv2d(grey, torch.stack([across, across.T])[:, None])
    return F.adaptive_avg_pool2d(changes.norm(dim=1), grid)


CONTROLS = {"random": random_map, "centre": centre_map, "edges": edge_map}
