"""What the explorer shows, in one or two sentences; explorer.js says the same words, and a test holds it to that.

Layers, heads, rows and columns count from 0, as in code.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from labkit.evidence import Grid
    from labkit.viz.explorer_data import ImageMaps, Look, Query

CHOICES = {
    "direction": {"looks at": "where it looks", "looked at by": "who looks at it"},
    "scale": {"map": "each map its own", "shared": "one for all"},
    "sort": {"head": "by number", "entropy": "most focused first", "distance": "nearest first"},
}
SORTED = {"head": "", "entropy": " Heads are sorted by entropy, the most focused first."}
SORTED["distance"] = " Heads are sorted by distance, the nearest first."


KEYS = (
    "Keys on the picture: arrows move the patch · Home, End: ends of its row · C: the tokens that are no patches · "
    "D: direction · PageUp, PageDown: layer or step · comma, point: head · Enter: open the head · Space: play · "
    "1 to 5: view. Layers, heads, rows and columns count from 0."
)


def sent(size: int, served: bool) -> str:
    """What travels to the browser, and how exact it is."""
    rest = "; large layers are fetched row by row" if served else ""
    return f"Maps: {size / 1e6:.1f} MB, one byte a share, exact to 0.2 % of a row's largest{rest}."


def percent(share: float) -> str:
    """With one decimal, half rounded up as in the browser."""
    tenths = math.floor(share * 1000 + 0.5)
    return f"{tenths // 10}.{tenths % 10} %"


def place(query: Query) -> str:
    if isinstance(query, str):
        return f"the {query} token"
    return f"the patch in row {query[0]}, column {query[1]}"


def spot(index: int, grid: Grid) -> str:
    return f"row {index // grid[1]}, column {index % grid[1]}"


def coarse(maps: ImageMaps, grid: Grid) -> str:
    """Said when a layer's cells are not the patches that the query counts."""
    return "" if tuple(grid) == tuple(maps.trace.patches) else f" of {grid[0]} × {grid[1]}"


def head_words(head: int | str, count: int) -> str:
    if isinstance(head, int):
        return f"head {min(head, count - 1)}"
    return {"mean": f"mean over {count} heads", "max": f"maximum over {count} heads"}.get(head, "rollout")


def nothing(maps: ImageMaps, layer: int, head: int | str, query: Query, direction: str) -> str:
    """Why there is no map to draw."""
    if maps.trace.why:
        return maps.trace.why
    info = maps.trace.layers[layer]
    if info.kind in ("channel", "unknown"):
        return f"Layer {layer}: {info.sentence()}"
    if maps.number(layer, query, direction == "looked at by") is not None:
        return f"Layer {layer}: rollout multiplies layers, and these layers do not all mix the same tokens."
    if isinstance(query, str):
        return f"Layer {layer} has no {query} token; choose a patch."
    return f"In layer {layer} no patch asks; choose the {info.prefix_names[0]} token."


def overlay(maps: ImageMaps, state: dict[str, Any]) -> str:
    layer, head, query, direction = state["layer"], state["head"], state["query"], state["direction"]
    seen = None if maps.trace.why else maps.look(layer, head, query, direction)
    if seen is None:
        return nothing(maps, layer, head, query, direction)
    start = f"Layer {layer}, {head_words(head, maps.trace.layers[layer].heads)}: {place(query)}"
    best = int(seen.cells.argmax())
    at = spot(best, seen.grid) + coarse(maps, seen.grid)
    if direction == "looked at by":
        if not seen.cells[best]:
            return f"{start} is looked at by no patch."
        first = f"; the {seen.names[0]} token gives it {percent(seen.extra[0])}" if seen.names else ""
        return f"{start} is looked at most by {at}, which gives it {percent(seen.cells[best])} of its attention{first}."
    if not seen.cells[best]:
        return f"{start} looks at no patch: its token was dropped before this layer."
    return f"{start} looks most at {at} ({percent(seen.cells[best])}){prefix_share(seen, head)}."


def prefix_share(seen: Look, head: int | str) -> str:
    """How much goes to tokens that are no patches; maxima over heads are no shares of one whole."""
    if not seen.names or head == "max":
        return ""
    total = 0.0
    for share in seen.extra:
        total += float(share)
    whom = f"the {seen.names[0]} token" if len(seen.names) == 1 else f"the {len(seen.names)} tokens that are no patches"
    return f"; {percent(total)} of its attention goes to {whom}"


