"""Hundreds of cases of bad input, of full disks and of Ctrl-C: each ends in a result or in one sentence."""

from __future__ import annotations

import os
import time

import pytest

from labkit.errors import LabkitError
from tests import hostile
from tests.hostile.families import FAMILIES, run
from tests.hostile.rights import like_anybody


def test_there_are_enough_cases():
    assert sum(family.many for family in FAMILIES.values()) >= 800


@pytest.mark.parametrize("name", FAMILIES)
def test_every_case_ends_in_a_result_or_in_a_sentence(name, tmp_path):
    family = FAMILIES[name]
    try:
        found = run(family, tmp_path)
    except hostile.Impossible as reason:
        pytest.skip(str(reason))
    assert found.total() >= family.many
    assert found["sentence"] >= family.hostile, "the cases should be hostile"


def test_what_raises_goes_through():
    with pytest.raises(ZeroDivisionError):
        hostile.ending(lambda: 1 / 0)


@pytest.mark.parametrize("said", ["no", "Traceback (most recent call last): and so on", "one line\nand another"])
def test_what_is_no_clear_sentence_fails(said):
    def case():
        raise LabkitError(said)

    with pytest.raises(AssertionError):
        hostile.ending(case)


def test_a_hang_is_not_taken_for_a_broken_file():
    def case():
        try:
            time.sleep(10)
        except Exception:
            raise LabkitError("This file cannot be read.") from None

    with pytest.raises(hostile.Hang, match="not done after 1 s"):
        hostile.ending(case, seconds=1)


def test_root_is_kept_out_as_well(tmp_path):
    (tmp_path / "locked").touch(0)
    try:
        with like_anybody(), pytest.raises(PermissionError):
            (tmp_path / "locked").read_text()
    except hostile.Impossible as reason:
        pytest.skip(str(reason))
    assert os.geteuid() or (tmp_path / "locked").read_text() == ""
