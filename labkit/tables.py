"""A table that is aligned text in a terminal and HTML in a notebook, the same on every machine."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


def ranged(values: Iterable[float], form: str = ".2f", times: float = 1.0) -> str:
    """A number and the ends of its interval, each so many `times`: "1.53 [1.47, 1.63]"."""
    middle, low, high = (format(times * value, form) for value in values)
    return f"{middle} [{low}, {high}]"


class Table:
    """A small table: aligned text in a terminal, an HTML table in a notebook; numbers stand on the right."""

    def __init__(self, headers: list[str], rows: list[list[str]], numeric: list[bool]) -> None:
        self.headers, self.rows, self.numeric = headers, rows, numeric

    def __repr__(self) -> str:
        lines = [self.headers, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.headers))]
        aligned = [
            "  ".join(
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(line, widths, self.numeric, strict=True)
            ).rstrip()
            for line in lines
        ]
        return "\n".join([aligned[0], "  ".join("-" * width for width in widths), *aligned[1:]])

    def _repr_html_(self) -> str:
        def row(cells: list[str], tag: str) -> str:
            return "".join(
                f'<{tag} style="text-align: {"right" if right else "left"}">{escape(cell)}</{tag}>'
                for cell, right in zip(cells, self.numeric, strict=True)
            )

        body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in self.rows)
        return f"<table><thead><tr>{row(self.headers, 'th')}</tr></thead><tbody>{body}</tbody></table>"
