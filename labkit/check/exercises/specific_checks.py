"""A check proves something when it fails for its own reason only: a baseline, a break, and other breaks beside it."""

from __future__ import annotations

from labkit.check.exercise import Exercise


def reference(runs):
    return [id for id in runs if id != "nothing" and all(runs[broken][id] == (broken == id) for broken in runs)]


task = Exercise(
    lesson="12_gallery",
    reference=reference,
    hints=(
        "Of one check, look at its column: `runs[broken][id]` for every `broken`.",
        "It should be True where `broken == id` and False everywhere else, also for nothing.",
    ),
    praise="Baseline, break and control: what you ask of a check is what one asks of an experiment.",
    source="labkit.viz.gallery_check.noticed, which makes such a table",
)


@task.stub
def specific_checks(runs):
    """Write `specific_checks(runs)`. `runs[broken][id]` says whether the check of paper `id` fails; `broken` is
    "nothing" or the id of the paper whose mechanism is broken. Return the ids whose check passes when nothing is
    broken, fails when its own mechanism is, and passes under every other break; in the order of `runs`.
    """
    return []


def table(**fails):
    """For each break the checks that fail, by their letters."""
    ids = [name for name in fails if name != "nothing"]
    return {broken: {id: id in failing for id in ids} for broken, failing in fails.items()}


@task.cases
def cases(dice):
    for runs in (
        table(nothing="", A="A", B=""),
        table(nothing="", B="B", A="A", C="C"),
        table(nothing="A", A="A", B="B"),
        table(nothing="", A="AB", B="B", C="C"),
        table(nothing="C", D="DC", C="CA", A="AC", B=""),
    ):
        yield (runs,)


@task.mistake(
    "You look at its own break only. A check that always fails would pass for a good one: look at nothing, and at the "
    "other breaks."
)
def own_break_only(runs):
    return [id for id in runs if id != "nothing" and runs[id][id]]


@task.mistake(
    "You forgot the control: a check that also fails when another mechanism is broken does not say which of "
    "them is wrong."
)
def no_control(runs):
    return [id for id in runs if id != "nothing" and runs[id][id] and not runs["nothing"][id]]


@task.mistake("You forgot the baseline: a check has to pass when nothing is broken.")
def no_baseline(runs):
    return [
        id
        for id in runs
        if id != "nothing" and all(runs[broken][id] == (broken == id) for broken in runs if broken != "nothing")
    ]


@task.mistake(
    "You read the row: which checks fail under one break. What a check is worth stands in its column, over all breaks."
)
def row_for_column(runs):
    return [
        id
        for id in runs
        if id != "nothing" and not runs["nothing"][id] and all(runs[id][check] == (check == id) for check in runs[id])
    ]


@task.mistake(
    "You return the checks that never fail. Those prove nothing: each has to fail when its mechanism is broken."
)
def never_fail(runs):
    return [id for id in runs if id != "nothing" and not any(runs[broken][id] for broken in runs)]
