"""What a bench hands to `run.py`: text to print, numbers to keep, and whether each bar was met."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Outcome:
    title: str
    text: str
    values: dict[str, Any]
    bars: dict[str, bool] = field(default_factory=dict)  # a sentence with the bar and the measured number -> met

    @property
    def met(self) -> bool:
        return all(self.bars.values())

    def __str__(self) -> str:
        verdicts = [f"{'met   ' if met else 'MISSED'}  {bar}" for bar, met in self.bars.items()]
        return "\n".join([self.title, "", self.text, "", *verdicts, ""])
