"""Where a map of attention lies on the image: which query and which key belongs to which cell of which grid.

The shape of a map, the grids that were seen before it and what its module says tell how the model cut its tokens:
all of them, windows, fewer keys, one query for all, or channels, which lie nowhere. Where they do not tell, the
layout is unknown: no picture is better than a wrong one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from einops import rearrange
from torch import Tensor, nn

from labkit.evidence import Grid
from labkit.tracing.capture import Call, axis_of_heads
from labkit.tracing.windows import Cut, mask_units, partition

Kind = Literal["self", "windowed", "reduced", "class", "channel", "unknown"]
CHANNEL = {"XCA", "CrossCovarianceAttn", "ChannelAttention", "ChannelAttentionV2"}
CONTEXT = {"LinearSelfAttention"}  # a softmax that weighs tokens for one summary; no token asks
# What models call the tokens that stand before the patches, and what they are.
PREFIX = {
    **dict.fromkeys(("cls_token", "class_token", "class_embedding"), "class"),
    **dict.fromkeys(("dist_token", "distillation_token"), "distillation"),
    **dict.fromkeys(("reg_token", "register_tokens", "storage_tokens"), "register"),
}


@dataclass(frozen=True, eq=False)
class Layer:
    """What one recorded map is: `heads` maps from the tokens of one grid to the tokens of another."""

    name: str
    kind: Kind
    heads: int
    grid: Grid = (0, 0)  # of the queries; (0, 0) where no patch asks
    key_grid: Grid = (0, 0)
    prefix: int = 0  # queries that are no patches; they come first
    key_prefix: int = 0
    prefix_names: tuple[str, ...] = ()
    windows: Tensor | None = None  # (windows, members) → cell of the query grid, -1 where the window is padded
    key_windows: Tensor | None = None  # the same for the keys

    @property
    def queries(self) -> int:
        return self.prefix + math.prod(self.grid)

    @property
    def keys(self) -> int:
        return self.key_prefix + math.prod(self.key_grid)

    def sentence(self) -> str:
        """What the map is, for a reader."""
        h, w = self.grid
        kh, kw = self.key_grid
        heads = f"{self.name}, {self.heads} head{'s' * (self.heads != 1)}"
        if self.kind == "channel":
            return f"{heads}: attention between channels; it lies nowhere on the image, so nothing is drawn."
        if self.kind == "unknown":
            return f"{heads}: how its tokens lie on the image is not known, so nothing is drawn."
        if self.kind == "class":
            return f"{heads}: one query asks for the whole image; it looks at {kh} x {kw} cells."
        if self.windows is not None:
            n, members = self.windows.shape
            lost = "; windows reach beyond the image, where some attention is lost" if (self.windows < 0).any() else ""
            return f"{heads}: each of {h} x {w} cells looks inside its window ({n} windows of {members} cells{lost})."
        if self.kind == "reduced":
            size = "larger" if kh * kw < h * w else "smaller"
            return f"{heads}: each of {h} x {w} cells looks at {kh} x {kw} {size} ones."
        return f"{heads}: each of {h} x {w} cells looks at all of them."


Arrange = Callable[[Tensor], Tensor]  # a map as it was computed → (b, heads, [windows,] queries, keys)


def read(call: Call, model: nn.Module, batch: int, size: Grid) -> tuple[Layer, Arrange]:
    """What the map of this call is, and how to arrange it; `size` is the image's."""
    chain, seen = list(ancestors(model, call)), call.seen.of(size)
    *lead, q, k = call.shape
    axes, heads, count = split(lead, call.owner, batch)
    if type(call.owner).__name__ in CHANNEL:
        return Layer(call.name, "channel", heads), lambda raw: raw
    if axes is None or type(call.owner).__name__ in CONTEXT:
        return Layer(call.name, "unknown", heads), lambda raw: raw

    def unfold(raw: Tensor) -> Tensor:
        return rearrange(raw.reshape(batch, -1, q, k), axes, h=heads, w=count)

    unroll = next((module.unroll for module in chain if hasattr(module, "unroll")), None)
    if unroll is not None:
        cut = mask_units(unroll, count, q, k)
    else:
        cut = partition(chain, seen, count, k) if q == k else None
    if cut is not None:
        return windowed(call.name, heads, cut, unfold)
    headless = len(lead) == 1 and q not in (1, k)  # a gate or a mixture: no token asks another
    if count == 1 and unroll is None and not headless and seen.shift == (0, 0):
        grids = seen.grids if call.seen.grids else tuple(divisions(size))
        if (layer := whole(call, heads, grids, chain, model)) is not None:
            return layer, lambda raw: unfold(raw)[:, :, 0]
    return Layer(call.name, "unknown", heads), lambda raw: raw


