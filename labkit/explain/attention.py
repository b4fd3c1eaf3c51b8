"""From attention to a map of the image: what one layer looks at, and what reaches the head through all layers.

Rollout multiplies the layers, each half attention and half the residual path: "Quantifying Attention Flow in
Transformers", 2020. The gradient variant counts only the attention that raises the class.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.explain.patches import Target
from labkit.tracing.layouts import Layer
from labkit.tracing.trace import Trace
from labkit.vit import ViT

Fusion = Literal["mean", "max", "min"]
Reader = Literal["class", "patches"]  # what the head of the model reads: one token, or the mean of the patches
Reductions = Sequence[Tensor | None]  # for each layer, which of its tokens became which of the next: (b, n_out, n)


def class_rows(trace: Trace, layer: int = -1, reader: Reader | None = None) -> Tensor:
    """(b, heads, rows, columns): where one layer looks from, on its grid of keys.

    The class token looks; where there is none, the mean of all patches that are still alive.
    """
    layers = _layers(trace)
    if not -len(layers) <= layer < len(layers):
        raise LabkitError(f"There is no layer {layer}; this trace has {len(layers)}, counted from 0.")
    number, info = layer % len(layers), layers[layer]
    query = _query(info, reader)
    rows = torch.stack([trace.rows(number, image, query) for image in range(len(trace.images))])
    alive = (rows.sum(dim=-1, keepdim=True) > 0).sum(dim=-2).clamp(min=1)
    return (rows.sum(dim=-2) / alive)[..., info.key_prefix :].unflatten(-1, info.key_grid)


def class_row(
    trace: Trace, layer: int = -1, head: int | None = None, fusion: Fusion = "mean", reader: Reader | None = None
) -> Tensor:
    """(b, rows, columns): the same for one head, or for all of them fused."""
    rows = class_rows(trace, layer, reader)
    if head is None:
        return fuse(rows, fusion)
    if not -rows.shape[1] <= head < rows.shape[1]:
        raise LabkitError(f"There is no head {head}; this layer has {rows.shape[1]}, counted from 0.")
    return rows[:, head]


def fuse(attn: Tensor, fusion: Fusion = "mean") -> Tensor:
    """Heads (b, heads, ...) into one (b, ...)."""
    if fusion not in ("mean", "max", "min"):
        raise LabkitError(f'fusion={fusion!r} is unknown; choose "mean", "max" or "min".')
    return attn.mean(dim=1) if fusion == "mean" else getattr(attn, f"a{fusion}")(dim=1)


def drop_weakest(attn: Tensor, discard: float) -> Tensor:
    """Zeros in place of the `discard` share of each row that is smallest."""
    if not 0 <= discard < 1:
        raise LabkitError(f"discard={discard} is not a share that leaves something; expected 0 <= discard < 1.")
    weakest = attn.argsort(dim=-1)[..., : int(discard * attn.shape[-1])]
    return attn.scatter(-1, weakest, 0.0)


def with_residual(attn: Tensor) -> Tensor:
    """Half of what a token becomes is itself, half is what it attends to, (b, n, n); every row sums to 1.

    A row of zeros attends to nothing: that token stays itself.
    """
    itself = torch.eye(attn.shape[-1]).to(attn).expand_as(attn)
    total = attn.sum(dim=-1, keepdim=True)
    return (torch.where(total > 0, attn / total, itself) + itself) / 2


def flow(mixes: Iterable[Tensor], reductions: Reductions) -> Tensor:
    """(b, n_last, n_first): the product of the layers' mixes (b, n, n), the first one rightmost."""
    total = None
    for mix, reduction in zip(mixes, reductions, strict=True):
        total = mix if total is None else mix @ total
        total = total if reduction is None else reduction.to(total) @ total
    if total is None:
        raise LabkitError("There is no layer to follow the attention through.")
    return total


