"""Attention that is rounded away: a probability below half a step becomes 0."""

from __future__ import annotations

from labkit.check.exercise import Exercise, normal
from labkit.quant.grids import Uniform


def reference(attn, bits):
    return (Uniform.of(0.0, attn.max(), bits).round(attn) == 0).double().mean().item()


task = Exercise(
    lesson="10_quantizing_a_vit",
    reference=reference,
    hints=("2^bits levels have 2^bits − 1 steps between them.", "What is below half a step is rounded to 0."),
    praise="You can tell before rounding whether a softmax will survive it.",
    source="labkit.quant.grids.Uniform",
)


@task.stub
def silent_share(attn, bits):
    """Write `silent_share(attn, bits)`: the share of the probabilities that become 0 on a grid of 2^bits levels from 0
    to the largest of them all.
    """
    return 0.0


@task.cases
def cases(dice):
    for shape, sharp, bits in (((2, 6), 1, 2), ((1, 3, 5, 17), 3, 3), ((2, 2, 9, 33), 2, 4)):
        yield (sharp * normal(dice, *shape)).softmax(dim=-1), bits


def share_below(attn, limit):
    return (attn < limit).double().mean().item()


@task.mistake(
    "You count what is below a whole step. Rounding goes to the nearest level, so from half a step on a probability "
    "goes up to 1 step."
)
def below_a_step(attn, bits):
    return share_below(attn, attn.max() / (2**bits - 1))


@task.mistake("Your step is a bit too small: 2^bits levels from 0 to the largest have 2^bits − 1 steps between them.")
def a_step_too_many(attn, bits):
    return share_below(attn, attn.max() / 2**bits / 2)


@task.mistake(
    "Your grid reaches to 1, though no probability does: the range ends at the largest number that is there, and the "
    "step gets finer."
)
def reaching_to_one(attn, bits):
    return share_below(attn, 0.5 / (2**bits - 1))


@task.mistake("That is the share that survives; asked is the share that becomes 0. The two sum to 1.")
def survivors(attn, bits):
    return 1 - reference(attn, bits)


@task.mistake(
    "You made a grid for each row. There is one for all, made for the largest probability of any row; the flat rows "
    "suffer for it."
)
def a_grid_for_each_row(attn, bits):
    return share_below(attn, attn.amax(dim=-1, keepdim=True) / (2**bits - 1) / 2)


@task.mistake("That is how many become 0; divide by how many there are, with `mean` in place of `sum`.")
def a_count(attn, bits):
    return reference(attn, bits) * attn.numel()
