"""Silent heads and what that does to the classes, as a still picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from labkit.viz.sheet import TOP, Sheet

if TYPE_CHECKING:
    from labkit.viz.explorer_data import ImageMaps

BLUE = (11, 92, 173)


def ablate(maps: ImageMaps, outcome: dict[str, Any], state: dict[str, Any]) -> Sheet:
    """The heads that are silent on the left, the likeliest classes before and after on the right."""
    layers, classes = maps.trace.layers, outcome["classes"]
    left, silent = 70, {tuple(pair) for pair in state["silenced"]}
    side = max(6.0, min(26.0, 300 / max(info.heads for info in layers) - 3))
    sheet = Sheet(TOP + max(len(layers) * (side + 3), 30 * len(classes)) + 12)
    sheet.text("silent heads are crossed out", 0, 16)
    for layer, info in enumerate(layers):
        top = TOP + layer * (side + 3)
        sheet.text(f"layer {layer}", 0, top + side / 2, 12)
        for head in range(info.heads):
            x, off = left + head * (side + 3), (layer, head) in silent
            sheet.pen.rectangle((x, top, x + side, top + side), fill="white" if off else BLUE, outline=BLUE)
            if off:
                sheet.pen.line((x, top, x + side, top + side), fill="black", width=2)
    name_at, start, length = 380, 490, 200
    low = min(0, *(min(one["was"], one["logit"]) for one in classes))
    wide = max(0, *(max(one["was"], one["logit"]) for one in classes)) - low or 1
    sheet.text("logit (line: with all heads) and probability", name_at, 16)
    for i, one in enumerate(classes):
        top = TOP + 30 * i
        zero, now, was = (start + length * (value - low) / wide for value in (0, one["logit"], one["was"]))
        sheet.text(one["name"][:14], name_at, top + 10, 12)
        sheet.pen.rectangle((start, top, start + length, top + 20), outline=(138, 138, 146))
        sheet.pen.rectangle((min(zero, now), top, max(zero, now), top + 20), fill=BLUE)
        sheet.pen.line((was, top - 3, was, top + 23), fill="black", width=3)
        before, after = (f"{one[when] // 10}.{one[when] % 10} %" for when in ("before", "after"))
        sheet.text(f"{one['logit'] / 10:.1f} · {after} (was {before})", start + length + 10, top + 10, 12)
    return sheet
