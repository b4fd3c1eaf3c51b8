"""The `labkit` command: `doctor`, `report`, `models`, `version`. Each imports what it needs when it runs."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import NoReturn

from labkit.errors import LabkitError, closest


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line like any other error of labkit: in one line."""

    def error(self, message: str) -> NoReturn:
        if choice := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            name, known = choice[1], re.findall(r"[\w-]+", choice[2])
            raise LabkitError(f'There is no "{self.prog} {name}".{closest(name, known)} Known: {", ".join(known)}.')
        raise LabkitError(f"{message[0].upper()}{message[1:]}. See: {self.prog} --help")


def doctor(args: argparse.Namespace) -> int:
    from labkit import doctor

    rows = doctor.examine()
    print(json.dumps([vars(row) for row in rows], indent=2) if args.json else doctor.table(rows))
    return 0 if doctor.healthy(rows) else 1


def pairs(told: list[str]) -> dict[str, str]:
    """The values of `-p name=value`, as typed."""
    values = {}
    for pair in told:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise LabkitError(f'-p takes name=value, as in -p seed=1; "{pair}" is not of that form.')
        values[name] = value
    return values


def lesson(args: argparse.Namespace) -> int:
    from labkit import report

    print(report.lesson(args.name, pairs(args.parameter), args.out, args.force, args.parameters))
    return 0


def audit(args: argparse.Namespace) -> int:
    from labkit.audit import run

    named = {name: getattr(args, name) for name in ("model", "weights", "images", "labels")}
    values = pairs(args.parameter) | {name: value for name, value in named.items() if value is not None}
    if args.fast:
        values["fast"] = "True"
    page = run.audit(values, args.out, args.force)
    print(run.verdict(page))
    print(page)
    return 0


def compare(args: argparse.Namespace) -> int:
    from labkit.audit import run

    print(run.compare(args.first, args.second))
    return 0


def models(args: argparse.Namespace) -> int:
    from labkit import zoo

    for name, about in zoo.known().items():
        print(f"{name:16} {about}")
    return 0


def version(args: argparse.Namespace) -> int:
    import labkit

    print(f"labkit {labkit.__version__}")
    return 0


def parser() -> Parser:
    top = Parser(prog="labkit", description="Learn and explore efficient vision transformers.")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    add = commands.add_parser("doctor", help="is this machine ready? exit code 0 when it is, 1 when not")
    add.add_argument("--json", action="store_true", help="the rows as JSON")
    add.set_defaults(run=doctor)

    reports = commands.add_parser("report", help="run a notebook and leave it as a page").add_subparsers(
        metavar="KIND", required=True
    )
    add = reports.add_parser("lesson", help="a lesson of the course, with other parameters")
    add.add_argument("name", metavar="NAME", help="00_start_here, or 0")
    add.add_argument("-p", dest="parameter", metavar="name=value", action="append", default=[])
    add.add_argument(
        "--parameters", metavar="FILE", type=Path, help="a JSON object of parameters, as lesson 11 exports; -p wins"
    )
    add.add_argument("--out", metavar="DIR", type=Path, default=Path("report"), help="default: report")
    add.add_argument("--force", action="store_true", help="overwrite an earlier report")
    add.set_defaults(run=lesson)

    add = reports.add_parser("audit", help="which tokens and bits a model can give up, on your images")
    add.add_argument("--model", metavar="NAME", help="a model that ships, one of timm, or a file of labkit.save")
    add.add_argument("--weights", metavar="FILE", help="a .safetensors file for a model of timm")
    add.add_argument("--images", metavar="DIR", help="images, or one folder of images for each class")
    add.add_argument("--labels", metavar="FILE", help="a CSV: file name, number of the class")
    add.add_argument("--fast", action="store_true", help="fewer choices, within a minute")
    add.add_argument("-p", dest="parameter", metavar="name=value", action="append", default=[])
    add.add_argument("--out", metavar="DIR", type=Path, default=Path("report"), help="default: report")
    add.add_argument("--force", action="store_true", help="overwrite an earlier audit")
    add.set_defaults(run=audit)

    add = reports.add_parser("compare", help="two audits beside each other")
    add.add_argument("first", metavar="A.json", type=Path)
    add.add_argument("second", metavar="B.json", type=Path)
    add.set_defaults(run=compare)

    commands.add_parser("models", help="the names that labkit.load knows").set_defaults(run=models)
    commands.add_parser("version", help="the version of labkit").set_defaults(run=version)
    return top


def main(argv: list[str] | None = None) -> int:
    try:
        args = parser().parse_args(argv)
        return int(args.run(args))
    except LabkitError as error:
        print(f"labkit: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        new_line = "\n" * sys.stderr.isatty()  # below the ^C and the bar
        print(f"{new_line}labkit: {str(stop) or 'stopped.'}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
