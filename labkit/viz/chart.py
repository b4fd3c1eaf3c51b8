"""Plotly in this kit: a chart with a sentence, without a button that sends data away, on light and on dark pages.

JupyterLab draws the figure itself, offline, from its description; a page by `write_page` carries plotly.js once;
GitHub and a converted notebook, which run no scripts, show the same data as a still picture.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.errors import LabkitError
from labkit.viz.colour import table
from labkit.viz.paint import LINES

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MIME = "application/vnd.plotly.v1+json"
# The mode bar holds "share to cloud" and nine tab stops without names; wheel, drag and double click work without it.
CONFIG = {"displayModeBar": False}
HEIGHT = 360  # as JupyterLab has it
PALE = 0.2  # how strong an area is beneath its line
GREATEST = 100  # rows or columns of a heat map: beyond, plotly is slow and its messages are megabytes
AXIS = {
    "automargin": True,
    "gridcolor": "#DDDDDD",
    "linecolor": "#777777",
    "showline": True,
    "ticks": "outside",
    "zeroline": False,
}
CIVIDIS = [[i / 15, f"rgb{tuple(colour)}"] for i, colour in enumerate(table("cividis")[::17].tolist())]
TEMPLATE = {
    "layout": {
        "colorway": LINES,
        "colorscale": {"sequential": CIVIDIS},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "font": {"color": "#222222", "family": "sans-serif", "size": 13},
        "margin": {"l": 60, "r": 20, "t": 30, "b": 50},
        "xaxis": AXIS,
        "yaxis": AXIS,
        "hovermode": "closest",
    }
}
# Colours of the page, which win over those written in the figure: JupyterLab's theme, or the reader's preference.
THEME = """<style>
.js-plotly-plot .main-svg { background: transparent !important }
.js-plotly-plot :is(.bg, .legend .bg) { fill: transparent !important }
.js-plotly-plot text:not(.hoverlayer *) { fill: var(--jp-content-font-color1, CanvasText) !important }
.js-plotly-plot .gridlayer path {
  stroke: var(--jp-border-color2, color-mix(in srgb, CanvasText 20%, Canvas)) !important;
}
</style>"""
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline';\
 style-src 'unsafe-inline'; img-src data: blob:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font-family: sans-serif }}
main {{ max-width: 60rem; margin: auto; padding: 1rem }}
figure {{ margin: 0 0 3rem }}
[role=img] {{ height: {height}px }}
</style>
{theme}
<link rel="icon" href="data:,">
</head>
<body>
<main>
<h1>{title}</h1>
{figures}
</main>
<script>{plotly}</script>
<script>
const charts = {charts};
document.querySelectorAll("[role=img]").forEach((place, i) => {{
  charts[i].config.responsive = true;
  Plotly.newPlot(place, charts[i]);
}});
</script>
</body>
</html>
"""


class Chart:
    """A plotly figure and the sentence that says what it shows; the last line of a cell shows both."""

    def __init__(self, figure: Figure, alt: str) -> None:
        if not alt.strip():
            raise LabkitError("A chart needs a sentence for those who do not see it: chart(fig, alt='...').")
        for trace in figure.data:
            _refuse_pictures(trace)
        self.alt = alt
        self.figure = type(figure)(figure)
        self.figure.layout.template = TEMPLATE  # assigned: an update would keep plotly's own beneath

    def description(self) -> dict[str, Any]:
        """What plotly.js draws, in plain JSON."""
        return json.loads(self.figure.to_json(remove_uids=True)) | {"config": CONFIG}

    def to_html(self, path: str | Path) -> None:
        """This chart as one file that needs no network."""
        write_page(path, [self])

    def _ipython_display_(self) -> None:
        from IPython.display import display

        from labkit.viz.chart_still import drawable, svg

        bundle: dict[str, Any] = {MIME: self.description(), "text/plain": self.alt}
        if drawable(self.figure):
            # As a page and not as image/png, which JupyterLab would show instead, until a pointer enters it.
            source = base64.b64encode(svg(self.figure).encode()).decode()
            bundle["text/html"] = f'<img src="data:image/svg+xml;base64,{source}" alt="{escape(self.alt)}">'
        display(bundle, raw=True)
        display({"text/html": f"{THEME}<p>{escape(self.alt)}</p>", "text/plain": self.alt}, raw=True)

    def __repr__(self) -> str:
        return f"Chart: {self.alt}"


def write_page(path: str | Path, charts: Sequence[Chart], title: str = "Charts") -> None:
    """Writes charts as one page that opens from a file; plotly.js, 4.8 MB, is in it once."""
    from plotly.offline import get_plotlyjs

    figures = [
        f'<figure><div role="img" aria-label="{escape(chart.alt)}"></div>'
        f"<figcaption>{escape(chart.alt)}</figcaption></figure>"
        for chart in charts
    ]
    described = json.dumps([chart.description() for chart in charts]).replace("<", r"\u003c")
    text = PAGE.format(
        title=escape(title),
        theme=THEME,
        height=HEIGHT,
        figures="\n".join(figures),
        plotly=get_plotlyjs(),
        charts=described,
    )
    Path(path).write_text(text, encoding="utf-8")


def _refuse_pictures(trace: Any) -> None:
    shape = np.shape(trace.z) if "z" in trace and trace.z is not None else ()
    if max(shape, default=0) > GREATEST:
        raise LabkitError(
            f"A chart with {' x '.join(map(str, shape))} cells is a picture; plotly is made for at most {GREATEST} x "
            f"{GREATEST}. Draw it with labkit.viz.figures or labkit.viz.strips."
        )
