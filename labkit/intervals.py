"""How far to trust a measured number: 95 % intervals of an accuracy, of any statistic, and of a difference.

Wilson's score interval (1927) for one accuracy; the bootstrap (Efron, 1979) for anything else; the adjusted
interval of Bonett and Price (2012) for two models on the *same* images, where only disagreements count.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from labkit.errors import LabkitError

Interval = tuple[float, float]


def wilson(successes: int, n: int, z: float = 1.96) -> Interval:
    """The interval of a proportion: honest near 0 and 1 too, where p ± z √(p (1 - p) / n) is not."""
    if not 0 <= successes <= n or n == 0:
        raise LabkitError(f"{successes} successes of {n} make no proportion; expected 0 <= successes <= n, n > 0.")
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def bootstrap(
    values: Any, statistic: Callable[[np.ndarray], float] = np.mean, seed: int = 0, n: int = 2000
) -> Interval:
    """The middle 95 % of `statistic` over `n` resamples of `values` (rows, when there are more axes)."""
    values = _array(values)
    if values.ndim == 0 or len(values) < 2:
        raise LabkitError("A bootstrap needs at least two values; measure more than once.")
    draw = np.random.default_rng(seed)
    resamples = draw.integers(len(values), size=(n, len(values)))
    if statistic is np.mean and values.ndim == 1:
        estimates = values[resamples].mean(axis=1)  # all at once: a table has hundreds of intervals
    else:
        estimates = np.array([statistic(values[rows]) for rows in resamples])
    low, high = np.quantile(estimates, [0.025, 0.975])
    return float(low), float(high)


def paired_difference(correct_a: Any, correct_b: Any, z: float = 1.96) -> tuple[float, float, float]:
    """Accuracy of a minus accuracy of b on the same images, with its interval: (difference, low, high)."""
    a, b = _array(correct_a).astype(bool), _array(correct_b).astype(bool)
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise LabkitError(
            "Two accuracies are compared on the same images: expected two equally long lists of right and "
            f"wrong, got shapes {a.shape} and {b.shape}."
        )
    n = len(a)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    # One imagined image on each side: without it, two models that never disagreed would differ by 0 ± 0.
    p, q = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    half = z * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    return (only_a - only_b) / n, max(-1.0, p - q - half), min(1.0, p - q + half)


def _array(values: Any) -> np.ndarray:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
