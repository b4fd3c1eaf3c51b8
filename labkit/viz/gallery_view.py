"""The controls of the gallery, and nothing of what they mean: each is a plain widget that keys can work.

Tab goes from one to the next; in the list the arrows go from paper to paper. What changes is said in regions that a
screen reader announces.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

ANY = "any"
FILTERS = ("status", "dial", "family", "lesson")


class View:
    """`offers` are the values of each filter; `box` is what a notebook shows."""

    def __init__(self, offers: Mapping[str, Sequence[str]]) -> None:
        import ipywidgets as w

        self.search = w.Text(description="search", placeholder="words, such as: window attention")
        self.menus = {
            name: w.Dropdown(options=[ANY, *offers[name]], description=name, layout={"width": "17em"})
            for name in FILTERS
        }
        self.list = w.Select(options=[], rows=16, layout={"width": "auto", "flex": "1 1 18em", "min_width": "14em"})
        self.list.tooltip = "papers"
        self.count, self.page, self.said = w.HTML(), w.HTML(), w.HTML()
        self.check = w.Button(description="run the check", tooltip="runs its tests, mostly some seconds")
        self.demo = w.Button(description="demo", tooltip="lets its mechanism work, mostly a second")
        wrap = {"flex_flow": "row wrap"}
        paper = w.VBox(
            [self.page, w.HBox([self.check, self.demo]), self.said],
            layout={"flex": "3 1 28em", "min_width": "0", "padding": "0 0 0 1em"},
        )
        self.box = w.VBox(
            [
                w.HBox([self.search, *self.menus.values()], layout=wrap),
                self.count,
                w.HBox([self.list, paper], layout={**wrap, "align_items": "flex-start"}),
            ]
        )

        self.box.add_class("labkit-gallery")

    def offer(self, papers: Sequence[tuple[str, str]], of: int) -> None:
        """The list, as (label, id); the paper that was chosen stays chosen if it is among them."""
        before, ids = self.list.value, [id for _, id in papers]
        self.list.options = papers
        self.list.value = before if before in ids else ids[0] if ids else None
        said = f"{len(ids)} of {of} papers" if ids else "No paper has all of these; take a word or a filter away."
        self.count.value = f'<p role="status">{said}</p>'

    def show(self, page: str, check: bool, demo: bool) -> None:
        """A paper, and whether its check can be run and its mechanism be shown."""
        self.page.value, self.said.value = page, ""
        self.check.disabled, self.demo.disabled = not check, not demo

    def answer(self, said: str, picture: bytes | None = None) -> None:
        """A sentence below the buttons, and perhaps a picture."""
        words, image = escape(said), ""
        if picture is not None:
            source = base64.b64encode(picture).decode()
            image = f'<img src="data:image/png;base64,{source}" alt="{words}" style="max-width: 100%">'
        self.said.value = f'{image}<p role="status">{words}</p>'
