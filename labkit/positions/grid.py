"""Where the patches are, and how far from each other: a relative scheme decides for each displacement, not each pair.

A grid of h x w has (h w)² pairs of patches and only (2h-1)(2w-1) displacements, counted here from the longest way
up and left to the longest way down and right, row by row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.errors import LabkitError
from labkit.evidence import Grid


def coordinates(grid: Grid, device: torch.device | None = None) -> Tensor:
    """(h*w, 2): row and column of each patch, row by row."""
    h, w = grid
    return torch.cartesian_prod(torch.arange(h, device=device), torch.arange(w, device=device))


def displacements(grid: Grid, device: torch.device | None = None) -> Tensor:
    """((2h-1)(2w-1), 2): every displacement from a key to a query, coordinates[query] - coordinates[key]."""
    h, w = grid
    return coordinates((2 * h - 1, 2 * w - 1), device) - torch.tensor([h - 1, w - 1], device=device)


def displacement_index(grid: Grid, table: Grid | None = None, device: torch.device | None = None) -> Tensor:
    """(n, n): which of the displacements of the grid `table` (by default the same) leads from key to query."""
    h, w = table or grid
    if grid[0] > h or grid[1] > w:
        raise LabkitError(
            f"A table of displacements made for a grid of {h}x{w} knows none of the longer ones on "
            f"{grid[0]}x{grid[1]}; make it for the larger grid, or choose a position without a table."
        )
    # The displacement is a difference, and so is its number: it takes one subtraction for each pair.
    rows, columns = coordinates(grid, device).unbind(dim=1)
    numbers = rows * (2 * w - 1) + columns
    return numbers[:, None] - numbers[None, :] + (h - 1) * (2 * w - 1) + w - 1


def for_each_pair(values: Tensor, grid: Grid, table: Grid | None = None) -> Tensor:
    """Values of displacements, (entries, heads), → values of pairs, (heads, n, n)."""
    return values.T[:, displacement_index(grid, table, values.device)]
