"""The maps of one layer as bytes: one for each share of attention, and a float32 scale for each row.

`shares * scales / 255` is within 0.2 % of the row's largest share. Attention to tokens that are no patches is kept
apart in float32, so that a class token that is given almost everything does not flatten the map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from labkit.explain.attention import with_residual
from labkit.explain.heads import distances, entropy, mean_distance

if TYPE_CHECKING:
    from labkit.tracing.layouts import Layer
    from labkit.tracing.trace import Trace

SAMPLE = 256  # at most so many queries, evenly spaced, make a head's mean entropy and mean distance


def quantise(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (..., k) as uint8 and their scales (...) as float32: the largest share of a row becomes 255."""
    scales = rows.max(axis=-1, initial=0).astype(np.float32)
    unit = 255 / np.where(scales > 0, scales, 1)
    return np.rint(rows * unit[..., None]).astype(np.uint8), scales


@dataclass
class LayerMaps:
    """Head h, query q gives key cell k the share `shares[h, q, k] * scales[h, q] / 255`.

    With `windows` (windows, members), queries are the members of one window after another, and k is a member.
    """

    shares: np.ndarray  # uint8 (heads, queries, key cells or members)
    scales: np.ndarray  # float32 (heads, queries)
    prefix: np.ndarray  # float32 (heads, queries, keys that are no patches)
    windows: np.ndarray | None = None

    def values(self, queries: int | slice, keys: int | slice = slice(None)) -> np.ndarray:
        """float64 (heads, ...), computed in the order in which the browser computes them."""
        scales = self.scales[:, queries].astype(float)
        shares = self.shares[:, queries, keys].astype(float)
        return shares * (scales[:, None] if shares.ndim > scales.ndim else scales) / 255

    def row(self, query: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
        """Where a query looks: (heads, key cells) and (heads, key prefix)."""
        if self.windows is None:
            return self.values(query), self.prefix[:, query].astype(float)
        window, slot = self.slot(query)
        return self.spread(self.values(slot), window, cells)

    def column(self, key: int, prefix: int, key_prefix: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
        """Who looks at a key: (heads, query cells) and (heads, query prefix)."""
        if self.windows is not None:
            window, slot = self.slot(key)
            members = self.windows.shape[1]
            queries = slice(window * members, (window + 1) * members)
            return self.spread(self.values(queries, slot % members), window, cells)
        everyone = slice(None)
        values = self.prefix[..., key].astype(float) if key < key_prefix else self.values(everyone, key - key_prefix)
        return values[:, prefix:], values[:, :prefix]

    def slot(self, cell: int) -> tuple[int, int]:
        """The window of a cell, and its number among all members of all windows."""
        assert self.windows is not None
        slot = int((self.windows.ravel() == cell).argmax())
        return slot // self.windows.shape[1], slot

    def spread(self, values: np.ndarray, window: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
        """Values of the members of a window (heads, members), put in place on the grid."""
        assert self.windows is not None
        out, members = np.zeros((len(values), cells)), self.windows[window]
        out[:, members[members >= 0]] = values[:, members >= 0]
        return out, np.zeros((len(values), 0))


def drawable(layer: Layer) -> bool:
    return layer.kind not in ("channel", "unknown")


def compact(layer: Layer) -> bool:
    """Do the queries of a window look at that same window, so that only its members need to be kept?"""
    if layer.windows is None or layer.key_windows is None:
        return False
    return layer.grid == layer.key_grid and torch.equal(layer.windows, layer.key_windows)


def size(layer: Layer, rollout: bool) -> int:
    """Bytes of the maps of a layer, before they are made."""
    if not drawable(layer):
        return 0
    width = layer.windows.shape[1] if compact(layer) and layer.windows is not None else math.prod(layer.key_grid)
    return (layer.heads + rollout) * layer.queries * (width + 4 * layer.key_prefix + 4)


def layer_maps(
    trace: Trace, layer: int, image: int, rollout: np.ndarray | None, queries: slice | Sequence[int] = slice(None)
) -> LayerMaps:
    """The maps of some queries; the rollout (queries, keys), where there is one, is the last head."""
    info = trace.layers[layer]
    if compact(info):
        assert info.windows is not None
        windows = info.windows.cpu().numpy().astype(np.int32)
        native = trace.kept[layer].maps(slice(image, image + 1))[0].cpu().numpy()  # (heads, windows, members, members)
        native = np.where(windows[None, :, None] >= 0, native, 0).reshape(len(native), -1, windows.shape[1])
        return LayerMaps(*quantise(native), np.zeros((*native.shape[:2], 0), np.float32), windows)
    rows = trace.rows(layer, image, queries).cpu().numpy()
    if rollout is not None:
        rows = np.concatenate([rows, rollout[None, queries]])
    shares, scales = quantise(rows[..., info.key_prefix :])
    return LayerMaps(shares, scales, rows[..., : info.key_prefix].astype(np.float32))


def can_roll(trace: Trace) -> bool:
    """Does every layer mix the same tokens, so that the layers may be multiplied?"""
    if trace.skipped:
        return False
    if trace.own is not None:
        return len(trace.own.blocks) == len(trace.own.maps)
    places = {(layer.kind, layer.grid, layer.prefix, layer.key_prefix) for layer in trace.layers}
    return len(places) == 1 and trace.layers[0].kind == "self"


def rollouts(trace: Trace, image: int) -> list[np.ndarray]:
    """For each layer (queries, keys): how much of each first token is in what a query becomes there."""
    found: list[np.ndarray] = []
    total = None if trace.own is None or trace.own.entry is None else trace.own.entry[image]
    for layer, info in enumerate(trace.layers):
        attn = trace.kept[layer].maps(slice(image, image + 1)).mean(dim=1)
        total = with_residual(attn)[0] if total is None else with_residual(attn)[0] @ total
        if trace.own is None:
            found.append(total.cpu().numpy())
            continue
        inside = trace.provenance[layer][image].to(total)
        asks = torch.zeros(info.queries, len(inside)).to(total)
        asks[: info.prefix, : info.prefix] = torch.eye(info.prefix)
        asks[info.prefix :] = inside.T / inside.T.sum(dim=-1, keepdim=True).clamp_min(1e-12)
        found.append((asks @ total).cpu().numpy())
        step = trace.step_maps[trace.own.blocks[layer]]
        total = total if step is None else step[image].to(total) @ total
    return found


def habits(trace: Trace, layer: int, image: int) -> np.ndarray:
    """float32 (2, heads): mean entropy of a head's rows in nats, and mean distance that it looks over in pixels."""
    info, height, width = trace.layers[layer], trace.images.shape[-2], trace.images.shape[-1]
    queries = list(range(0, info.queries, -(-info.queries // SAMPLE)))
    rows = trace.rows(layer, image, queries)
    nats = entropy(rows[None, :, rows[0].sum(dim=-1) > 0])[0]
    asking = [(i, query - info.prefix) for i, query in enumerate(queries) if query >= info.prefix]
    if not asking:
        return torch.stack([nats, torch.zeros_like(nats)]).cpu().numpy()
    at, cells = zip(*asking, strict=True)
    apart = distances(info.grid, info.key_grid, (height, width))[list(cells)]
    far = mean_distance(rows[:, list(at), info.key_prefix :], apart)
    return torch.stack([nats, far]).cpu().numpy()