def ancestors(model: nn.Module, call: Call) -> Iterator[Any]:
    """The module that attended and all those around it; the model itself is the last."""
    yield call.owner
    path = "" if call.owner in (None, model) else call.name.partition("[")[0]
    while path:
        path = path.rpartition(".")[0]
        yield model.get_submodule(path)


def split(lead: Sequence[int], owner: Any, batch: int) -> tuple[str | None, int, int]:
    """How the leading axes of a map hold batch, heads and windows: (pattern, heads, windows)."""
    if not 1 <= len(lead) <= 3 or lead[0] % batch or (len(lead) == 3 and lead[0] != batch):
        return None, 1, 1
    axis = axis_of_heads(len(lead), owner)
    if axis == 1 and len(lead) == 3:
        return "b (h w) q k -> b h w q k", lead[1], lead[2]
    heads = 1 if axis is None else lead[axis]
    return "b (w h) q k -> b h w q k", heads, math.prod(lead) // batch // heads


def windowed(name: str, heads: int, cut: Cut, unfold: Arrange) -> tuple[Layer, Arrange]:
    if not cut.whole:
        return Layer(name, "windowed", heads, cut.grid, cut.key_grid, 0, 0, (), cut.windows, cut.key_windows), unfold
    rows, columns = cut.windows[0].argsort()[:, None], cut.key_windows[0].argsort()  # one window: order its cells
    kind: Kind = "self" if cut.grid == cut.key_grid else "reduced"
    return Layer(name, kind, heads, cut.grid, cut.key_grid), lambda raw: unfold(raw)[:, :, 0][..., rows, columns]


def whole(call: Call, heads: int, grids: Sequence[Grid], chain: list[Any], model: nn.Module) -> Layer | None:
    """All tokens at once: as many queries as keys, fewer of one of them, or one query alone."""
    q, k = call.shape[-2:]
    told = next((module.num_prefix_tokens for module in chain if hasattr(module, "num_prefix_tokens")), 0)
    for prefix in dict.fromkeys((told, len(prefix_tokens(model)), 0, 1)):
        key_grid = fit(k - prefix, (*grids, (1, 1)))
        grid = (0, 0) if q == 1 else fit(q - prefix, grids)
        if key_grid is None or grid is None:
            continue
        names = prefix_names(model, max(prefix, 1) if q == 1 else prefix)
        if q == 1:
            return Layer(call.name, "class", heads, grid, key_grid, 1, prefix, names)
        kind: Kind = "self" if grid == key_grid else "reduced"
        return Layer(call.name, kind, heads, grid, key_grid, prefix, prefix, names)
    return None


def fit(n: int, grids: Sequence[Grid]) -> Grid | None:
    """The grid of n cells."""
    return next((grid for grid in grids if math.prod(grid) == n), None)


def divisions(size: Grid) -> Iterator[Grid]:
    """The grids that a stride cuts the image into without a rest."""
    for stride in range(1, math.gcd(*size) + 1):
        if size[0] % stride == 0 and size[1] % stride == 0:
            yield size[0] // stride, size[1] // stride


def prefix_names(model: nn.Module, prefix: int) -> tuple[str, ...]:
    """What the tokens before the patches are, as far as the names of the model's parameters tell."""
    names = prefix_tokens(model)
    if len(names) == prefix:
        return names
    return ("class",) if prefix == 1 else tuple(f"token {i + 1}" for i in range(prefix))


def prefix_tokens(model: nn.Module) -> tuple[str, ...]:
    """The tokens that a model has beside its patches, in the usual order: class, distillation, registers."""
    count = dict.fromkeys(PREFIX.values(), 0)
    for name, parameter in model.named_parameters():
        if (token := PREFIX.get(name.rpartition(".")[2])) is not None:
            count[token] += parameter.shape[-2] if parameter.ndim > 1 else 1
    registers = tuple(f"register {i + 1}" for i in range(count.pop("register")))
    return (*(token for token, n in count.items() for _ in range(n)), *registers)
