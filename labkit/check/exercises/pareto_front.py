"""Which choices are worth a look: those that no other one beats in time and in right answers at once."""

from __future__ import annotations

from labkit.check.exercise import Exercise
from labkit.viz.charts import Point, front


def reference(points):
    return front([Point(*point) for point in points])


task = Exercise(
    lesson="11_one_budget",
    reference=reference,
    hints=(
        "For a point p, look for any other q with `q[0] <= p[0]` and `q[1] >= p[1]`.",
        "Two equal points do not beat each other: `q != p`.",
    ),
    praise="Whoever chooses a point that is not on the front gives something away for nothing.",
    source="labkit.viz.charts.front",
)


@task.stub
def pareto_front(points):
    """Write `pareto_front(points)`: points are pairs (time, right answers); for each a bool: is there no other point
    that is at least as fast and at least as good, and better in one of the two?
    """
    return [False for _ in points]


@task.cases
def cases(dice):
    for points in (
        [(1.0, 0.9), (0.5, 0.8)],
        [(0.4, 0.8), (0.4, 0.8), (0.5, 0.7)],
        [(0.5, 0.9), (0.5, 0.8), (0.7, 0.9)],
        [(1.0, 0.97), (0.5, 0.97), (0.5, 0.90), (0.2, 0.85), (0.3, 0.80), (0.2, 0.85), (0.9, 0.98)],
        [(0.9, 0.6), (0.3, 0.7), (0.6, 0.8), (0.1, 0.5), (0.7, 0.75), (1.0, 0.8)],
    ):
        yield (points,)


def unbeaten(points, beats):
    return [not any(beats(q, p) for q in points) for p in points]


@task.mistake(
    "Two equal points beat each other in yours, so both are gone. At least as good is not enough: q has to be better "
    "in one of the two."
)
def equals_beat(points):
    return [
        not any(q[0] <= p[0] and q[1] >= p[1] for j, q in enumerate(points) if i != j) for i, p in enumerate(points)
    ]


@task.mistake(
    "You ask q to be better in both. One that is equal in one and better in the other beats p as well: "
    "nobody would take p."
)
def better_in_both(points):
    return unbeaten(points, lambda q, p: q[0] < p[0] and q[1] > p[1])


@task.mistake("You ask for more time, as if it were a gain: q beats p when its time is no longer, `q[0] <= p[0]`.")
def time_is_a_gain(points):
    return unbeaten(points, lambda q, p: q[0] >= p[0] and q[1] >= p[1] and q != p)


@task.mistake(
    "Being better in one of the two does not beat p, it only lies elsewhere: q has to be no worse in the other one, "
    "too."
)
def better_in_one(points):
    return unbeaten(points, lambda q, p: q[0] < p[0] or q[1] > p[1])


@task.mistake(
    "You go through the points as they stand in the list and keep each new record. That is the front only if they are "
    "sorted by time."
)
def records_unsorted(points):
    best, kept = float("-inf"), []
    for _, right in points:
        kept.append(right > best)
        best = max(best, right)
    return kept


@task.mistake("You marked the points that are beaten; asked are the others, those that nobody beats.")
def the_beaten(points):
    return [not ahead for ahead in reference(points)]
