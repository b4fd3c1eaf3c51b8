"""Rounding to a grid: a step, a whole zero point, and codes that are clipped before they are turned back."""

from __future__ import annotations

import torch

from labkit.check.exercise import Exercise, normal, uniform
from labkit.quant.grids import Uniform

task = Exercise(
    lesson="09_quantization",
    reference=lambda x, low, high, bits: Uniform.of(low, high, bits).round(x),
    axes=("row", "column"),
    hints=(
        "zero = round(−low / step) is the code of 0.",
        "Clip the codes with `clamp(0, 2**bits - 1)` before you turn them back.",
    ),
    praise="Every other grid of this lesson is these three lines with other levels.",
    source="labkit.quant.grids.Uniform",
)


@task.stub
def round_to_levels(x, low, high, bits):
    """Write `round_to_levels(x, low, high, bits)`: each number of x as the nearest of 2ᵇ evenly spaced levels, where
    the step is (high − low) / (2ᵇ − 1), 0 is a level, and codes go from 0 to 2ᵇ − 1. `low` ≤ 0 ≤ `high` are numbers.
    """
    return torch.zeros_like(x)


@task.cases
def cases(dice):
    yield torch.tensor([0.0, 0.3, -0.6, 2.0, 5.0, -4.0]), -2.1, 3.3, 3
    yield 3 * normal(dice, 2, 5), -0.7, 5.0, 4
    yield 2 * normal(dice, 3, 7), -3.1, 0.3, 2
    yield uniform(dice, 4, 6) * 1.2, 0.0, 1.0, 3


def step_of(low, high, bits):
    return (high - low) / (2**bits - 1)


@task.mistake(
    "0 does not stay 0: your levels begin at `low`, wherever that is. With a whole zero point 0 is a level, and a "
    "masked token does not come back as noise."
)
def from_low(x, low, high, bits):
    step = step_of(low, high, bits)
    return ((x - low) / step).round().clamp(0, 2**bits - 1) * step + low


@task.mistake(
    "You never clip: numbers beyond the last level get codes that 2ᵇ codes do not have. Count the different values."
)
def not_clipped(x, low, high, bits):
    step = step_of(low, high, bits)
    return (x / step).round() * step


@task.mistake("Your step is too small: 2ᵇ levels have 2ᵇ − 1 steps between them, as five fence posts have four gaps.")
def a_step_too_many(x, low, high, bits):
    step = (high - low) / 2**bits
    zero = round(-low / step)
    return (((x / step).round() + zero).clamp(0, 2**bits - 1) - zero) * step


@task.mistake("Those are the codes, and they are right. Take `zero` off again and multiply by the step.")
def codes_alone(x, low, high, bits):
    step = step_of(low, high, bits)
    return ((x / step).round() + round(-low / step)).clamp(0, 2**bits - 1)


@task.mistake("You cut off instead of rounding: the error is up to a whole step, and always in the same direction.")
def floored(x, low, high, bits):
    step = step_of(low, high, bits)
    zero = round(-low / step)
    return (((x / step).floor() + zero).clamp(0, 2**bits - 1) - zero) * step


@task.mistake(
    "Negative numbers have become 0: add the zero point before you clip from 0 to 2ᵇ − 1, and take it off behind."
)
def clipped_without_zero(x, low, high, bits):
    step = step_of(low, high, bits)
    return (x / step).round().clamp(0, 2**bits - 1) * step
