"""A merged token is the mean of the patches that it stands for, not of the tokens that came; it remembers how many."""

from __future__ import annotations

import torch

from labkit.check.exercise import Exercise, normal
from labkit.evidence import Groups


def merged(x, sizes, home, count):
    groups = Groups(home[None], count, sizes[None])
    return groups.mean(x[None])[0], groups.sizes(sizes[None])[0]


task = Exercise(
    lesson="08_token_merging",
    reference=merged,
    parts=("tokens", "sizes"),
    hints=(
        "`torch.zeros(count).index_add(0, home, sizes)` adds up the sizes of those that share a home.",
        "Add up x times its sizes in the same way, and divide by the new sizes.",
    ),
    praise="Merge in two steps or in one: the mean of the patches is the same.",
    source="labkit.evidence.Groups",
)


@task.stub
def merge_by_size(x, sizes, home, count):
    """Write `merge_by_size(x, sizes, home, count)`: token i of x (n, d) stands for sizes[i] patches and goes into
    the new token home[i]. Return the `count` new tokens (count, d), each the mean of all patches that it stands
    for, and their sizes (count,).
    """
    return torch.zeros(count, x.shape[1]), torch.zeros(count)


@task.cases
def cases(dice):
    yield normal(dice, 3, 2), torch.tensor([1.0, 3.0, 2.0]), torch.tensor([0, 0, 1]), 2
    for n, d, count in ((7, 4, 3), (12, 5, 4)):
        home = torch.cat([torch.arange(count), torch.randint(count, (n - count,), generator=dice)])
        sizes = torch.randint(1, 5, (n,), generator=dice).float()
        yield normal(dice, n, d), sizes, home[torch.randperm(n, generator=dice)], count


def total(values, home, count):
    return torch.zeros(count, *values.shape[1:]).index_add(0, home, values)


@task.mistake(
    "All tokens of a group count alike: a token of three patches should count three times, or it matters in which "
    "block two were merged."
)
def tokens_count_alike(x, sizes, home, count):
    return total(x, home, count) / total(torch.ones(len(x)), home, count)[:, None], total(sizes, home, count)


@task.mistake(
    "The new tokens are sums, not means: divide by the new sizes, or a token of many patches is many times as long."
)
def not_divided(x, sizes, home, count):
    return total(x * sizes[:, None], home, count), total(sizes, home, count)


@task.mistake(
    "Your sizes count the tokens that were joined; they should count the patches, so add up the old sizes. The next "
    "block needs log s of them."
)
def counts_tokens(x, sizes, home, count):
    return merged(x, sizes, home, count)[0], total(torch.ones(len(x)), home, count)


@task.mistake(
    "Of tokens that share a home only the last arrives: `new[home] = x` and `new[home] += x` write each place once. "
    "Use index_add."
)
def last_wins(x, sizes, home, count):
    last = [max(i for i in range(len(x)) if home[i] == group) for group in range(count)]
    return x[last], sizes[last]


@task.mistake(
    "The tokens are right, but they forget: with sizes of 1 the next block hears a merged token once, however many "
    "it stands for."
)
def forgets(x, sizes, home, count):
    return merged(x, sizes, home, count)[0], torch.ones(count)


@task.mistake(
    "You halve again with each token that joins, so that the last counts as much as all before it. Add up first, "
    "divide once."
)
def halved_again(x, sizes, home, count):
    new = [None] * count
    for token, group in zip(x, home.tolist(), strict=True):
        new[group] = token if new[group] is None else (new[group] + token) / 2
    return torch.stack(new), total(sizes, home, count)
