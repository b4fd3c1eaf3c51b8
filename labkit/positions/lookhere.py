"""Every head looks one way: keys outside its field of view are masked, keys in it pay for their distance.

"LookHere: Vision Transformers with Directed Attention Generalize and Extrapolate", 2024 (S227). Directions are in
degrees, counter-clockwise from the right; the field of view includes its edges and the query itself, so no row is
empty. Nothing is learned and nothing has a size: on a larger grid a head sees what it saw, and more of it.

    vit = labkit.ViT(64, 8, 10, 64, 6, 4, position=lookhere_layers(heads=4, depth=6))
    bias = lookhere_bias((8, 8), directions=(0, 90, 180, 270), fov=90, slopes=(0.5,) * 4, prefix=1)
    fov_union(bias)                            # (65, 65): which keys does any head see?
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.errors import LabkitError
from labkit.evidence import Grid
from labkit.positions.grid import displacements, for_each_pair
from labkit.positions.scores import ScoreBias, check_heads


def lookhere_bias(
    grid: Grid,
    directions: Sequence[float | None],
    fov: float,
    slopes: Sequence[float],
    prefix: int = 0,
    device: torch.device | None = None,
) -> Tensor:
    """(heads, prefix + n, prefix + n): -slope x distance in view, -inf out of it; None looks everywhere."""
    if not 0 < fov <= 360:
        raise LabkitError(f"A field of view of {fov} degrees sees nothing sensible; choose 0 < fov <= 360.")
    check_heads(len(slopes), len(directions))
    to_key = -displacements(grid, device).float()
    distance, columns = to_key.norm(dim=1), []
    for direction, slope in zip(directions, slopes, strict=True):
        column = -slope * distance
        if direction is not None:
            angle = math.radians(direction)
            ahead = torch.tensor([-math.sin(angle), math.cos(angle)], device=device)  # rows count downwards
            # On the edge of the view rounding would decide: the edge belongs to it.
            seen = (to_key * ahead).sum(dim=1) >= distance * (math.cos(math.radians(fov / 2)) - 1e-6)
            column = column.masked_fill(~seen, -torch.inf)
        columns.append(column)
    return F.pad(for_each_pair(torch.stack(columns, dim=1), grid), (prefix, 0, prefix, 0))


def fov_union(bias: Tensor) -> Tensor:
    """(n, n) bool: the keys that at least one head of a query sees."""
    return (bias > -torch.inf).any(dim=0)


class LookHere(ScoreBias):
    """Heads in rounds of eight (four, below eight heads) directions that tile the circle; the rest look everywhere.

    A directed head of the r-th round has slope 2^-r, the r-th undirected one 4^-r; `slope` multiplies them all.
    """

    def __init__(self, heads: int, slope: float = 1.0) -> None:
        super().__init__(heads)
        if heads < 4:
            raise LabkitError(f"{heads} heads cannot look in all directions; choose at least 4.")
        ways = 8 if heads >= 8 else 4
        rounds, others = divmod(heads, ways)
        self.fov = 360 / ways
        self.directions = [360 * i / ways for i in range(ways)] * rounds + [None] * others
        self.slopes = [slope * 2.0**-r for r in range(1, rounds + 1) for _ in range(ways)]
        self.slopes += [slope * 4.0**-r for r in range(1, others + 1)]

    def bias(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        return lookhere_bias(grid, self.directions, self.fov, self.slopes, device=device)


def lookhere_layers(heads: int, depth: int) -> list[LookHere]:
    """One for each block: penalties fall from 1.5 in the first to 0.5 in the last, so that views widen."""
    return [LookHere(heads, slope) for slope in torch.linspace(1.5, 0.5, depth).tolist()]
