"""One exception for everything a user can get wrong: its text is the whole message."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LabkitError(ValueError):
    """A sentence for the user: what was wrong, what was expected, what to do."""


def closest(name: str, names: Iterable[str]) -> str:
    """`' Did you mean "shapes-vit"?'` when a known name is near, else an empty string."""
    match = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f' Did you mean "{match[0]}"?' if match else ""
