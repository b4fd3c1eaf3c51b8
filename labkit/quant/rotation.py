"""Turn the axes so that an outlier is shared by all channels: a rotation is exact in the product and kind to a grid.

    x Wᵀ = (x R)(W R)ᵀ          |x R| ≤ |x|₁ / √n in every channel, when R is a Hadamard matrix over √n

"Training Transformers with 4-bit Integers", 2023 (S282). Widths such as 192 or 768 are no power of two: their largest
odd factor is turned by the Hartley matrix cos + sin, whose entries are at most √2 times as large. R is symmetric, so
that it is its own inverse for every width. A row of equal numbers is its worst case: all of it meets in one channel.

    y = rotate_inputs(linear)(rotate(x))            # linear(x)
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from labkit.errors import LabkitError


def hadamard(n: int) -> Tensor:
    """The n × n matrix of ±1 (float64) whose rows are orthogonal, doubled from a single 1; n is a power of two."""
    _check_power(n)
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < n:
        matrix = torch.kron(torch.tensor([[1, 1], [1, -1]], dtype=torch.float64), matrix)
    return matrix


def hartley(n: int) -> Tensor:
    """The n × n matrix cos(2πij/n) + sin(2πij/n) (float64): symmetric, and its square is n times the identity."""
    i = torch.arange(n, dtype=torch.float64)
    angle = 2 * math.pi / n * (torch.outer(i, i) % n)
    return angle.cos() + angle.sin()


def walsh_hadamard(x: Tensor) -> Tensor:
    """x @ hadamard(n) along the last axis, in n log₂ n additions instead of n²: sums and differences of pairs."""
    shape, n, step = x.shape, x.shape[-1], 1
    _check_power(n)
    while step < n:
        first, second = x.reshape(*shape[:-1], n // (2 * step), 2, step).unbind(dim=-2)
        x = torch.stack([first + second, first - second], dim=-2)
        step *= 2
    return x.reshape(shape)


def rotate(x: Tensor) -> Tensor:
    """x R along the last axis, for any width; rotating twice is the identity."""
    n = x.shape[-1]
    if n == 0:
        raise LabkitError("The last axis is empty; expected at least one channel to rotate.")
    power = n & -n
    odd = n // power
    parts = x.reshape(*x.shape[:-1], power, odd)
    if odd > 1:
        parts = parts @ hartley(odd).to(x)
    parts = walsh_hadamard(parts.transpose(-2, -1)).transpose(-2, -1)
    return parts.reshape(x.shape) / math.sqrt(n)


@torch.no_grad()
def rotate_inputs(linear: nn.Linear) -> nn.Linear:
    """A copy that expects rotated inputs and puts out what `linear` does for the plain ones."""
    rotated = copy.deepcopy(linear)
    rotated.weight.copy_(rotate(linear.weight))
    return rotated


def _check_power(n: int) -> None:
    if n < 1 or n & (n - 1):
        raise LabkitError(f"A Hadamard matrix is doubled from 1, and {n} is no power of two; use rotate for any width.")
