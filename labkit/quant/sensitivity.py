"""Which layers deserve more bits: raise, one at a time, the layer whose error falls most for each bit of memory.

The greedy allocation of "MPTQ-ViT: Mixed-Precision Post-Training Quantization for Vision Transformer", 2024 (S070).
It takes each layer's error as measured alone and adds them up. Where the errors fall ever more slowly (are convex) and
all steps are equally large, no other choice is better; where layers differ in size, what is left over of the budget
may be spent better by one who tries all.

    errors = error_table(error_of, layers=4, bits=(3, 4, 6, 8))
    bits = greedy_bits(errors, (3, 4, 6, 8), sizes, budget=5 * sum(sizes))      # 5 bits per weight on average
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from labkit.errors import LabkitError


def error_table(error_of: Callable[[int, int], float], layers: int, bits: Sequence[int]) -> Tensor:
    """(layers, choices) float64: `error_of(layer, bits)` when this layer alone is rounded and all others are not."""
    return torch.tensor([[error_of(layer, b) for b in bits] for layer in range(layers)], dtype=torch.float64)


def greedy_bits(errors: Tensor, bits: Sequence[int], sizes: Sequence[int], budget: float) -> list[int]:
    """The bits of each layer: their errors (layers, choices) small in all, and Σ size · bits within the `budget`.

    Never worse than the most bits that fit when all layers get equally many: those are compared at the end.
    """
    _check(errors, bits, sizes)
    affordable = [c for c in range(len(bits)) if bits[c] * sum(sizes) <= budget]
    if not affordable:
        raise LabkitError(
            f"{bits[0]} bits in every layer need {bits[0] * sum(sizes)} bits of memory, and the budget is {budget:g}; "
            "offer fewer bits or a larger budget."
        )
    table = errors.tolist()
    greedy, even = _climb(table, bits, sizes, budget), [affordable[-1] for _ in sizes]
    chosen = min(greedy, even, key=lambda choices: sum(row[c] for row, c in zip(table, choices, strict=True)))
    return [bits[c] for c in chosen]


def _climb(table: list[list[float]], bits: Sequence[int], sizes: Sequence[int], budget: float) -> list[int]:
    """Which choice each layer ends at. A step may skip choices, so that an error that falls late is not missed."""
    chosen = [0 for _ in sizes]
    left = budget - bits[0] * sum(sizes)
    while True:
        best = (0.0, 0, 0, 0)  # what is gained for each bit of memory, the memory, the layer and its choice
        for i, row in enumerate(table):
            for c in range(chosen[i] + 1, len(bits)):
                memory = (bits[c] - bits[chosen[i]]) * sizes[i]
                gain = (row[chosen[i]] - row[c]) / memory
                if memory <= left and gain > best[0]:
                    best = gain, memory, i, c
        gain, memory, layer, choice = best
        if gain == 0:
            return chosen
        chosen[layer], left = choice, left - memory


def _check(errors: Tensor, bits: Sequence[int], sizes: Sequence[int]) -> None:
    if tuple(errors.shape) != (len(sizes), len(bits)) or not bits:
        raise LabkitError(
            f"Errors of shape {tuple(errors.shape)} for {len(sizes)} layers and {len(bits)} choices of bits; "
            f"expected ({len(sizes)}, {len(bits)}), and at least one choice."
        )
    if errors.isnan().any():
        raise LabkitError("An error is NaN, and nothing can be compared with it; find the layer that computes NaN.")
    if list(bits) != sorted(set(bits)) or min(sizes, default=1) < 1:
        raise LabkitError(f"bits={list(bits)} must rise, and every size must be at least 1.")
