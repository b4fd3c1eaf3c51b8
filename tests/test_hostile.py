"""More than five hundred generated cases of bad input: each ends in a result or in one sentence."""

from __future__ import annotations

import pytest

from tests import hostile


def test_there_are_enough_cases():
    assert sum(count for _, count in hostile.FAMILIES.values()) >= 500


@pytest.mark.parametrize("name", hostile.FAMILIES)
def test_every_case_ends_in_a_result_or_in_a_sentence(name, tmp_path):
    found = hostile.run_family(name, tmp_path)
    assert found.total() >= hostile.FAMILIES[name][1]
    assert found["sentence"] >= 10, "the cases should be hostile"


def test_what_raises_goes_through():
    with pytest.raises(ZeroDivisionError):
        hostile.ending(lambda: 1 / 0)
