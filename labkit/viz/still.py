"""What an explorer shows as a PNG: for pages without a kernel, for slides and for print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.viz.colour import colours
from labkit.viz.explorer_data import cell
from labkit.viz.explorer_words import CHOICES, head_words, other_layer
from labkit.viz.sheet import GAP, ORANGE, TOP, WIDTH, Box, Sheet, cell_box
from labkit.viz.still_outcome import ablate
from labkit.viz.strips import bytes_of, panels, tokens_on

if TYPE_CHECKING:
    from labkit.evidence import Grid
    from labkit.viz.explorer_data import ImageMaps, Look

State = dict[str, Any]


def png(sides: list[ImageMaps], outcome: dict[str, Any], state: State, words: str) -> bytes:
    """The view that is open, with the sentence that says it below."""
    if state["view"] == "compare":
        sheet = compare(sides[0], sides[1], state)
    elif state["view"] == "ablate":
        sheet = ablate(sides[0], outcome, state)
    else:
        sheet = {"grid": grid, "film": film}.get(state["view"], overlay)(sides[0], state)
    return sheet.png(f"{sides[0].caption}. {words}")


def panel(maps: ImageMaps, count: int, most: float = 400) -> tuple[float, float]:
    """Width and height of one of `count` images side by side."""
    h, w = maps.picture.shape[:2]
    width = min((WIDTH - GAP * (count - 1)) / count, most, most * w / h)
    return width, width * h / w


def grey(picture: np.ndarray) -> np.ndarray:
    light = np.rint(picture @ [0.299, 0.587, 0.114]).astype(np.uint8)
    return np.repeat(light[..., None], 3, axis=-1)


def asked(state: State) -> str:
    return CHOICES["direction"][state["direction"]]


def mark(sheet: Sheet, maps: ImageMaps, layer: int, state: State, box: Box) -> None:
    """Outline the cell that asks, in the layer's own grid."""
    if isinstance(state["query"], str) or maps.trace.why:
        return
    info, patches = maps.trace.layers[layer], maps.trace.patches
    own = info.grid if state["direction"] == "looks at" else info.key_grid
    shape: Grid = own if own[0] else patches
    row, column = (cell(at, fine, n) for at, fine, n in zip(state["query"], patches, shape, strict=True))
    sheet.outline(cell_box(box, row, column, shape))


def heat_panel(
    sheet: Sheet, maps: ImageMaps, layer: int, state: State, look: Look | None, box: Box, high: float
) -> None:
    sheet.pixels(grey(maps.picture), box, sharp=False)
    if look is not None and look.cells.max() > 0:
        sheet.heat(colours(look.cells.reshape(look.grid), 0, high), box, state["opacity"])
    if maps.mask is not None:
        sheet.border(maps.mask, box)
    mark(sheet, maps, layer, state, box)


def strongest(maps: ImageMaps, state: State) -> float:
    """The largest share in all heads of all layers, the end of the shared colour scale."""
    every = [maps.heads(i, state["query"], state["direction"]) for i in range(len(maps.trace.layers))]
    heads = [info.heads for info in maps.trace.layers]
    return max((float(seen.cells[:n].max()) for seen, n in zip(every, heads, strict=True) if seen), default=0.0)


def overlay(maps: ImageMaps, state: State) -> Sheet:
    layer, head = state["layer"], state["head"]
    look = None if maps.trace.why else maps.look(layer, head, state["query"], state["direction"])
    w, h = panel(maps, 2)
    left, right = (0, TOP, w, h), (w + GAP, TOP, w, h)
    sheet = Sheet(TOP + h + 64)
    sheet.text("the image", 0, 16)
    sheet.pixels(maps.picture, left, sharp=False)
    mark(sheet, maps, layer, state, left)
    shared = state["scale"] == "shared" and head != "rollout"
    high = 0.0 if look is None else strongest(maps, state) if shared else float(look.cells.max())
    heat_panel(sheet, maps, layer, state, look, right, high)
    if look is None:
        sheet.text("no map", right[0], 16)
        return sheet
    sheet.text(f"{asked(state)}: layer {layer}, {head_words(head, maps.trace.layers[layer].heads)}", right[0], 16)
    what = "share of what the token is made of" if head == "rollout" else "share of attention"
    sheet.bar(right[0], TOP + h + 8, w, 0, high, what)
    return sheet


