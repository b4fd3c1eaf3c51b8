"""bench/RESULTS.md from the stored results: what was measured, who wins and who loses, what holds, what else there is.

python bench/report.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import field_summary, rivals
from bench.field_ways import MERGED, SHARE, THIRDS
from labkit import files, results
from labkit.results import Result

FIELD = "bench-field"
PATH = Path(__file__).with_name("RESULTS.md")


def text() -> str:
    field = results.load(FIELD)
    parts = [
        "<!-- Written by `python bench/report.py` from data/results; whoever edits it by hand loses the edit. -->",
        "# labkit against the field",
        measured(field),
        "## Findings",
        field_summary.findings(field.values),
        markdown(field_summary.DUELS, field_summary.duels(field.values), right=range(3, 6)),
        "Level: the interval holds 1. No maintained package prunes or merges the tokens of today's timm: labkit's ways "
        "to do so stand against timm itself, and combined rivals are other toolkits' int8 of labkit's merged model.",
        "## Bars",
        verdicts(field_summary.bars(field.values)),
        "## Who is absent",
        bullets(field_summary.absent(field.values)),
        "## All numbers",
        legend(field),
    ]
    for title, headers, lines in field_summary.tables(field.values):
        parts += [f"### {title}", markdown(headers, lines, right=range(2, len(headers)))]
    return "\n\n".join([*parts, "## The other benches", others()]) + "\n"


def measured(field: Result) -> str:
    plan, versions = field["setting"], field["setting"]["versions"]
    packages = ", ".join(f"{name} {version or 'not installed'}" for name, version in sorted(versions.items()))
    sizes, batches = ", ".join(plan["sizes"]), ", ".join(map(str, plan["batches"]))
    return (
        f"Vision transformers of the sizes {sizes} (DeiT, {rivals.SIZE} pixels, patches of 16) with the same random "
        f"weights for everybody, in batches of {batches}; on one thread by processor time, on all cores by wall clock. "
        "All ways of a group run in turns in one process, and a ratio is the median over the turns with its 95 % "
        f"interval.\n\n{field.caption()} Packages: {packages}.\n\nTo repeat it: `pip install onnx onnxruntime torchao` "
        "(who is not installed is listed as absent), then `make bench`, some 40 minutes on two cores with 8 GB free; "
        "`make bench QUICK=1` shows a part of it in three and keeps nothing."
    )


def legend(field: Result) -> str:
    odd = " The three heads of deit_tiny are odd, which the fused pass of torch's encoder layer refuses."
    return (
        "A cell: milliseconds of a forward pass, and how many times as fast as timm in float32 [95 %]. *error*: of the "
        "logits, relative to timm's, with random weights; it says how exact a way is, not what it costs in accuracy. "
        f"*GMACs*: by `labkit.cost`. timm runs torch's fused attention. Keep and fuse leave {SHARE:.0%} of the tokens "
        f"at each of the blocks {', '.join(map(str, THIRDS))}, merge takes {MERGED} away in every block."
        + (odd if "tiny" in field["setting"]["sizes"] else "")
    )


def verdicts(bars: dict[str, bool]) -> str:
    return bullets([f"{'met' if met else '**MISSED**'}: {bar}" for bar, met in bars.items()])


def others() -> str:
    """A line for each other bench: what is kept of it, and what prints it."""
    lines = []
    for name in results.names():
        if name.startswith("bench-") and name != FIELD:
            command = results.load(name).provenance["command"]
            script = command.split(" --")[0]
            shows = command if "run.py" in script else f"{script} --summary"
            lines.append(f"`{shows}` ({name}). {results.load(name).caption()}")
    return bullets(lines)


def bullets(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def markdown(headers: list[str], lines: list[list[str]], right: range) -> str:
    rule = ["---:" if i in right else "---" for i in range(len(headers))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (headers, rule, *lines))


def write() -> Path:
    return files.replace(PATH, text())


if __name__ == "__main__":
    print(write())