def rollout_matrix(
    attns: Sequence[Tensor], reductions: Reductions | None = None, fusion: Fusion = "mean", discard: float = 0.0
) -> Tensor:
    """How much of each first token (columns) is in each last one (rows); `attns` are (b, heads, n, n)."""
    mixes = (with_residual(drop_weakest(fuse(attn, fusion), discard)) for attn in attns)
    return flow(mixes, reductions or [None] * len(attns))


def helpful(attn: Tensor, gradient: Tensor) -> Tensor:
    """(b, n, n): attention times the gradient of the class score, where positive; the mean over heads."""
    return (attn * gradient.to(attn)).clamp(min=0).mean(dim=1)


def gradient_rollout_matrix(
    attns: Sequence[Tensor], gradients: Sequence[Tensor], reductions: Reductions | None = None, discard: float = 0.0
) -> Tensor:
    """The same with the attention that helps the class, each layer with its own gradient."""
    pairs = zip(attns, gradients, strict=True)
    mixes = (with_residual(drop_weakest(helpful(attn, gradient), discard)) for attn, gradient in pairs)
    return flow(mixes, reductions or [None] * len(attns))


def rollout(trace: Trace, fusion: Fusion = "mean", discard: float = 0.0, reader: Reader | None = None) -> Tensor:
    """(b, rows, columns): how much of each patch has reached what the head reads."""
    return read_out(trace, rollout_matrix(trace.attention, reductions(trace), fusion, discard), reader)


def gradient_rollout(trace: Trace, target: Target = None, discard: float = 0.0, reader: Reader | None = None) -> Tensor:
    """The same along the attention that raises the class; needs a trace with `grads=True`."""
    matrix = gradient_rollout_matrix(trace.attention, trace.gradients(target), reductions(trace), discard)
    return read_out(trace, matrix, reader)


def reductions(trace: Trace) -> Reductions:
    """What the token reducers did after each layer; a sentence where layers cannot be multiplied."""
    layers = _layers(trace)
    steps = [None] * len(layers) if trace.own is None else trace.step_maps
    other = [layer for layer in layers if layer.kind != "self" or layer.windows is not None]
    if other:
        raise LabkitError(
            f"Attention is followed only where every token may look at every other. {other[0].sentence()}"
        )
    if trace.skipped or len(steps) != len(layers):
        raise LabkitError(
            f"This trace has the attention of {len(layers)} of {max(len(steps), len(layers) + trace.skipped)} blocks, "
            "and following it needs all; record it without layers=…, on a model whose blocks all attend."
        )
    if len({layer.queries for layer in layers}) > 1:
        raise LabkitError("Attention cannot be followed through layers with grids of different sizes.")
    return steps


def read_out(trace: Trace, matrix: Tensor, reader: Reader | None = None) -> Tensor:
    """From (b, last tokens, first tokens) to the map (b, rows, columns) of the tokens that the head reads."""
    row = matrix[:, _query(trace.layers[-1], reader)].mean(dim=1)
    return (row[:, None] @ trace.provenance[0].to(row))[:, 0].unflatten(1, trace.patches)


def reader_of(model: nn.Module) -> Reader | None:
    """What the head of our ViT reads; None for a model that does not say."""
    return None if not isinstance(model, ViT) else "class" if model.pool == "class" else "patches"


def _query(layer: Layer, reader: Reader | None) -> slice:
    """The tokens that ask for the image: the class token, or all patches."""
    if reader is None:
        reader = "class" if "class" in layer.prefix_names else "patches"
    if reader == "patches":
        return slice(layer.prefix, None)
    if "class" not in layer.prefix_names:
        raise LabkitError(f'{layer.name} has no class token; choose reader="patches".')
    place = layer.prefix_names.index("class")
    return slice(place, place + 1)


def _layers(trace: Trace) -> list[Layer]:
    if trace.why:
        raise LabkitError(trace.why)
    return trace.layers
