"""One sentence to act on: the fastest choice that surely costs no more than the floor allows, or that nobody knows yet.

A choice is proven when the whole interval of its loss lies within `tolerance`, and promising when only the measured
loss does. Speed counts where the interval of its ratio lies below 1. With few images no interval can be narrow: then
the verdict says so, and how many images it would take.
"""

from __future__ import annotations

import math
from typing import Any

from labkit.audit.measure import Row, faster, points

Z = 1.96


def recommend(rows: list[Row], images: int, word: str, tolerance: float = 0.01) -> dict[str, Any]:
    """From the rows of all candidates (name, describe, difference and ratio with intervals) to a verdict."""
    faster = sorted((row for row in rows if row["ratio_high"] < 1), key=lambda row: row["ratio"])
    proven = [row for row in faster if row["difference_low"] >= -tolerance]
    promising = [row for row in faster if row["difference"] >= -tolerance]
    if proven:
        best, verdict = proven[0], "proven"
    elif promising:
        best, verdict = promising[0], "not enough images"
    else:
        best, verdict = None, "keep the model"
    rivals = [row["name"] for row in alike(best, proven or promising)] if best else []
    return {
        "verdict": verdict,
        "choice": best["name"] if best else None,
        "stack": best.get("stack") if best else None,
        "alike": rivals,
        "images_needed": images_needed(tolerance),
        "sentence": sentence(best, verdict, rivals, images, word, tolerance),
    }


def alike(best: Row, others: list[Row]) -> list[Row]:
    """Those whose speed cannot be told from the best one's."""
    return [row for row in others if row is not best and row["ratio_low"] <= best["ratio_high"]]


def images_needed(tolerance: float) -> int:
    """Images with which even a choice that changed no answer could be shown to lose at most `tolerance`."""
    n = 1
    while Z * math.sqrt(2 / (n + 2)) / math.sqrt(n + 2) > tolerance:
        n += 1
    return n


def sentence(best: Row | None, verdict: str, rivals: list[str], images: int, word: str, tolerance: float) -> str:
    allowed = f"{100 * tolerance:g} point{'s' * (tolerance != 0.01)}"
    if best is None:
        return (
            f"Keep the model as it is: on these {images} images nothing that was tried is surely faster and loses at "
            f"most {allowed} of {word}."
        )
    told = f"{best['describe']}: {faster(best)} times as fast, {points(best)} points of {word}, on {images} images"
    tied = f" Its speed cannot be told from that of {', '.join(rivals[:3])}." if rivals else ""
    if verdict == "proven":
        return f"Take {told}.{tied}"
    return (
        f"Not enough images to be sure: best so far is {told}. A loss of {allowed} cannot be ruled out with fewer than "
        f"{images_needed(tolerance)} images.{tied}"
    )
