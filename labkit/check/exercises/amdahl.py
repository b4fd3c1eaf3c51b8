"""What a faster part is worth: the rest takes as long as ever, and it is what remains in the limit."""

from __future__ import annotations

import math

from labkit.check.exercise import Exercise


def reference(part, factor):
    return (1 - part) + part / factor


task = Exercise(
    lesson="11_one_budget",
    reference=reference,
    tolerance=1e-9,  # a law, not a measurement
    hints=("The rest takes as long as ever.", "What takes the time t and is twice as fast takes t / 2."),
    praise="However fast the part becomes, the whole never takes less than the rest: 1 - part.",
    source="the law itself; labkit.cost.count gives the share that a part has",
)


@task.stub
def amdahl(part, factor):
    """A part takes the share `part` of the time and becomes `factor` times as fast. Write `amdahl(part, factor)`: the
    time of the whole afterwards, if it was 1 before.
    """
    return 0.0


@task.cases
def cases(dice):
    yield from ((0.5, 2.0), (0.25, 1.0), (1.0, 10.0), (0.07, 4.0), (0.8, math.inf), (0.6, 0.5))


@task.mistake("That is the time of the part alone; the rest is still there, and it is the larger share of most models.")
def part_alone(part, factor):
    return part / factor


@task.mistake(
    "That is how many times as fast the whole becomes; asked is its time, which is one over it. Half of the time is "
    "0.5, not 2."
)
def how_many_times(part, factor):
    return 1 / reference(part, factor)


@task.mistake("You made the rest faster and left the part alone: it is `part` that is divided by the factor.")
def the_rest_is_faster(part, factor):
    return part + (1 - part) / factor


@task.mistake(
    "You made everything faster. Look at a part of a half, twice as fast: its half shrinks, the other does not."
)
def everything(part, factor):
    return 1 / factor


@task.mistake(
    "You took off what the part still takes; what is saved is part - part / factor. With a factor of 1 "
    "nothing is saved."
)
def takes_off_what_is_left(part, factor):
    return 1 - part / factor


@task.mistake("Twice as fast is half of the time: divide the part by the factor in place of multiplying.")
def slower(part, factor):
    return (1 - part) + part * factor
