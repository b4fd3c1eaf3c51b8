"""The map of mechanisms: every paper as a dot, by its family (down) and what it changes (right); colours are statuses.

The dots of a cell stand in rows, so that none hides another. Beside the colour, each status has a symbol. `figure` is
a plotly chart for a lesson, `Map` the widget of the gallery, which tells Python of a click, `still` for a page.
"""

from __future__ import annotations

import textwrap
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from labkit.errors import LabkitError
from labkit.papers import STATUSES, Row
from labkit.viz.gallery_words import DIALS
from labkit.viz.paint import LINES

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Still
    from plotly.graph_objects import Figure

LOOKS = {  # of each status: its name, colour and symbol
    "works": ("works", LINES[0], "circle"),
    "applies": ("applies one that works", LINES[2], "diamond"),
    "context": ("context", "#808080", "x"),
    "open": ("open", LINES[1], "circle-open"),
}
IN_A_ROW = 13  # dots of a cell beside each other
STEP = 0.92 / IN_A_ROW  # cells are 1 wide
LINE = 0.29  # from one row of dots to the next; families are 1 apart
LEFT = -2.1  # where the names of the families begin
RING = "chosen"


def places(rows: Sequence[Row], turns: Mapping[str, str]) -> dict[str, tuple[float, float]]:
    """Where each dot lies: across by dial, up by family, the largest on top; in a cell those that work come first."""
    families = family_order(rows)
    cells: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (STATUSES.index(row.status), row.id)):
        cells[turns[row.id], row.family].append(row)
    found = {}
    for (dial, family), members in cells.items():
        middle = len(families) - 1 - families.index(family)
        lines = -(-len(members) // IN_A_ROW)
        for i, row in enumerate(members):
            line, place = divmod(i, IN_A_ROW)
            across = DIALS.index(dial) - 0.5 + (place + 0.7) * STEP
            found[row.id] = (round(across, 3), round(middle + LINE * ((lines - 1) / 2 - line), 3))
    return found


def family_order(rows: Sequence[Row]) -> list[str]:
    """From the family with most papers to that with fewest; of two alike, by the alphabet."""
    counts = Counter(row.family for row in rows)
    return sorted(counts, key=lambda family: (-counts[family], family))


def figure(rows: Sequence[Row], turns: Mapping[str, str]) -> Figure:
    """One trace for each status, the names of rows and columns, and a ring around nothing yet."""
    from plotly.graph_objects import Figure

    if not rows:
        raise LabkitError("There is no paper to draw.")
    at, families = places(rows, turns), family_order(rows)
    bare = {"showticklabels": False, "ticks": "", "showgrid": False, "fixedrange": True}
    across = {"range": [LEFT, len(DIALS) - 0.45], "title": {"text": "what it changes"}, **bare}
    up = {"range": [-0.7, len(families) + 0.4], "title": {"text": "family"}, **bare}
    legend = {"orientation": "h", "y": 1.01, "yanchor": "bottom"}
    fig = Figure(layout={"xaxis": across, "yaxis": up, "height": 30 * len(families) + 120, "legend": legend})
    for status, (name, colour, symbol) in LOOKS.items():
        those = [row for row in rows if row.status == status]
        fig.add_scatter(
            x=[at[row.id][0] for row in those],
            y=[at[row.id][1] for row in those],
            name=name,
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 7},
            customdata=[row.id for row in those],
            text=[hover(row) for row in those],
            hovertemplate="%{text}<extra></extra>",
        )
    top = len(families)
    quiet = {"mode": "text", "showlegend": False, "hoverinfo": "skip", "textposition": "top right", "cliponaxis": False}
    for name, texts, x, y in (
        ("families", families, [LEFT] * top, [top - 1.3 - i for i in range(top)]),
        ("dials", list(DIALS), [i - 0.5 for i in range(len(DIALS))], [top - 0.3] * len(DIALS)),
    ):
        fig.add_scatter(x=x, y=y, text=texts, name=name, **quiet)
    ring = {"color": LINES[4], "symbol": "circle-open", "size": 15, "line": {"width": 3}}
    fig.add_scatter(x=[], y=[], mode="markers", marker=ring, name=RING, hoverinfo="skip", showlegend=False)
    return fig


def ring(figure: Any, id: str | None) -> None:
    """Ring the dot of a paper, or none."""
    (around,) = (trace for trace in figure.data if trace.name == RING)
    for trace in figure.data:
        if id is not None and id in (trace.customdata if trace.customdata is not None else ()):
            place = list(trace.customdata).index(id)
            around.x, around.y = [trace.x[place]], [trace.y[place]]
            return
    around.x, around.y = [], []


class Map(anywidget.AnyWidget):
    """The map as a widget of the gallery: a click on a dot sets `chosen`, and `chosen` rings a dot."""

    _esm = Path(__file__).with_name("gallery_map.js").read_text(encoding="utf-8")
    _css = Path(__file__).with_name("gallery_map.css").read_text(encoding="utf-8")
    drawn = traitlets.Dict().tag(sync=True)
    chosen = traitlets.Unicode("").tag(sync=True)

    def __init__(self, rows: Sequence[Row], turns: Mapping[str, str]) -> None:
        at = places(rows, turns)
        drawn = {
            "families": family_order(rows),
            "dials": list(DIALS),
            "statuses": [(status, name) for status, (name, *_) in LOOKS.items()],
            "dots": [(row.id, *at[row.id], row.status, f"{row.id}: {row.title}. {row.idea}") for row in rows],
            "words": words(rows, turns),
        }
        super().__init__(drawn=drawn)


def still(rows: Sequence[Row], turns: Mapping[str, str], id: str | None = None) -> Still:
    """The map for places that run no scripts."""
    from labkit.viz.chart_still import still

    fig = figure(rows, turns)
    ring(fig, id)
    drawn = still(fig)
    drawn.set_size_inches(11, 0.27 * len(family_order(rows)) + 1.2)
    for axis in (drawn.axes[0].xaxis, drawn.axes[0].yaxis):
        axis.set_ticks([])
    return drawn


def hover(row: Row, width: int = 60) -> str:
    """Title and idea in short lines; plotly breaks none by itself."""
    title = f"{row.id}: {row.title}" + (f", {row.year}" if row.year else "")
    return f"<b>{_broken(title, width)}</b><br>{_broken(row.idea, width)}"


def words(rows: Sequence[Row], turns: Mapping[str, str]) -> str:
    """What the map shows, in a sentence."""
    dials = Counter(turns[row.id] for row in rows)
    statuses = Counter(row.status for row in rows)
    return (
        f"{len(rows)} papers by family and by what they change: "
        + ", ".join(f"{dial} {dials[dial]}" for dial in DIALS)
        + ". Of all, "
        + ", ".join(f"{statuses[status]} are “{status}”" for status in STATUSES)
        + "."
    )


def _broken(text: str, width: int) -> str:
    return "<br>".join(escape(line) for line in textwrap.wrap(text, width))
