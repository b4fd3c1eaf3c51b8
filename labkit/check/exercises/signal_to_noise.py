"""Decibels: the power of what should come out over the power of what is wrong with it."""

from __future__ import annotations

import math

from labkit.check.exercise import Exercise, normal
from labkit.quant.inspect import sqnr_db

task = Exercise(
    lesson="10_quantizing_a_vit",
    reference=lambda wanted, got: sqnr_db(wanted, got - wanted),
    hints=(
        "The noise is `got - wanted`; the power of a tensor is the sum of its squares.",
        "`10 * torch.log10(signal / noise)`: powers have a factor of 10, sizes one of 20.",
    ),
    praise="One bit more is about 6 of these, for a number, a tensor or a whole model.",
    source="labkit.quant.inspect.sqnr_db",
)


@task.stub
def signal_to_noise(wanted, got):
    """Write `signal_to_noise(wanted, got)`: by how many decibels the power of `wanted` lies above the power of its
    error, as one number. The power of a tensor is the sum of its squares, and a factor of 10 in power is 10 decibels.
    """
    return 0.0


@task.cases
def cases(dice):
    for shape, noise in (((4,), 0.1), ((3, 5), 0.01), ((2, 4, 6), 2.0)):
        wanted = normal(dice, *shape)
        yield wanted, wanted + noise * normal(dice, *shape)


def power(x):
    return x.double().square().sum().item()


@task.mistake(
    "It is twice as large as it should be: 20 · log₁₀ is for a ratio of sizes. You have squared already, so the factor "
    "is 10."
)
def twenty(wanted, got):
    return 20 * math.log10(power(wanted) / power(got - wanted))


@task.mistake(
    "It is half as large as it should be: you compare sizes (norms), and decibels compare powers. Leave the root out, "
    "or take 20 · log₁₀."
)
def of_norms(wanted, got):
    return 10 * math.log10((power(wanted) / power(got - wanted)) ** 0.5)


@task.mistake("The sign is turned round: that is the noise over the signal. A good result has many decibels.")
def noise_over_signal(wanted, got):
    return 10 * math.log10(power(got - wanted) / power(wanted))


@task.mistake("You used the natural logarithm; decibels count factors of ten. Your result is 2.3 times too large.")
def natural(wanted, got):
    return 10 * math.log(power(wanted) / power(got - wanted))


@task.mistake(
    "That is the ratio itself, and it grows without end. In decibels a factor becomes a sum: 10 · log₁₀ of it, so that "
    "100 times is 20."
)
def no_logarithm(wanted, got):
    return power(wanted) / power(got - wanted)


@task.mistake(
    "That is the mean of a ratio for each number, where a number near zero speaks as loud as a large one. Sum up the "
    "squares first, then divide once."
)
def number_by_number(wanted, got):
    return (10 * (wanted.double().square() / (got - wanted).double().square()).log10()).mean().item()