def grid(maps: ImageMaps, state: dict[str, Any]) -> str:
    query, direction = state["query"], state["direction"]
    if maps.trace.why:
        return maps.trace.why
    best, where = 0.0, ""
    for layer, info in enumerate(maps.trace.layers):
        seen = maps.heads(layer, query, direction)
        if seen is None:
            continue
        cells = seen.cells[: info.heads]
        head, cell = np.unravel_index(int(cells.argmax()), cells.shape)
        if cells[head, cell] > best:
            best = float(cells[head, cell])
            where = f"layer {layer}, head {head} at {spot(int(cell), seen.grid)}{coarse(maps, seen.grid)}"
    asks = f"Where {place(query)} looks" if direction == "looks at" else f"Who looks at {place(query)}"
    found = f"the strongest share is {percent(best)}, in {where}" if where else "there is nothing to show"
    return f"{asks}, in all {len(maps.trace.layers)} layers: {found}.{SORTED[state['sort']]}"


def film_words(labels: np.ndarray | None) -> list[str]:
    """For each step, what became of the tokens."""
    if labels is None:
        return ["No token is dropped or merged in this model: every patch stays a token of its own."]
    said = []
    for step, now in enumerate(labels):
        sizes = np.bincount(now[now >= 0])
        when = f"Before layer {step}" if step < len(labels) - 1 else "After the last layer"
        held = f"{when}: {(sizes > 0).sum()} tokens hold {sizes.sum()} of {len(now)} patches"
        said.append(f"{held}; the largest holds {sizes.max()}." if sizes.max() > 1 else f"{held}.")
    return said


def film(maps: ImageMaps, state: dict[str, Any]) -> str:
    said, query = film_words(maps.film)[state["step"]], state["query"]
    if maps.film is None or isinstance(query, str):
        return said
    now = maps.film[state["step"]]
    label = now[query[0] * maps.trace.patches[1] + query[1]]
    others = (now == label).sum() - 1
    who = place(query).capitalize()
    if label < 0:
        return f"{said} {who} was dropped."
    return f"{said} {who} " + (f"shares its token with {others} more." if others else "has a token of its own.")


def compare(maps: ImageMaps, other: ImageMaps, state: dict[str, Any]) -> str:
    layer, head, query, direction = state["layer"], state["head"], state["query"], state["direction"]
    told, looks = [], []
    for side, at in ((maps, layer), (other, other_layer(maps, other, layer))):
        seen = None if side.trace.why else side.look(at, head, query, direction)
        if seen is None:
            return f"{side.name}: {nothing(side, at, head, query, direction)}"
        best = int(seen.cells.argmax())
        where = f"{spot(best, seen.grid)}{coarse(side, seen.grid)}" if seen.cells[best] else "no patch"
        told.append(f"{where} in {side.name} ({percent(seen.cells[best])})")
        looks.append(seen)
    verb = "looks most at" if direction == "looks at" else "is looked at most by"
    start = f"Layer {layer}, {head_words(head, maps.trace.layers[layer].heads)}: {place(query)} {verb}"
    return f"{start} {told[0]} and {told[1]}; {difference_words(looks[0], looks[1])}."


def other_layer(maps: ImageMaps, other: ImageMaps, layer: int) -> int:
    """The layer of the other model at the same depth."""
    return layer * len(other.trace.layers) // max(1, len(maps.trace.layers))


def difference_words(ours: Look, theirs: Look) -> str:
    if tuple(ours.grid) != tuple(theirs.grid):
        return "their grids differ, so there is no difference map"
    apart = float(np.abs(ours.cells - theirs.cells).max())
    return f"no share differs by more than {percent(apart)}"


def ablate(outcome: dict[str, Any]) -> str:
    """What became of the likeliest class."""
    count, total = outcome["silenced"], outcome["heads"]
    top = outcome["classes"][0]
    before, after = (f"{tenths // 10}.{tenths % 10} %" for tenths in (top["before"], top["after"]))
    was, logit = (f"{tenths / 10:.1f}" for tenths in (top["was"], top["logit"]))
    if not count:
        return f"No head is silenced: the model says {top['name']}, {before} sure (logit {was})."
    said = f"{count} of {total} heads silenced: {top['name']} goes from {before} to {after} (logit {was} to {logit})."
    return said if outcome["answer"] == top["name"] else f"{said} The answer is now {outcome['answer']}."


def sentence(sides: list[ImageMaps], outcome: dict[str, Any], state: dict[str, Any]) -> str:
    """The words of the view that is open; `sides` holds one trace or the two that are compared."""
    if state["view"] == "compare":
        return compare(sides[0], sides[1], state)
    if state["view"] == "ablate":
        return outcome["says"]
    return {"grid": grid, "film": film}.get(state["view"], overlay)(sides[0], state)
