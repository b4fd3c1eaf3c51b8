"""The gallery of papers: search, filter, choose one by mouse, keys or code; see its idea, code, check, and a demo.

    gallery = Gallery()
    gallery.search = "window attention"       # every word must be in the id, title, idea, family or symbol
    gallery.choose(gallery.found()[0].id)
    print(gallery.state())
    print(gallery.check())                    # run its tests now
    print(gallery.demo())                     # let its mechanism work

The table is `labkit.papers.rows()`: a paper whose check is new is here without a change of this file.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Sequence
from typing import Any

from labkit import papers
from labkit.errors import LabkitError, closest
from labkit.papers import Row
from labkit.viz import gallery_check, gallery_map, gallery_words
from labkit.viz.demo import demo
from labkit.viz.figures import png
from labkit.viz.gallery_view import ANY, FILTERS, View

Answer = tuple[str, bytes | None]  # a sentence and perhaps a picture


class Gallery:
    """Search and filters above, the list beside the chosen paper, the map below."""

    def __init__(self, rows: Sequence[Row] | None = None) -> None:
        self.rows = list(papers.rows() if rows is None else rows)
        if not self.rows:
            raise LabkitError("A gallery needs a paper; the table of papers is empty.")
        self.by_id = {row.id: row for row in self.rows}
        self.dials = {row.id: gallery_words.dial(row, self.by_id) for row in self.rows}
        offers = {name: {value for row in self.rows for value in self._has(row)[name]} for name in FILTERS}
        self.view = View({name: gallery_words.ordered(name, values) for name, values in offers.items()})
        for control in (self.view.search, *self.view.menus.values()):
            control.observe(lambda _: self._find(), names="value")
        self.view.list.observe(lambda _: self._show(), names="value")
        self.view.check.on_click(lambda _: self._later(self._checked))
        self.view.demo.on_click(lambda _: self._later(self._shown))
        self.map = gallery_map.Map(self.rows, self.dials)
        self.map.observe(self._clicked, names="chosen")
        self.view.box.children += (self.map,)
        self._find()

    # --- what code may do ----------------------------------------------------------------------------------------
    @property
    def search(self) -> str:
        return str(self.view.search.value)

    @search.setter
    def search(self, words: str) -> None:
        self.view.search.value = words

    def filter(self, **chosen: str) -> None:
        """`filter(status="works", dial="bits")`; what is not named stays as it is, and "any" lifts a filter."""
        for name, value in chosen.items():
            if name not in FILTERS:
                raise LabkitError(f'There is no filter "{name}"; there are {", ".join(FILTERS)}.')
            offers = self.view.menus[name].options
            if value not in offers:
                raise LabkitError(f'No paper has the {name} "{value}".{closest(value, offers)}')
            self.view.menus[name].value = value

    def found(self) -> list[Row]:
        """The papers that the search and the filters leave, in the order of the list."""
        wanted = {name: menu.value for name, menu in self.view.menus.items() if menu.value != ANY}
        return [
            row
            for row in self.rows
            if gallery_words.matches(row, self.search)
            if all(value in self._has(row)[name] for name, value in wanted.items())
        ]

    @property
    def chosen(self) -> Row:
        """The paper that is shown."""
        if self.view.list.value is None:
            raise LabkitError("No paper is chosen, because none has all of these words; take one away.")
        return self.by_id[self.view.list.value]

    def choose(self, id: str) -> None:
        """Show a paper; a search or a filter that hides it is lifted."""
        if id not in self.by_id:
            raise LabkitError(f'There is no paper "{id}" here.{closest(id, self.by_id)}')
        if self.by_id[id] not in self.found():
            self.search = ""
            self.filter(**dict.fromkeys(FILTERS, ANY))
        self.view.list.value = id

    def state(self) -> str:
        """What is shown, in plain text."""
        found = self.found()
        said = f"{len(found)} of {len(self.rows)} papers. "
        return said + (gallery_words.sentence(self.chosen, self.dials[self.chosen.id]) if found else "None is chosen.")

    def check(self) -> str:
        """Run the tests of the chosen paper, and say how it went."""
        said, picture = self._checked(self.chosen)
        self.view.answer(said, picture)
        return said

    def demo(self) -> str:
        """Let the chosen paper's mechanism work now, show the picture, and say what there is to see."""
        said, picture = self._shown(self.chosen)
        self.view.answer(said, picture)
        return said

    # --- what happens then ---------------------------------------------------------------------------------------
    def _has(self, row: Row) -> dict[str, Sequence[str]]:
        """What each filter compares with."""
        named = gallery_words.lessons(row)
        return {"status": [row.status], "dial": [self.dials[row.id]], "family": [row.family], "lesson": named}

    def _clicked(self, change: Any) -> None:
        if change.new:
            self.choose(change.new)

    def _find(self) -> None:
        self.view.offer([(f"{row.id}  {row.title}", row.id) for row in self.found()], len(self.rows))
        self._show()

    def _show(self) -> None:
        row = None if self.view.list.value is None else self.chosen
        self.view.show(
            "" if row is None else gallery_words.page(row, self.dials[row.id]),
            check=bool(row and row.check),
            demo=bool(row and row.symbol),
        )
        self.map.chosen = row.id if row else ""

    def _checked(self, row: Row) -> Answer:
        return f"The check of {row.id}: {gallery_check.run(row.check).words}", None

    def _shown(self, row: Row) -> Answer:
        picture, said = demo(self.by_id.get(row.symbol, row))
        return said, None if picture is None else png(picture)

    def _later(self, work: Callable[[Row], Answer]) -> None:
        """Work beside the kernel's loop, where there is one, so that it answers meanwhile."""
        row = self.chosen
        self.view.answer(f"Working on {row.id}; this takes some seconds …")

        def answer() -> Answer:
            try:
                return work(row)
            except LabkitError as error:
                return str(error), None

        async def then() -> None:
            said, picture = await asyncio.to_thread(answer)
            if self.view.list.value == row.id:  # the reader may have gone on
                self.view.answer(said, picture)

        try:
            self.task = asyncio.get_running_loop().create_task(then())
        except RuntimeError:
            asyncio.run(then())

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The widget where there is a kernel; elsewhere the map and what is chosen, in words."""
        live = self.view.box._repr_mimebundle_()
        live = live[0] if isinstance(live, tuple) else live
        here = None if self.view.list.value is None else self.chosen.id
        still = png(gallery_map.still(self.rows, self.dials, here))
        static = {"text/plain": self.state(), "image/png": base64.b64encode(still).decode()}
        return {**live, **static}, {"image/png": {"alt": self.state()}}
