"""An audit as one file: figures inside, an explorer that works without a kernel, nothing fetched, nothing else allowed.

Everything that comes from outside (names of models, folders, labels) is text and stays text.
"""

from __future__ import annotations

import base64
import shlex
from html import escape
from typing import TYPE_CHECKING, Any

from labkit.audit.subject import NO_HEAD, Subject
from labkit.tables import Table
from labkit.tracing.record import trace
from labkit.viz import page
from labkit.viz.explorer import Explorer

if TYPE_CHECKING:
    from labkit.audit.audit import Audit, Section

SHOWN = 4  # images in the explorer of the page
FIRST = "together"  # the section that shows what the recommendation was chosen from
WORDS = {
    "accuracy": "accuracy is the share of images whose label the model says.",
    "agreement": "agreement is the share of images of which a choice says what the untouched model says; without "
    "labels nobody knows which of the two is right where they differ.",
}
GUIDE = (
    "A choice loses patches, or numbers lose bits. merge 50% leaves half of the patches behind its last reducing "
    "block; W4/A8 has weights of 4 bits and activations of 8. labkit.stack.reduce says what each way does.",
    "points are what a choice loses or gains on the same images; they are surer than two shares held apart.",
    "times as fast: the choice and the untouched model run in turns, on one thread of a CPU (all of a GPU), and the "
    "ratio is the median over the turns. simulated: the answers are exact, and no kernel here makes it fast.",
    "[brackets] hold 95 % intervals: they reach as far as chance alone may carry the number on so few images or turns.",
)
STYLE = """
.verdict { margin: 12px; padding: 8px 16px; border-left: 6px solid #2a7fb8; font-size: 1.1em; }
section { margin: 28px 12px; }
h2 { margin: 0 0 4px; font-size: 1.15em; }
section img { max-width: 100%; background: #fff; border-radius: 4px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 8px 0; font-size: 0.92em; }
th, td { padding: 2px 8px; border-bottom: 1px solid light-dark(#ddd, #444); }
th { vertical-align: bottom; }
td { white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.text { text-align: left; }
pre { padding: 8px 12px; overflow-x: auto; white-space: pre-wrap; background: light-dark(#f4f4f6, #222228); }
nav, details { margin: 12px; }
footer { margin: 28px 12px; opacity: 0.75; font-size: 0.9em; }
"""


def whole(audit: Audit) -> str:
    """The page: what to do, the choices that were compared, all that was measured, and how to repeat it."""
    found, advice = audit.found, audit.recommendation()
    looks = audit.sections.get("looks")
    shown = explorer(found) if looks and "skipped" not in looks.values else None
    told = {name: section(part) for name, part in audit.sections.items()}
    if shown is not None:
        told["looks"] += f'<section id="explore"><h2>Look for yourself</h2>{shown.body}</section>'
    verdict = f'<p class="verdict" role="status">{escape(advice["sentence"])}</p>'
    evidence = told.pop(FIRST, "") if advice.get("choice") else ""
    parts = [verdict, contents(audit), guide(found), evidence, *told.values(), repeat(audit, advice), notes(audit)]
    style = STYLE + (shown.style if shown else "")
    return page.document(f"Audit of {found.name}", "\n".join(parts), style, shown.script if shown else "")


def contents(audit: Audit) -> str:
    """Where each section is, and which were not measured."""
    links = [
        f'<a href="#{name}">{escape(part.title)}</a>{" (not measured)" if "skipped" in part.values else ""}'
        for name, part in audit.sections.items()
    ]
    links.append('<a href="#repeat">Repeat it</a>')
    return f"<nav>{' · '.join(links)}</nav>"


def guide(found: Subject) -> str:
    told = (*([] if found.index is None else [NO_HEAD]), WORDS[found.word], *GUIDE)
    lines = "".join(f"<li>{escape(line)}</li>" for line in told)
    return f"<details><summary>How to read this page</summary><ul>{lines}</ul></details>"


def section(part: Section) -> str:
    """A section as HTML without a style of its own: a notebook and the page show the same."""
    picture = ""
    if part.picture is not None:
        source = base64.b64encode(part.picture).decode()
        picture = f'<p><img src="data:image/png;base64,{source}" alt="{escape(part.said)}"></p>'
    label = f'tabindex="0" role="region" aria-label="{escape(part.title)}, as a table"'
    table = f'<div class="scroll" {label}>{rows(part.table)}</div>' if part.table is not None else ""
    return (
        f'<section id="{part.name}"><h2>{escape(part.title)}</h2><p>{escape(part.said)}</p>{picture}{table}</section>'
    )


def rows(table: Table) -> str:
    """A table whose looks are classes: an attribute of style would need a permission."""
    kinds = ["number" if numeric else "text" for numeric in table.numeric]

    def row(cells: list[str], tag: str) -> str:
        return "".join(f'<{tag} class="{kind}">{escape(c)}</{tag}>' for c, kind in zip(cells, kinds, strict=True))

    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in table.rows)
    return f"<table><thead><tr>{row(table.headers, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def explorer(found: Subject) -> page.Embedded | None:
    """The user's first images under the model's attention; nothing where the model has no maps."""
    traced = trace(found.model, found.inputs[:SHOWN])
    if not traced.layers:
        return None
    return Explorer(traced, found.images[:SHOWN]).embedded()


def repeat(audit: Audit, advice: dict[str, Any]) -> str:
    """The command that makes this page again, and the lines of Python that build what is recommended."""
    told = f"<h2>Repeat it</h2><pre>{escape(command(audit))}</pre>"
    if advice.get("stack"):
        told += f"<p>What is recommended, in Python:</p><pre>{escape(lines(audit, advice['stack']))}</pre>"
    return f'<section id="repeat">{told}</section>'


def command(audit: Audit) -> str:
    """`labkit report audit` with the options of this run."""
    asked = audit.found.asked | {"tolerance": audit.tolerance}
    named = {name: asked.pop(name) for name in ("model", "weights", "images", "labels") if name in asked}
    words = [word for name, value in named.items() for word in (f"--{name}", value)]
    words += ["--fast"] if asked.pop("fast", audit.fast) else []
    words += [word for name, value in asked.items() for word in ("-p", f"{name}={value}")]
    return shlex.join(["labkit", "report", "audit", *words])


def lines(audit: Audit, stack: dict[str, Any]) -> str:
    """A script that prints the share of right answers of the recommended stack."""
    from labkit.stack import Stack

    plain = Stack().choices()
    told = ", ".join(f"{name}={value!r}" for name, value in stack.items() if value != plain[name])
    asked = ", ".join(f"{name}={value!r}" for name, value in audit.found.asked.items())
    calibration = f"found.calibration[:{len(audit.found.calibration)}]"
    return (
        "from labkit.audit import subject\nfrom labkit.stack import Stack\n\n"
        f"found = subject({asked})\n"
        f"quick = Stack({told}).build(found.vit, calibration={calibration})\n"
        f"print(found.right(quick).double().mean())  # {audit.found.word}\n"
    )


def notes(audit: Audit) -> str:
    """What the reader has to know about the images and the run."""
    values = audit.values()
    told = "".join(f"<li>{escape(note)}</li>" for note in audit.found.notes[:20])
    more = len(audit.found.notes) - 20
    told += f"<li>and {more} more, in audit.json.</li>" if more > 0 else ""
    return (
        f"<footer><ul>{told}</ul><p>Made {escape(values['made'])} by labkit {escape(values['labkit'])} with torch "
        f"{escape(values['torch'])}; intervals are 95 %. All numbers are in audit.json.</p></footer>"
    )
