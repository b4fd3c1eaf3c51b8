"""The command line of a bench whose parts are measured, kept and printed one by one."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from labkit import results

# The name it is kept under, what measures it, what puts it into words, and what its ranges are.
Part = tuple[str, Callable[[], Any], Callable[[Any], str], str]


def main(
    script: str, about: str, parts: Mapping[str, Part], arguments: list[str] | None, under: str | None = None
) -> int:
    """What a part measures is kept as it is, or, where it is no dict of words, `under` a word."""
    parser = argparse.ArgumentParser(description=about)
    for part in parts:
        parser.add_argument(f"--{part}", action="store_true", help=f"measure {part} and keep it")
    parser.add_argument("--run", action="store_true", help="measure everything and keep it")
    parser.add_argument("--summary", action="store_true", help="print what is kept")
    options = parser.parse_args(arguments)
    for part, (name, measure, _, interval) in parts.items():
        if options.run or getattr(options, part):
            found = measure() if under is None else {under: measure()}
            results.save(name, found, command=f"python {script} --{part}", seed=0, interval=interval)
    for part, (name, _, summary, _) in parts.items():
        if name not in results.names():
            print(f"The part {part} is not measured yet: python {script} --{part}\n")
            continue
        stored = results.load(name)
        print(f"{summary(stored.values if under is None else stored[under])}\n\n{stored.caption()}\n")
    return 0
