"""What a learner is told: one word, one sentence, the smallest case that fails. In a notebook it has a colour."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from labkit.errors import LabkitError

RIGHT, NOT_STARTED, NOT_YET = "right", "not started yet", "not yet"
COLOURS = {RIGHT: "#2a9d5c", NOT_STARTED: "#8a8a8a", NOT_YET: "#d9822b"}
SIGNS = {RIGHT: "✓", NOT_STARTED: "○", NOT_YET: "✗"}


class NotYet(LabkitError):
    """Raised under LABKIT_STRICT=1, where an answer that is not right has to fail the run."""


@dataclass(frozen=True)
class Verdict:
    name: str
    word: str  # right, not started yet, not yet
    says: str = ""
    details: tuple[tuple[str, str], ...] = ()  # what stands on the left, and what on the right
    more: str = ""

    def __bool__(self) -> bool:
        return self.word == RIGHT

    def __repr__(self) -> str:
        width = max((len(left) for left, _ in self.details), default=0)
        shown = [f"{left:{width}}  {right}".replace("\n", "\n" + " " * (width + 2)) for left, right in self.details]
        lines = [f"{SIGNS[self.word]} {self.name}: {self.word}.", self.says, *shown, self.more]
        return "\n  ".join(line.replace("\n", "\n  ") for line in lines if line)

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><th style="text-align: left; vertical-align: top">{escape(left)}</th><td style="text-align: left">'
            f'<pre style="margin: 0; background: transparent">{escape(right)}</pre></td></tr>'
            for left, right in self.details
        )
        says = f'<div style="margin: 4px 0">{escape(self.says)}</div>' if self.says else ""
        table = f"<table>{rows}</table>" if rows else ""
        more = f'<div style="margin: 4px 0; opacity: 0.8">{escape(self.more)}</div>' if self.more else ""
        return (
            f'<div role="status" style="border-left: 4px solid {COLOURS[self.word]}; padding: 2px 12px">'
            f"<b>{SIGNS[self.word]} {escape(self.name)}: {self.word}.</b>{says}{table}{more}</div>"
        )
