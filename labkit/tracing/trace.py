"""One recorded forward pass: the attention of every layer, the tokens, and where each token came from.

Our own ViT hands over what it computed; any other torch model is watched. Every map, film and score reads the
trace, never the model's insides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from labkit.errors import LabkitError
from labkit.evidence import Grid, provenance
from labkit.tracing.keeping import Kept, megabytes
from labkit.tracing.layouts import Arrange, Layer
from labkit.tracing.places import Each, inside, put_in_place, through_tokens

BLIND = (
    "No softmax attention ran where it could be seen in this {name}: linear attention, pooling and convolutions keep "
    "no map of who looks at whom, so there is nothing to draw."
)


def bytes_of(tensors: Iterable[Tensor | None]) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


@dataclass(eq=False)
class Own:
    """What only a labkit.ViT tells: its tokens, and how its reducers made fewer of them."""

    tokens: list[Tensor]  # before the first block and after each
    maps: list[Tensor | None]  # of each block's reducer, (b, n_out, n)
    sizes: list[Tensor | None]  # after each block
    blocks: list[int]  # the block of each recorded layer
    prefix: int
    entry: Tensor | None = None  # the map of the reducer in front of the first block

    @property
    def nbytes(self) -> int:
        return bytes_of([*self.tokens, *self.maps, *self.sizes])

    def provenance(self, block: int, patches: int) -> Tensor:
        """(b, tokens, patches) of the tokens that enter a block."""
        return provenance([self.entry, *self.maps[:block]], patches, self.prefix, len(self.tokens[0]))


@dataclass(eq=False, repr=False)
class Trace:
    """`attention[l]` (b, heads, [windows,] queries, keys), `provenance[l]` (b, tokens, patches), `tokens`, `logits`."""

    model_name: str
    images: Tensor
    logits: Tensor
    layers: list[Layer]
    kept: list[Kept]
    patches: Grid  # the finest grid: the columns of provenance
    skipped: int = 0  # attentions that ran and were not asked for
    own: Own | None = None  # what only a labkit.ViT tells
    graph: list[list[Tensor]] | None = None  # with grads=True: the maps that the logits were computed from
    arrange: list[Arrange] = field(default_factory=list)  # from such a map to `attention[l]`

    @property
    def why(self) -> str:
        """Why there is no map; empty when there is one."""
        return "" if self.layers else BLIND.format(name=self.model_name)

    @property
    def attention(self) -> Sequence[Tensor]:
        return Each(len(self.layers), lambda layer: self.kept[layer].maps())

    @property
    def provenance(self) -> Sequence[Tensor]:
        """Which patches are in each token that enters layer l; the last entry is what leaves the model's last block."""
        return Each(len(self.layers) + 1, self._provenance)

    @property
    def tokens(self) -> list[Tensor]:
        """The tokens before the first block and after each block, (b, n, d)."""
        return self._ours().tokens

    @property
    def step_maps(self) -> list[Tensor | None]:
        """For each block the map (b, n_out, n) of its token reducer, or None."""
        return self._ours().maps

    @property
    def sizes(self) -> list[Tensor | None]:
        """For each block, how many patches each token that leaves it stands for; None while all are 1."""
        return self._ours().sizes

    @property
    def nbytes(self) -> int:
        return sum(kept.nbytes for kept in self.kept) + (0 if self.own is None else self.own.nbytes)

    def gradients(self, target: Tensor | int | None = None) -> list[Tensor]:
        """d logit[target] / d attention, layer by layer, where the maps are; by default of the predicted class."""
        if self.graph is None:
            raise LabkitError("This trace kept no gradients; record it with trace(model, images, grads=True).")
        chosen = self.logits.argmax(dim=1) if target is None else torch.as_tensor(target, device=self.logits.device)
        with torch.enable_grad():
            score = self.logits.gather(1, chosen.expand(len(self.logits))[:, None]).sum()
        flat = [attn for parts in self.graph for attn in parts]
        found = iter(torch.autograd.grad(score, flat, retain_graph=True, materialize_grads=True) if flat else ())
        return [self._arranged(layer, [next(found).cpu() for _ in parts]) for layer, parts in enumerate(self.graph)]

    def rows(self, layer: int, image: int, queries: slice | Sequence[int] = slice(None)) -> Tensor:
        """Where the chosen queries look, on the layer's own grids: (heads, queries, key_prefix + key cells).

        Queries are numbered with the prefix tokens first. A patch that was dropped has a row of zeros; a merged one
        has the row of the token it is in, and attention to a merged token is spread over the patches inside it.
        """
        info, image = self.layers[layer], range(len(self.images))[image]
        if info.kind in ("channel", "unknown"):
            raise LabkitError(info.sentence())
        attn = self.kept[layer].maps(slice(image, image + 1))[0]
        if self.own is not None:
            return through_tokens(attn, self.provenance[layer][image], info.prefix, queries)
        if info.windows is None or info.key_windows is None:
            return attn[:, queries]
        return put_in_place(attn, info.windows, info.key_windows, (info.queries, info.keys), queries)

    def _arranged(self, layer: int, parts: list[Tensor]) -> Tensor:
        return torch.cat([self.arrange[layer](part) for part in parts], dim=1).detach()

    def _ours(self) -> Own:
        if self.own is None:
            raise LabkitError(
                f"{self.model_name} was watched from outside, which shows its attention but not its tokens; "
                "for a plain ViT of timm, trace labkit.ViT.from_timm(model) instead."
            )
        return self.own

    def _provenance(self, layer: int) -> Tensor:
        if self.own is not None:
            block = self.own.blocks[layer] if layer < len(self.layers) else len(self.own.maps)
            return self.own.provenance(block, math.prod(self.patches))
        info = self.layers[min(layer, len(self.layers) - 1)]
        cells, prefix = max((info.grid, info.prefix), (info.key_grid, info.key_prefix), key=lambda g: math.prod(g[0]))
        if not math.prod(cells):
            raise LabkitError(info.sentence())
        return inside(cells, self.patches, prefix).expand(len(self.images), -1, -1)

    def __repr__(self) -> str:
        n = len(self.images)
        what = self.why or f"{len(self.layers)} layers, {megabytes(self.nbytes)}"
        return f"Trace({self.model_name}, {n} image{'s' * (n != 1)}: {what})"
