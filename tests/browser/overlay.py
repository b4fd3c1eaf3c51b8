"""The overlay of an explorer in a page: where its cells are, and which colours they have."""

from __future__ import annotations

import numpy as np

PIXEL = "(canvas, [x, y]) => [...canvas.getContext('2d').getImageData(x, y, 1, 1).data].slice(0, 3)"


class Overlay:
    """The image on the left, heat on the right, each with a grid of cells."""

    def __init__(self, cell, grid: tuple[int, int]) -> None:
        self.canvas, self.said, self.grid = cell.locator("canvas"), cell.locator(".says"), grid
        self.canvas.scroll_into_view_if_needed()
        width = self.canvas.bounding_box()["width"]
        self.side, self.gap, self.top = int(min((width - 14) / 2, 460)), 14, 24

    def middle(self, row: int, column: int, panel: int) -> tuple[float, float]:
        """Where the middle of a cell is, in pixels of the canvas."""
        left = panel * (self.side + self.gap)
        return left + (column + 0.5) * self.side / self.grid[1], self.top + (row + 0.5) * self.side / self.grid[0]

    def click(self, row: int, column: int) -> None:
        x, y = self.middle(row, column, 0)
        self.canvas.click(position={"x": x, "y": y})

    def heat(self) -> np.ndarray:
        """The colour in the middle of each cell of the heat, (h, w, 3)."""
        h, w = self.grid
        cells = [[self.middle(row, column, 1) for column in range(w)] for row in range(h)]
        return np.array([[self.canvas.evaluate(PIXEL, [int(x), int(y)]) for x, y in row] for row in cells])