def grid(maps: ImageMaps, state: State) -> Sheet:
    layers, sort = maps.trace.layers, state["sort"]
    w, h = panel(maps, 1, 190)
    left, most = w + GAP + 62, max((info.heads for info in layers), default=1)
    side = max(8, min(84, (WIDTH - left) / most - 3))
    tall, gap = side * h / w, 3 if sort == "head" else 18
    sheet = Sheet(max(TOP + h + 66, TOP + 22 + len(layers) * (tall + gap)))
    high, box = strongest(maps, state), (0, TOP, w, h)
    sheet.text("the image", 0, 16)
    sheet.pixels(maps.picture, box, sharp=False)
    mark(sheet, maps, state["layer"], state, box)
    shared = state["scale"] == "shared"
    sheet.bar(0, TOP + h + 8, w, 0, high if shared else 1, "share of attention" if shared else "of each map's largest")
    sheet.text(f"{asked(state)}: heads to the right, layers down", w + GAP, 16)
    for layer, info in enumerate(layers):
        seen, top = maps.heads(layer, state["query"], state["direction"]), TOP + 20 + layer * (tall + gap) + gap - 3
        sheet.text(f"layer {layer}", left - 8, top + tall / 2, 12, "rm")
        if seen is None:
            sheet.text("no map", left, top + tall / 2, 12)
            continue
        order = range(info.heads) if sort == "head" else maps.order(layer, sort)
        for i, head in enumerate(order):
            cells = seen.cells[head].reshape(seen.grid)
            spot = (left + i * (side + 3), top, side, tall)
            sheet.pixels(colours(cells, 0, high if shared else float(cells.max())), spot)
            if layer == 0 or sort != "head":
                sheet.text(f"{head}", spot[0] + side / 2, top - 8, 12, "mm")
            if (layer, head) == (state["layer"], state["head"]):
                sheet.outline(spot, ORANGE)
    return sheet


def compare(maps: ImageMaps, other: ImageMaps, state: State) -> Sheet:
    layer, head = state["layer"], state["head"]
    pairs = [(maps, layer), (other, other_layer(maps, other, layer))]
    looks = [s.look(at, head, state["query"], state["direction"]) if not s.trace.why else None for s, at in pairs]
    w, h = panel(maps, 3)
    sheet = Sheet(TOP + h + 64)
    high = max((float(look.cells.max()) for look in looks if look), default=0.0)
    for i, ((side, at), look) in enumerate(zip(pairs, looks, strict=True)):
        sheet.text(side.name, i * (w + GAP), 16)
        heat_panel(sheet, side, at, state, look, (i * (w + GAP), TOP, w, h), high)
    words = head_words(head, maps.trace.layers[layer].heads) if maps.trace.layers else ""
    sheet.bar(0, TOP + h + 8, 2 * w + GAP, 0, high, f"{asked(state)}: layer {layer}, {words}; one scale for both")
    third = (2 * (w + GAP), TOP, w, h)
    sheet.pixels(grey(maps.picture), third, sharp=False)
    first, second = looks
    if first is None or second is None or tuple(first.grid) != tuple(second.grid):
        sheet.text("no difference map", third[0], 16)
        return sheet
    gap = (second.cells - first.cells).reshape(first.grid)
    most = max(1e-9, float(np.abs(gap).max()))
    sheet.text(f"{other.name} minus {maps.name}", third[0], 16)
    sheet.heat(colours(gap, -most, most, "PuOr"), third, state["opacity"])
    mark(sheet, maps, layer, state, third)
    sheet.bar(third[0], TOP + h + 8, w, -most, most, "change of the share", "PuOr")
    return sheet


def film(maps: ImageMaps, state: State) -> Sheet:
    """Every step side by side, the one that is open in an orange frame."""
    labels = maps.film if maps.film is not None else np.arange(np.prod(maps.trace.patches))[None]
    sheet, boxes = panels(len(labels), maps.picture.shape)
    for step, (box, now) in enumerate(zip(boxes, labels, strict=True)):
        sheet.pixels(bytes_of(tokens_on(maps.picture / 255, now, maps.trace.patches)), box, sharp=False)
        if step == state["step"]:
            sheet.outline(box, ORANGE)
        sheet.text(
            "at the end" if step == len(labels) - 1 else f"before layer {step}", box[0], box[1] + box[3] + 14, 12
        )
        sheet.text(f"{len(np.unique(now[now >= 0]))} tokens", box[0], box[1] + box[3] + 31, 12)
    return sheet
