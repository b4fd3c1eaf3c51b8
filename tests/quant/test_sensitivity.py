"""Greedy bits: within the budget, as good as trying all where errors are convex, and all bits where there is room."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch

from labkit.errors import LabkitError
from labkit.quant.sensitivity import error_table, greedy_bits

BITS = (3, 4, 5, 6)


def convex(layers: int, seed: int, choices: int = 4) -> torch.Tensor:
    """Errors that fall ever more slowly: sums, from the right, of drops in falling order."""
    draw = torch.Generator().manual_seed(seed)
    drops = torch.rand(layers, choices, generator=draw, dtype=torch.float64).sort(dim=1, descending=True).values
    return drops.flip(1).cumsum(dim=1).flip(1)


def total(errors: torch.Tensor, bits: tuple[int, ...], chosen) -> float:
    return sum(errors[i, bits.index(b)].item() for i, b in enumerate(chosen))


def memory(chosen, sizes) -> int:
    return sum(b * s for b, s in zip(chosen, sizes, strict=True))


def brute_force(errors, bits, sizes, budget) -> float:
    fitting = (c for c in product(bits, repeat=len(sizes)) if memory(c, sizes) <= budget)
    return min(total(errors, bits, chosen) for chosen in fitting)


@pytest.mark.paper("S070")
@pytest.mark.parametrize("layers", [1, 3, 4])
def test_for_equal_sizes_and_convex_errors_nothing_is_better(layers):
    for seed in range(25):
        errors, sizes = convex(layers, seed), layers * [10]
        for budget in range(30 * layers, 60 * layers + 10, 5 + seed % 4):
            chosen = greedy_bits(errors, BITS, sizes, budget)
            assert 10 * sum(chosen) <= budget
            assert total(errors, BITS, chosen) == pytest.approx(brute_force(errors, BITS, sizes, budget), abs=1e-12)


@pytest.mark.paper("S070")
def test_with_unequal_sizes_the_budget_is_met_and_it_is_never_worse_than_even_bits():
    worst = 0.0
    for seed in range(60):
        errors, sizes = convex(4, seed), [3 + seed % 7, 10, 25, 4]
        for budget in (3 * sum(sizes), 3.7 * sum(sizes), 5 * sum(sizes)):
            chosen = greedy_bits(errors, BITS, sizes, budget)
            assert memory(chosen, sizes) <= budget
            best, even = brute_force(errors, BITS, sizes, budget), total(errors, BITS, 4 * [int(budget / sum(sizes))])
            ours = total(errors, BITS, chosen)
            assert best - 1e-12 <= ours <= even + 1e-12
            worst = max(worst, ours / best)
    assert 1.05 < worst < 1.2  # it is not always the best


@pytest.mark.paper("S070")
def test_more_budget_is_never_worse_and_enough_gives_all_bits():
    errors, sizes = convex(5, 0), [7, 7, 7, 7, 7]
    results = [total(errors, BITS, greedy_bits(errors, BITS, sizes, budget)) for budget in range(105, 230, 3)]
    assert all(b <= a for a, b in pairwise(results)) and results[-1] < results[0]
    assert greedy_bits(errors, BITS, sizes, 6 * 35) == greedy_bits(errors, BITS, sizes, 1e9) == 5 * [6]
    assert greedy_bits(errors, BITS, sizes, 3 * 35) == 5 * [3]


def test_a_layer_that_profits_only_from_its_second_step_is_not_missed():
    errors = torch.tensor([[1.0, 1.0, 0.0], [0.2, 0.1, 0.0]])
    assert greedy_bits(errors, (2, 4, 6), [1, 1], 8) == [6, 2]


def test_a_small_layer_comes_before_a_large_one_and_bits_that_do_not_help_are_not_spent():
    errors = torch.tensor([[1.0, 0.5], [1.0, 0.5]])
    assert greedy_bits(errors, (4, 8), [100, 1], 4 * 101 + 4) == [4, 8]
    assert greedy_bits(torch.tensor([[1.0, 1.5], [1.0, 1.0]]), (4, 8), [1, 1], 100) == [4, 4]


def test_the_table_asks_for_every_layer_at_all_bits():
    assert error_table(lambda layer, b: 10 * layer + b, 3, (2, 4)).tolist() == [[2, 4], [12, 14], [22, 24]]


@pytest.mark.paper("S070")
def test_on_rounded_weights_mixed_bits_beat_even_ones():
    draw = torch.Generator().manual_seed(0)
    weights = [scale * torch.randn(40, 40, generator=draw, dtype=torch.float64) for scale in (0.1, 0.3, 1, 3)]

    def error_of(layer: int, bits: int) -> float:
        step = weights[layer].abs().max() / (2 ** (bits - 1) - 1)
        return ((weights[layer] / step).round() * step - weights[layer]).square().sum().item()

    errors = error_table(error_of, 4, BITS)
    chosen = greedy_bits(errors, BITS, 4 * [1600], 4 * 6400)
    assert sum(chosen) == 16 and chosen == sorted(chosen) and chosen[0] < chosen[3]
    assert total(errors, BITS, chosen) < 0.5 * total(errors, BITS, 4 * [4])


def test_what_cannot_be_chosen_is_a_sentence():
    errors = convex(2, 0)
    for call, sentence in (
        (lambda: greedy_bits(errors, BITS, [10, 10], 59), "need 60 bits of memory, and the budget is 59"),
        (lambda: greedy_bits(errors, BITS, [10], 99), r"expected \(1, 4\)"),
        (lambda: greedy_bits(errors[:, :0], (), [10, 10], 99), "at least one choice"),
        (lambda: greedy_bits(errors * torch.nan, BITS, [10, 10], 99), "An error is NaN"),
        (lambda: greedy_bits(errors, (3, 5, 4, 6), [10, 10], 99), "must rise"),
        (lambda: greedy_bits(errors, BITS, [10, 0], 99), "at least 1"),
    ):
        with pytest.raises(LabkitError, match=sentence):
            call()
    assert greedy_bits(torch.zeros(0, 4), BITS, [], 0) == []
