"""A stack from five short answers: each dial is turned in the way that lessons 07 to 10 found best."""

from __future__ import annotations

from typing import Any

from labkit.stack.recipe import FLOAT, Stack

MIXED, WHERE = "0, 1", "1, 2"  # the blocks that mix otherwise, and those that reduce


def choice(patch: int, mixer: str, reducer: str, keep: float, bits: int) -> Stack:
    """`mixer` and `reducer` as in `Stack`, the latter where `keep` is below 1; `bits` of weights and activations."""
    chosen: dict[str, Any] = {"patch": patch}
    if mixer != "dense":
        chosen |= {"mixer": mixer, "mixed": MIXED}
    if keep < 1:
        chosen |= {"reducer": reducer, "keep": keep, "where": WHERE}
    if bits != FLOAT:
        chosen |= {"weights": bits, "activations": bits, "backend": "int8"}
    if bits < 8:
        chosen |= {"clip": "percentile", "fold": "channels"}
    return Stack(**chosen)
