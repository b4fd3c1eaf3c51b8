"""One sentence to act on: the fastest choice that surely costs no more than the floor allows, or that nobody knows yet.

A choice is promising when the loss that was measured lies within `tolerance`. The best of many is flattered, as luck
helped to choose it. So it is proven only when a larger loss is so unlikely that not one of all choices is called proven
wrongly, with a chance of error of 2.5 % for all of them together ("A Simple Sequentially Rejective Multiple Test
Procedure", 1979). Those that the same images kept from being tried are choices too. Speed counts where the interval
of its ratio lies below 1. With few images nothing is unlikely enough: then the verdict says so, and how many it would
take.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from labkit.audit.measure import Row, faster, points

ERROR = 0.025  # as much as lies below a 95 % interval


def recommend(rows: list[Row], images: int, word: str, tolerance: float = 0.01, untried: int = 0) -> dict[str, Any]:
    """From the rows of all candidates (name, describe, difference and ratio with intervals) to a verdict.

    `untried` more would have been candidates, had their parts done as well on these images as those of others.
    """
    quick = sorted((row for row in rows if row["ratio_high"] < 1), key=lambda row: row["ratio"])
    choices = len(quick) + untried
    sure = proven(quick, tolerance, untried)
    hopeful = [row for row in quick if row["difference"] >= -tolerance]
    verdict = "proven" if sure else "not enough images" if hopeful else "keep the model"
    best, rivals = pick(sure or hopeful)
    return {
        "verdict": verdict,
        "choice": best["name"] if best else None,
        "stack": best.get("stack") if best else None,
        "alike": [row["name"] for row in rivals],
        "choices": choices,
        "images_needed": images_needed(tolerance, max(1, choices)),
        "sentence": sentence(best, verdict, rivals, images, word, tolerance, choices),
    }


def proven(rows: list[Row], tolerance: float, untried: int = 0) -> list[Row]:
    """Those that lose at most `tolerance`, by Holm's rule: the surest has to be sure as the best of all, and so on."""
    chances = [chance(row, tolerance) for row in rows]
    surest_first = sorted(range(len(rows)), key=chances.__getitem__)
    passed = 0
    while passed < len(rows) and chances[surest_first[passed]] <= ERROR / (len(rows) + untried - passed):
        passed += 1
    return [rows[i] for i in sorted(surest_first[:passed])]


def chance(row: Row, tolerance: float) -> float:
    """How likely it is to lose so few images on balance, or fewer, where the true loss is the tolerance.

    Lost and gained images are counted as rare events are (Poisson); how many are gained in truth is what suits the
    counts best when as many more are lost as is allowed.
    """
    n, lost, gained = row["images"], row["lost"], row["gained"]
    slope = (lost + gained) * (1 - tolerance) - 2 * tolerance * (n - lost)
    root = math.sqrt(slope**2 + 8 * n * gained * tolerance * (1 - tolerance))
    expected = (slope + root) / 4  # images gained
    back = torch.arange(math.ceil(expected + 10 * math.sqrt(expected)) + 10, dtype=torch.float64)
    exactly = (torch.xlogy(back, back.new_tensor(expected)) - expected - torch.lgamma(back + 1)).exp()
    allowed = lost - gained + back  # lost images, when so many come back
    at_most = torch.special.gammaincc(allowed.clamp(min=0) + 1, back.new_tensor(expected + n * tolerance))
    return float((exactly * at_most * (allowed >= 0)).sum())


def pick(rows: list[Row]) -> tuple[Row | None, list[Row]]:
    """The fastest, or what is as fast and surely better; and those that neither speed nor answers tell from it."""
    if not rows:
        return None, []
    level = [row for row in rows if row["ratio_low"] <= rows[0]["ratio_high"]]
    better = [row for row in level if row["difference_low"] > rows[0]["difference_high"]]
    best = max(better, key=lambda row: row["difference"]) if better else rows[0]
    return best, [row for row in level if row is not best and row["difference_high"] >= best["difference_low"]]


def images_needed(tolerance: float, choices: int = 1) -> int:
    """Images with which even a choice that changed no answer could be shown to lose at most `tolerance`."""
    return math.ceil(math.log(choices / ERROR) / tolerance)


def sentence(
    best: Row | None, verdict: str, rivals: list[Row], images: int, word: str, tolerance: float, choices: int
) -> str:
    allowed = f"{100 * tolerance:g} point{'s' * (tolerance != 0.01)}"
    if best is None:
        return (
            f"Keep the model as it is: on these {images} images nothing that was tried is surely faster and loses at "
            f"most {allowed} of {word}."
        )
    told = f"{best['describe']}: {faster(best)} times as fast, {points(best)} points of {word}, on {images} images"
    tied = apart(best, rivals) if rivals else ""
    if verdict == "proven":
        luck = f", even as the luckiest of {choices} choices" if choices > 1 else ""
        return f"Take {told}. A loss of more than {allowed} is ruled out{luck}.{tied}"
    luck = f" for the luckiest of {choices} choices" if choices > 1 else ""
    return (
        f"Not enough images to be sure: best so far is {told}. A loss of {allowed} cannot be ruled out{luck} with "
        f"fewer than {images_needed(tolerance, choices)} images.{tied}"
    )


def apart(best: Row, rivals: list[Row]) -> str:
    names = ", ".join(row["name"] for row in rivals[:3]) + (f" and {len(rivals) - 3} more" if len(rivals) > 3 else "")
    return f" Not enough images to tell these apart: {best['name']}, {names}; nor does their speed differ surely."
