"""All families of cases by name, and how the cases of one end."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from labkit import zoo
from tests.hostile import SECONDS, Cases, ending
from tests.hostile.disks import disks
from tests.hostile.images import images
from tests.hostile.rights import rights
from tests.hostile.stops import real_stops, stops
from tests.hostile.subjects import pages, subjects
from tests.hostile.tables import audits, compare, tables
from tests.hostile.told import lessons, names, outs, parameters
from tests.hostile.weights import weights


class Family(NamedTuple):
    make: Callable[[Path, int], Cases]  # from a folder of its own, and how many
    many: int  # cases, at the least
    seconds: int = SECONDS  # that a case may take before it counts as a hang
    hostile: int = 10  # cases that end in a sentence, at the least


FAMILIES = {
    "images": Family(images, 60),
    "weights": Family(weights, 72),
    "names": Family(names, 60),
    "parameters": Family(parameters, 160),
    "lessons": Family(lessons, 120),
    "outs": Family(outs, 60),
    "tables": Family(tables, 60),
    "audits": Family(audits, 80),
    "compare": Family(compare, 60),
    "subjects": Family(subjects, 40, hostile=0),
    "pages": Family(pages, 12, hostile=0),
    "rights": Family(rights, 30),
    "disks": Family(disks, 8, hostile=6),
    "stops": Family(stops, 9, hostile=9),
}
SLOW = {"real stops": Family(real_stops, 9, seconds=300, hostile=9)}


def run(family: Family, folder: Path) -> Counter[str]:
    """How the cases ended. Hundreds of them share a model: it is built once."""
    shared = mock.patch.object(zoo, "load", functools.cache(zoo.load))
    with shared, contextlib.closing(family.make(folder, family.many)) as cases:
        return Counter(ending(case, family.seconds) for case in cases)
