"""`make bench`: runs the benches, prints a table and a verdict for each, keeps the numbers in data/results.

    python bench/run.py [--quick] [vit] [imports] [data] [field]

A bar that is missed is tried once more, as the machine may have been busy; missed twice, the exit code is 1. The
field takes more than half an hour and is run once. With --quick there are fewer rounds, nothing is tried twice and
nothing is kept; otherwise bench/RESULTS.md is written anew from what is kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import field, report
from bench.outcome import Outcome
from labkit import results

NAMES = ("vit", "imports", "data", "field")


def best_of_two(bench: Callable[[bool], Outcome]) -> Outcome:
    first = bench(False)
    if first.met:
        return first
    print(f"{first}\nOnce more, in case the machine was busy.\n", flush=True)
    return bench(False)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What labkit costs on this machine.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(NAMES)}; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, nothing kept")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"there is no bench {', '.join(sorted(unknown))}; there is {', '.join(NAMES)}")
    missed = []
    for name in options.names or NAMES:
        bench = import_module(f"bench.{name}").bench
        outcome = bench(options.quick) if options.quick or name == "field" else best_of_two(bench)
        print(outcome, flush=True)
        if not options.quick:
            results.save(
                f"bench-{name}",
                outcome.values | {"bars": outcome.bars},
                command=f"python bench/run.py {name}",
                seed=0,
                interval="95 % bootstrap of the median",
            )
            if name == "field":
                field.forget()
        missed += [bar for bar, met in outcome.bars.items() if not met]
    if not options.quick and report.FIELD in results.names():
        report.write()
    print(f"{len(missed)} missed: {'; '.join(missed)}" if missed else "Every bar is met.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
