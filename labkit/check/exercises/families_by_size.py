"""Which families are largest: count, and put into an order in which equals always stand alike."""

from __future__ import annotations

from collections import Counter

from labkit.check.exercise import Exercise
from labkit.check.exercises.papers_with import paper
from labkit.viz.gallery_map import family_order

task = Exercise(
    lesson="12_gallery",
    reference=family_order,
    hints=(
        "`Counter(row.family for row in rows)` counts the papers of each family.",
        "`sorted(counts, key=lambda family: (-counts[family], family))`: a pair as the key, the size with a minus.",
    ),
    praise="The rows of the map stand in this order. A second key makes it the same whatever order the papers come in.",
)


@task.stub
def families_by_size(rows):
    """Write `families_by_size(rows)`: the names of the families, the one with most papers first; of equally large ones
    in the order of the alphabet.
    """
    return []


@task.cases
def cases(dice):
    for families in (
        "mixer bits bits",
        "survey mixer attention mixer",
        "patching mixer mixer attention patching survey mixer bits",
        "bits attention attention mixer mixer bits bits adaptation",
    ):
        yield ([paper(f"P{i}", family=family) for i, family in enumerate(families.split())],)


def counts(rows):
    return Counter(row.family for row in rows)


@task.mistake("The smallest family comes first in yours; asked is the largest first: put a minus before the count.")
def smallest_first(rows):
    return sorted(counts(rows), key=lambda family: (counts(rows)[family], family))


@task.mistake("Equally large families stand in the order in which they were met. Sort by size and by name, as a pair.")
def as_they_were_met(rows):
    return [family for family, _ in counts(rows).most_common()]


@task.mistake(
    "`reverse=True` turns the alphabet round as well: equally large families come from z to a. Put a minus before the "
    "count instead."
)
def alphabet_reversed(rows):
    return sorted(counts(rows), key=lambda family: (counts(rows)[family], family), reverse=True)


@task.mistake("That is the alphabet, whatever the sizes: count the papers of each family, and sort by that first.")
def by_the_alphabet(rows):
    return sorted(counts(rows))


@task.mistake("You return pairs with the counts; asked are the names alone.")
def with_counts(rows):
    return [(family, counts(rows)[family]) for family in family_order(rows)]


@task.mistake("A family with several papers stands there several times; each should be named once.")
def one_for_each_paper(rows):
    return [family for family in family_order(rows) for _ in range(counts(rows)[family])]
