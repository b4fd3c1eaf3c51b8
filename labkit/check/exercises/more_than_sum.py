"""Do losses add up? What a stack of dials loses beyond the sum of what each of them loses alone."""

from __future__ import annotations

from labkit.check.exercise import Exercise, uniform
from labkit.intervals import paired_difference


def reference(full, alone, together):
    """Paired, image by image; the mean of the pairs is the first of three numbers."""
    lost = [paired_difference(full, other)[0] for other in (together, *alone)]
    return 100 * (lost[0] - sum(lost[1:]))


task = Exercise(
    lesson="11_one_budget",
    reference=reference,
    tolerance=1e-6,
    hints=(
        "What a model loses is `full.double().mean() - other.double().mean()`.",
        "The loss of the stack minus the sum of the losses, times 100.",
    ),
    praise="Zero would mean that the dials do not know of each other. Which interval does this number have?",
    source="labkit.intervals.paired_difference, of the stack and of each dial",
)


@task.stub
def more_than_sum(full, alone, together):
    """Write `more_than_sum(full, alone, together)`: `full` and `together` are bool tensors, right or wrong for each
    image, of the plain model and of the stack; `alone` is a list of such tensors, one for each dial. How many points
    (per cent) does the stack lose beyond the sum of what the dials lose?
    """
    return 0.0


@task.cases
def cases(dice):
    for images, chances in ((10, (0.9, 0.5)), (40, (0.9, 0.8, 0.6)), (200, (0.9, 0.95, 0.8, 0.5))):
        full, *alone, together = (uniform(dice, images) < chance for chance in (0.97, *chances))
        yield full, alone, together


def lost(full, other):
    return (full.double().mean() - other.double().mean()).item()


@task.mistake("That is a share; asked are points, that is per cent: 100 times as much.")
def a_share(full, alone, together):
    return reference(full, alone, together) / 100


@task.mistake("The sign is the other way round: a stack that loses more than the sum should come out above zero.")
def other_sign(full, alone, together):
    return -reference(full, alone, together)


@task.mistake("That is what the stack loses in all; take off what its dials lose alone.")
def all_of_the_loss(full, alone, together):
    return 100 * lost(full, together)


@task.mistake("You took off the mean of what the dials lose; asked is beyond their sum.")
def beyond_the_mean(full, alone, together):
    return 100 * (lost(full, together) - sum(lost(full, other) for other in alone) / len(alone))


@task.mistake(
    "You compare the stack with the dial that loses most. If losses added up, the stack would lose what all of "
    "them lose."
)
def beyond_the_worst(full, alone, together):
    return 100 * (lost(full, together) - max(lost(full, other) for other in alone))


@task.mistake(
    "You compare numbers of right answers, not losses: with k dials the plain model's share belongs in k times, and "
    "once for the stack."
)
def right_for_lost(full, alone, together):
    return 100 * (sum(other.double().mean() for other in alone) - together.double().mean()).item()


@task.mistake(
    "You counted images; as points they are divided by how many images there are, so that 40 and 200 can be compared."
)
def counted_images(full, alone, together):
    return reference(full, alone, together) * len(full) / 100
