"""A budget and a floor: the fastest choice that keeps both, and what to say when none does."""

from __future__ import annotations

from labkit.check.exercise import Exercise
from labkit.viz.budget_dial import cheapest

task = Exercise(
    lesson="11_one_budget",
    reference=cheapest,
    hints=(
        "First filter, then take a `min`.",
        "`min(inside, key=lambda name: (points[name][0], -points[name][1]), default=None)`",
    ),
    praise="Fastest first, and of equals the better one: a pair as the key of `min` says both.",
)


@task.stub
def cheapest_inside(points, budget, floor):
    """Write `cheapest_inside(points, budget, floor)`: points is a dict, name → (time, right answers). Return the name
    of the fastest one whose time is at most the budget and whose right answers are at least the floor; of equally fast
    ones the better; `None` if there is none.
    """
    return "nobody"


@task.cases
def cases(dice):
    two = {"a": (0.6, 0.9), "b": (0.3, 0.8)}
    offers = {"a": (1.0, 0.97), "b": (0.4, 0.93), "c": (0.4, 0.95), "d": (0.2, 0.85), "e": (0.5, 0.96)}
    yield two, 1.0, 0.5
    yield two, 0.2, 0.5
    for limits in ((0.5, 0.93), (0.5, 0.96), (0.5, 0.8), (0.3, 0.9), (2.0, 0.97), (0.45, 0.8)):
        yield offers, *limits


def inside(points, budget, floor):
    return [name for name, (took, right) in points.items() if took <= budget and right >= floor]


@task.mistake("Of two that are equally fast you take the first; the better one should win.")
def first_of_equals(points, budget, floor):
    return min(inside(points, budget, floor), key=lambda name: points[name][0], default=None)


@task.mistake("You return the best one inside; asked is the fastest, since above the floor all are good enough.")
def best_inside(points, budget, floor):
    return max(inside(points, budget, floor), key=lambda name: (points[name][1], -points[name][0]), default=None)


@task.mistake("You looked at the budget only. The fastest is worth nothing when it is below the floor.")
def no_floor(points, budget, floor):
    return cheapest(points, budget, 0)


@task.mistake(
    "You looked at the floor only, not at the budget. Where the fastest good one takes too long, the answer is None."
)
def no_budget(points, budget, floor):
    return cheapest(points, float("inf"), floor)


@task.mistake(
    "Where none is inside, the `min` of an empty list raises an error: give it `default=None`, the honest answer."
)
def min_of_nothing(points, budget, floor):
    return min(inside(points, budget, floor), key=lambda name: (points[name][0], -points[name][1]))


@task.mistake(
    "You threw out those that stand on a line: at most the budget and at least the floor are inside, so <= and >=."
)
def without_the_lines(points, budget, floor):
    within = {name: point for name, point in points.items() if point[0] < budget and point[1] > floor}
    return cheapest(within, budget, floor)
