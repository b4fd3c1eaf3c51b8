"""The table of papers on the command line.

python -m labkit.papers                  how many papers of each family work, apply, are context or are open
python -m labkit.papers build            write data/papers.csv anew (in a clone)
python -m labkit.papers build --check    only say whether it is up to date; exit code 1 when it is not
"""

from __future__ import annotations

import argparse
import sys

from labkit.errors import LabkitError
from labkit.papers import build, rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m labkit.papers", description="the table of papers")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("count", help="papers by family and status (the default)")
    making = commands.add_parser("build", help="write data/papers.csv from tests, docstrings and lessons")
    making.add_argument("--check", action="store_true", help="write nothing; exit with 1 when the table is stale")
    asked = parser.parse_args(arguments)
    try:
        if asked.command != "build":
            print(build.counts(rows()))
        elif not asked.check:
            print(f"wrote {build.write(build.checkout())}")
        elif problem := build.stale(build.checkout()):
            print(problem, file=sys.stderr)
            return 1
    except LabkitError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
