"""Bits where they help most: one bit at a time goes to the layer whose error falls most by it."""

from __future__ import annotations

import torch

from labkit.check.exercise import Exercise, uniform
from labkit.quant.sensitivity import greedy_bits

OFFERED = (2, 3, 4, 5, 6)


def reference(errors, total):
    table = torch.tensor([[line[b] for b in OFFERED] for line in errors], dtype=torch.float64)
    return greedy_bits(table, OFFERED, [1] * len(errors), total)


task = Exercise(
    lesson="09_quantization",
    reference=reference,
    parts=tuple(f"number of bits of layer {i}" for i in range(6)),
    hints=(
        "The gain of a layer at b bits is `errors[i][b] - errors[i][b + 1]`; at 6 bits it has none.",
        "`max(range(len(errors)), key=...)` finds the layer; repeat it `total - 2 * len(errors)` times.",
    ),
    praise="As long as each bit more gains less than the one before, no other choice is better.",
    source="labkit.quant.sensitivity.greedy_bits",
)


@task.stub
def spend_bits(errors, total):
    """Some layers deserve more bits than others. `errors[i][b]` is the error of layer i with b bits, for b from 2 to
    6. Write `spend_bits(errors, total)`: a number of bits for each layer. All begin with 2; as long as the sum is below
    `total`, one bit goes to the layer whose error falls most by it. (All layers are equally large.)
    """
    return [2 for _ in errors]


@task.cases
def cases(dice):
    yield [{2: 9.0, 3: 8.0, 4: 7.5, 5: 7.3, 6: 7.2}, {2: 4.0, 3: 1.0, 4: 0.2, 5: 0.1, 6: 0.0}], 6
    yield [{2: 100.0, 3: 60.0, 4: 30.0, 5: 10.0, 6: 1.0}, {2: 3.0, 3: 1.0, 4: 0.5, 5: 0.2, 6: 0.1}], 9
    for layers, total in ((4, 13), (6, 21)):
        size, falls = uniform(dice, layers).tolist(), (0.2 + 0.6 * uniform(dice, layers)).tolist()
        yield [{b: s * f**b for b in OFFERED} for s, f in zip(size, falls, strict=True)], total


def climb(errors, total, worth, last=6):
    """A greedy choice by `worth(line, b)` of the bit after b."""
    bits = [2] * len(errors)
    while sum(bits) < total:
        worths = [worth(line, b) if b < last else float("-inf") for line, b in zip(errors, bits, strict=True)]
        bits[worths.index(max(worths))] += 1
    return bits


@task.mistake(
    "You give the bit to the layer whose error is largest. Ask how far it falls by one bit more: a large error that "
    "hardly falls is a bit wasted."
)
def to_the_largest_error(errors, total):
    return climb(errors, total, lambda line, b: line[b])


@task.mistake(
    "Every gain is worked out at 2 bits and never again, so one layer takes bit after bit. After each bit its next "
    "gain is another."
)
def gains_of_the_start(errors, total):
    return climb(errors, total, lambda line, b: line[2] - line[3])


@task.mistake(
    "You compare how many times smaller an error gets. What adds up in the model is the error itself, so compare "
    "differences, not ratios."
)
def by_ratio(errors, total):
    return climb(errors, total, lambda line, b: line[b] / max(line[b + 1], 1e-9))


@task.mistake("One bit too many is spent: `total` is the sum at the end, so stop when it is reached, not after it.")
def one_too_many(errors, total):
    return climb(errors, total + 1, lambda line, b: line[b] - line[b + 1])


@task.mistake(
    "The bits are dealt in turn, to all alike. That is what the errors are for: some layers hardly gain from a third "
    "bit."
)
def in_turn(errors, total):
    return [2 + (total - 2 * len(errors) + len(errors) - 1 - i) // len(errors) for i in range(len(errors))]


@task.mistake(
    "A layer that has 6 bits asks for a seventh, for which there is no error: it has no gain any more, and others are "
    "next."
)
def beyond_six(errors, total):
    return climb(errors, total, lambda line, b: line[b] - line[b + 1], last=7)
