"""An image's maps as one piece of bytes for the browser: a JSON header, then arrays of numbers, never lists of them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from PIL import Image

from labkit.viz.colour import table
from labkit.viz.explorer_data import SORTS, ImageMaps, Query
from labkit.viz.explorer_maps import LayerMaps, drawable, quantise
from labkit.viz.explorer_words import CHOICES, KEYS, SORTED, film_words, sent
from labkit.viz.sheet import border

PIXELS = 512  # the longer side of an image that travels


def bundle(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> bytes:
    """uint32 length, JSON header, arrays; the header's "arrays" says (type, offset, shape) of each."""
    where, parts, offset = {}, [], 0
    for name, array in arrays.items():
        data = np.ascontiguousarray(array).tobytes()
        where[name] = (array.dtype.str[1:], offset, array.shape)
        parts += [data, bytes(-len(data) % 8)]
        offset += len(data) + len(parts[-1])
    text = json.dumps({**header, "arrays": where}).encode()
    text += b" " * (-(len(text) + 4) % 8)  # a typed array begins at a multiple of its item's size
    return b"".join([len(text).to_bytes(4, "little"), text, *parts])


def header(maps: ImageMaps) -> dict[str, Any]:
    layers = [
        {
            "name": info.name,
            "says": info.sentence(),
            "heads": info.heads,
            "rollout": maps.rolls,
            "asks": (info.prefix, info.grid),
            "keys": (info.key_prefix, info.key_grid),
            "names": info.prefix_names,
            "drawn": drawable(info),
            "served": served,
        }
        for info, served in zip(maps.trace.layers, maps.served, strict=True)
    ]
    return {
        "image": maps.image,
        "name": maps.name,
        "caption": maps.caption,
        "why": maps.trace.why,
        "patches": [max(1, n) for n in maps.trace.patches],
        "names": maps.names(),
        "layers": layers,
        "filmWords": film_words(maps.film),
        "choices": CHOICES,
        "sorted": SORTED,
        "help": f"{KEYS} {sent(maps.nbytes, any(maps.served))}",
    }


def pack(maps: ImageMaps) -> bytes:
    """All that the browser needs; rows of served layers excepted."""
    arrays = {"pixels": shrunk(maps.picture), "cividis": table("cividis"), "PuOr": table("PuOr")}
    if maps.mask is not None:
        arrays["border"] = border(maps.mask) * np.float32(arrays["pixels"].shape[0] / len(maps.mask))
    if maps.film is not None:
        arrays["film"] = maps.film
    for i, (info, served) in enumerate(zip(maps.trace.layers, maps.served, strict=True)):
        arrays[f"habits{i}"] = maps.habits[i]
        arrays |= {f"{sort}{i}": maps.order(i, sort) for sort in SORTS}
        if drawable(info) and not served:
            arrays |= parts(maps.maps(i), i)
    return bundle(header(maps), arrays)


def answer(maps: ImageMaps, query: Query, direction: str) -> bytes:
    """The rows or columns of the served layers, for one query."""
    arrays: dict[str, np.ndarray] = {}
    for i, served in enumerate(maps.served):
        seen = maps.heads(i, query, direction) if served else None
        if seen is not None:
            shares, scales = quantise(seen.cells)
            one = LayerMaps(shares[:, None], scales[:, None], seen.extra.astype(np.float32)[:, None])
            arrays |= parts(one, i)
    return bundle({"image": maps.image, "query": query, "back": direction == "looked at by"}, arrays)


def parts(maps: LayerMaps, layer: int) -> dict[str, np.ndarray]:
    windows = {} if maps.windows is None else {f"windows{layer}": maps.windows}
    return {f"shares{layer}": maps.shares, f"scales{layer}": maps.scales, f"prefix{layer}": maps.prefix, **windows}


def shrunk(picture: np.ndarray) -> np.ndarray:
    """At most PIXELS on its longer side."""
    h, w = picture.shape[:2]
    if max(h, w) <= PIXELS:
        return picture
    to = max(1, round(w * PIXELS / max(h, w))), max(1, round(h * PIXELS / max(h, w)))
    return np.asarray(Image.fromarray(picture).resize(to, Image.Resampling.BOX))
