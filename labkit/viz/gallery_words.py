"""What the gallery says of a paper: which dial it turns, its status in words, and its page as HTML.

`dial(row, by_id)` is the one rule of what a paper changes: the package that holds its code, or, where there is none,
the family that the catalogue puts it in.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Collection, Mapping, Sequence
from html import escape
from types import ModuleType
from typing import Any

from labkit import paths
from labkit.errors import LabkitError
from labkit.papers import STATUSES, Row
from labkit.viz import gallery_check
from labkit.viz.source import STYLE, Source, show

PACKAGES = {
    "patching": "tokens made",
    "positions": "tokens made",
    "attention": "tokens talking",
    "tokens": "tokens kept",
    "quant": "bits",
    "compress": "weights",
}
FAMILIES = {
    "patching": "tokens made",
    "position": "tokens made",
    "attention": "tokens talking",
    "mixer": "tokens talking",
    "token-reduction": "tokens kept",
    "quantization": "bits",
    "weight-compression": "weights",
}
DIALS = (*dict.fromkeys(PACKAGES.values()), "other")
STATUS = {
    "works": "works here: the code is in this kit, and tests assert its check",
    "applies": "applies a mechanism that is in this kit; there is none of its own to build",
    "context": "context: there is nothing in it to build",
    "open": "not built yet",
}


def dial(row: Row, by_id: Mapping[str, Row]) -> str:
    """What a paper changes; one that applies another paper's mechanism changes what that one does."""
    if row.symbol in by_id and row.symbol != row.id:
        return dial(by_id[row.symbol], by_id)
    package = row.symbol.removeprefix("labkit.").split(".")[0]
    return PACKAGES.get(package) or FAMILIES.get(row.family, "other")


def lessons(row: Row) -> list[str]:
    return [name for name in row.lesson.split(";") if name]


def ordered(name: str, values: Collection[str]) -> list[str]:
    """The values that a filter offers: statuses and dials in their own order, others by the alphabet."""
    order = {"status": STATUSES, "dial": DIALS}.get(name, sorted(values))
    return [value for value in order if value in values]


def matches(row: Row, words: str) -> bool:
    """Does every word stand somewhere in the row? Case and order do not matter."""
    text = f"{row.id} {row.title} {row.idea} {row.family} {row.symbol}".casefold()
    return all(word in text for word in words.casefold().split())


def sentence(row: Row, turns: str) -> str:
    """A paper in a line or two of plain text."""
    year = f", {row.year}" if row.year else ""
    tests = len(gallery_check.tests(row.check))
    said = f'{row.id}: "{row.title}"{year}. It changes: {turns}. Status: {STATUS[row.status]}. {row.idea}'
    said += f" Its code: {row.symbol}." if row.symbol else ""
    return said + (f" Its check: {tests} test{'s' * (tests != 1)}." if tests else "")


def page(row: Row, turns: str) -> str:
    """The paper as HTML: the idea, the source and the check folded up, the lessons as links."""
    facts = [
        ("paper", f"“{escape(row.title)}”, {row.year or 'year not known'} ({row.id}, {escape(row.family)})"),
        ("changes", escape(turns)),
        ("status", escape(STATUS[row.status])),
        ("lesson", _links(row) or "none names it"),
    ]
    lines = "".join(f"<p><b>{name}:</b> {said}</p>" for name, said in facts)
    return f'<style>{STYLE}{CARD}</style><div class="labkit-paper"><p class="idea">{escape(row.idea)}</p>{lines}' + (
        f"{_source(row.symbol)}{_check(row)}</div>"
    )


CARD = """
.labkit-paper { line-height: 1.4; overflow-wrap: anywhere; }
.labkit-paper > .idea { font-size: 115%; margin: 0 0 8px; }
.labkit-paper > p { margin: 2px 0; line-height: 1.4; }
.labkit-paper summary { cursor: pointer; padding: 2px 0; }
.labkit-paper summary:focus-visible { outline: 2px solid var(--jp-brand-color1, #2a7fb8); }
.labkit-paper a { color: var(--jp-content-link-color, LinkText); }
"""


def _links(row: Row) -> str:
    """Lessons lie beside the notebook that shows the gallery; each opens in a tab of its own."""
    there = [name for name in lessons(row) if (paths.NOTEBOOKS / f"{name}.ipynb").is_file()]
    return ", ".join(
        f'<a href="{escape(name)}.ipynb" target="_blank">{escape(name)}</a>' if name in there else escape(name)
        for name in lessons(row)
    )


def _source(symbol: str) -> str:
    if not symbol.startswith("labkit."):
        return f"<p>Its mechanism is that of {escape(symbol)}.</p>" if symbol else "<p>There is no code of it here.</p>"
    thing: Any = pkgutil.resolve_name(symbol)
    if isinstance(thing, ModuleType):
        text = f"<p>{escape((thing.__doc__ or '').strip())}</p>"
        return _folded(f"its file: {symbol}", text)
    try:
        return _folded(f"its source: {symbol}", _plain(show(thing)))
    except LabkitError as error:
        return f"<p>{escape(str(error))}</p>"


def _check(row: Row) -> str:
    names: Sequence[str] = gallery_check.tests(row.check)
    if not names:
        return ""
    code = gallery_check.source(names[0])
    first = "" if code is None else _plain(Source(names[0], code, "", []))
    others = "".join(f"<li><code>{escape(name)}</code></li>" for name in (names[1:] if code else names))
    return _folded(
        f"its check: {len(names)} test{'s' * (len(names) > 1)}, the first is {names[0]}", f"{first}<ul>{others}</ul>"
    )


def _plain(source: Source) -> str:
    """The code as `labkit.show` shows it; the style is in the page already."""
    return source._repr_html_().replace(f"<style>{STYLE}</style>", "")


def _folded(title: str, inside: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{inside}</details>"
