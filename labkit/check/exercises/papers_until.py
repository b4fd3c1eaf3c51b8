"""How a shelf fills: the running sum of how many papers came in each year."""

from __future__ import annotations

from collections import Counter

from labkit.check.exercise import Exercise
from labkit.check.exercises.papers_with import paper


def reference(rows):
    counts = counted(rows)
    return {year: sum(counts[other] for other in counts if other <= year) for year in sorted(counts)}


def counted(rows):
    return Counter(row.year for row in rows if row.year)


task = Exercise(
    lesson="12_gallery",
    reference=reference,
    hints=(
        "Count the years first: `Counter(row.year for row in rows if row.year)`.",
        "Go through the sorted years and add up.",
    ),
    praise="Where the steps are largest, the shelf grew fastest; the last number is all papers that have a year.",
    source="labkit.papers.rows, whose years are added up",
)


@task.stub
def papers_until(rows):
    """Write `papers_until(rows)`: a dictionary from each year to how many papers are of that year or earlier, the years
    rising. Papers without a year (None) are left out, and so are years without a paper.
    """
    return {}


@task.cases
def cases(dice):
    for years in (
        (2021, 2020, 2021),
        (2023, 2023, 2020, 2021, 2023),
        (2022, None, 2019, 2022, None, 2024, 2020),
    ):
        yield ([paper(f"P{i}", year=year) for i, year in enumerate(years)],)


@task.mistake("These are the papers of each year; add those of all years before.")
def of_each_year(rows):
    return {year: counted(rows)[year] for year in sorted(counted(rows))}


@task.mistake("The numbers are right, but the years stand as they were met in the rows; asked are rising years.")
def as_they_were_met(rows):
    return {year: reference(rows)[year] for year in counted(rows)}


@task.mistake("You leave out the year itself: of that year or earlier includes it, so that the last number is all.")
def only_earlier(rows):
    return {year: total - counted(rows)[year] for year, total in reference(rows).items()}


@task.mistake("You count from a year on, so your numbers fall; asked is until that year.")
def from_then_on(rows):
    counts = counted(rows)
    return {year: sum(counts[other] for other in counts if other >= year) for year in sorted(counts)}


@task.mistake(
    "Papers without a year are counted in yours, as if they were older than all others. Nobody knows; leave them out."
)
def none_is_oldest(rows):
    return {year: total + sum(row.year is None for row in rows) for year, total in reference(rows).items()}


@task.mistake("None cannot be sorted among the years: leave the papers without a year out before you sort.")
def sorts_none(rows):
    counts, total, sums = Counter(row.year for row in rows), 0, {}
    for year in sorted(counts):
        total += counts[year]
        sums[year] = total
    return sums


@task.mistake("You also give years in which no paper came; asked are only those of the rows.")
def every_year_between(rows):
    counts = counted(rows)
    return {
        year: sum(counts[other] for other in counts if other <= year) for year in range(min(counts), max(counts) + 1)
    }
