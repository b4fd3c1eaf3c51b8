"""`python -m tests.hostile [--slow] [FAMILY ...]`: every case, and how many of each family ended how."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.hostile import Impossible
from tests.hostile.families import FAMILIES, SLOW, run


def told(name: str, found: Counter[str]) -> str:
    return f"{name:12} {found.total():4} cases: {found['sentence']:4} sentences, {found['result']:4} results"


def main(words: list[str]) -> int:
    known = FAMILIES | SLOW if "--slow" in words else FAMILIES
    asked = [word for word in words if word != "--slow"] or list(known)
    total: Counter[str] = Counter()
    for name in asked:
        try:
            with tempfile.TemporaryDirectory() as folder:
                found = run(known[name], Path(folder))
        except Impossible as reason:
            print(f"{name:12} left out: {reason}", flush=True)
            continue
        print(told(name, found), flush=True)
        total += found
    print(told("all", total))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
