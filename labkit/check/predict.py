"""Say first what you expect, then look: a guess that is committed before the number is there, and shown beside it.

    labkit.predict("01 sharpest", "Which weights denoise best?", options=["cold", "in between", "hot"])
    ...                                                # cells that measure
    labkit.reveal("01 sharpest", "in between")

An id begins with the number of its lesson. A committed guess cannot be changed until the cell runs again. Where nobody
guesses (a batch run, a report) the first option, or `number`, stands in, and the text says so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from labkit.check import progress
from labkit.errors import LabkitError, closest

made: dict[str, Prediction] = {}  # of this kernel


class Prediction:
    """The question with its choices, or with a field for a number; `commit` is what the button does."""

    def __init__(self, id: str, question: str, options: Sequence[str] | None, number: float | None, unit: str) -> None:
        self.id, self.question, self.unit = id, question, unit
        self.options = None if options is None else list(options)
        self.stand_in: Any = self.options[0] if self.options else number
        self.guess: Any = None
        self._box: Any = None

    @property
    def box(self) -> Any:
        """The widget, made when it is first shown."""
        if self._box is None:
            import ipywidgets as w

            asked = w.HTML(f"<b>Predict.</b> {escape(self.question)}")
            if self.options:
                wide = w.Layout(width="auto")
                self.field = w.RadioButtons(options=self.options, value=None, layout=wide)
            else:
                self.field = w.FloatText(value=self.stand_in, description=self.unit, layout=w.Layout(width="16em"))
            self.button = w.Button(description="Commit", tooltip="Commit this prediction; it cannot be changed after")
            self.status = w.HTML()
            self.button.on_click(lambda _: self.pressed())
            self._box = w.VBox([asked, self.field, self.button, self.status])
        return self._box

    def pressed(self) -> None:
        if self.field.value is None:
            self.status.value = '<span role="status">Choose one first.</span>'
        else:
            self.commit(self.field.value)

    def commit(self, guess: Any) -> None:
        """Fixes the guess."""
        if self.guess is not None:
            raise LabkitError(f'"{self.id}" was predicted already: {self.guess}. Run its cell again to start anew.')
        if self.options is not None and guess not in self.options:
            raise LabkitError(
                f'"{guess}" is none of the options: {", ".join(self.options)}.{closest(str(guess), self.options)}'
            )
        if self.options is None and (isinstance(guess, bool) or not isinstance(guess, int | float)):
            raise LabkitError(f'"{self.id}" asks for a number; {guess!r} is none.')
        self.guess = guess
        if self._box is not None:
            self.field.value = guess
            self.field.disabled = self.button.disabled = True
            self.status.value = f'<span role="status">Committed: {escape(said(guess, self.unit))}.</span>'

    def __repr__(self) -> str:
        choices = " / ".join(self.options) if self.options else f"a number{f' ({self.unit})' if self.unit else ''}"
        return f"Predict. {self.question} [{choices}]"

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        live = self.box._repr_mimebundle_()
        live = live[0] if isinstance(live, tuple) else live
        return {**live, "text/plain": repr(self)}, {}


@dataclass(frozen=True)
class Reveal:
    """A guess beside what was measured."""

    guess: Any
    measured: Any
    met: bool
    committed: bool
    unit: str

    def __repr__(self) -> str:
        who = "You predicted" if self.committed else "Nobody predicted; in its place stands"
        verdict = "As predicted." if self.met else "Not as predicted."
        if not isinstance(self.measured, str):
            unit = "points" if self.unit.startswith("%") else self.unit
            verdict = f"{verdict[:-1]}: off by {said(abs(self.guess - self.measured), unit)}."
        return f"{who}: {said(self.guess, self.unit)}. Measured: {said(self.measured, self.unit)}. {verdict}"

    def _repr_html_(self) -> str:
        colour = ("#2a9d5c" if self.met else "#d9822b") if self.committed else "#8a8a8a"
        return (
            f'<div role="status" style="border-left: 4px solid {colour}; padding: 2px 12px">{escape(repr(self))}</div>'
        )


def predict(
    id: str, question: str, options: Sequence[str] | None = None, number: float | None = None, unit: str = ""
) -> Prediction:
    """Asks: one of `options`, or a number whose field begins at `number`. The last line of a cell shows it."""
    if not re.match(r"\d\d\b", id):
        raise LabkitError(f'The id of a prediction begins with its lesson, as in "01 {id}".')
    if (options is None) == (number is None) or (options is not None and len(set(options)) < 2):
        raise LabkitError(f'"{id}" needs two options or more, or a number to begin with; and not both.')
    made[id] = Prediction(id, question, options, number, unit)
    return made[id]


def reveal(id: str, measured: Any = None, within: float | None = None) -> Reveal:
    """What was measured in this run beside the guess; a number is met when it is off by at most `within` (a tenth)."""
    if id not in made:
        raise LabkitError(
            f'Nothing was asked as "{id}" in this run.{closest(id, made)} Run the cell that predicts first.'
        )
    asked = made[id]
    if asked.options is not None and measured not in asked.options:
        raise LabkitError(f'"{id}" cannot come out as {measured!r}: its options are {", ".join(asked.options)}.')
    if asked.options is None:
        measured = float(measured)
    committed = asked.guess is not None
    guess = asked.guess if committed else asked.stand_in
    met = (
        guess == measured
        if asked.options
        else abs(guess - measured) <= (abs(measured) / 10 if within is None else within)
    )
    if committed:
        progress.note_prediction(id, guess, measured, met)
    return Reveal(guess, measured, met, committed, asked.unit)


def said(value: Any, unit: str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}{f' {unit}' if unit else ''}"
