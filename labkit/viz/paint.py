"""What every picture begins with: finite numbers, an image as pixels, one scale for what is compared, line colours."""

from __future__ import annotations

from typing import Any

import numpy as np

from labkit.errors import LabkitError

# Okabe and Ito's colours, which every kind of colour vision tells apart.
LINES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")


def numbers(value: Any) -> np.ndarray:
    """A tensor, an array or a list as finite floats."""
    array = np.asarray(value.detach().cpu().double() if hasattr(value, "detach") else value, dtype=float)
    if array.size == 0 or not np.isfinite(array).all():
        raise LabkitError(f"A figure needs finite numbers; this array of shape {array.shape} is empty or has others.")
    return array


def picture(image: Any) -> np.ndarray:
    """An image (3 or 1, h, w) in [0, 1] as floats (h, w, 3)."""
    array = numbers(image)
    if array.ndim != 3 or array.shape[0] not in (1, 3):
        raise LabkitError(f"An image has shape (3, h, w) or (1, h, w); this one has {array.shape}.")
    low, high = array.min(), array.max()
    if low < -1e-6 or high > 1 + 1e-6:
        raise LabkitError(f"An image lies in [0, 1], this one in [{low:.3g}, {high:.3g}]; undo its normalisation.")
    return np.broadcast_to(array.clip(0, 1).transpose(1, 2, 0), (*array.shape[1:], 3))


def scale(values: np.ndarray) -> tuple[float, float]:
    """The ends of a colour scale: 0, or less where a value is less, and the largest value."""
    low, high = min(0.0, float(values.min())), float(values.max())
    return low, high if high > low else low + 1
