"""What makes the activations of a ViT hard to round: measured, and planted in a model that has too little of it.

A few channels of a LayerNorm's output reach tens of times as far as the others, attention is mostly tiny with a few
large values, and what leaves GELU reaches far up and hardly down: "RepQ-ViT: Scale Reparameterization for Post-Training
Quantization of Vision Transformers", 2022 (S320); "DopQ-ViT: Towards Distribution-Friendly and Outlier-Aware
Post-Training Quantization for Vision Transformers", 2024 (S292). A small model may be tame; `plant` gives it outliers
and leaves its logits as they are: a channel is multiplied where it arises, and divided where it is read.

    print(table(pathologies(model, images)))
    harder = plant(model, ratio=40)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.layers import MLP, Attention, Block
from labkit.mlp import GatedMLP, SplitGatedMLP
from labkit.quant.fold import fold
from labkit.tables import Table
from labkit.vit import ViT

FAR = 4  # times the median range: a channel beyond is an outlier
TINY = 2.0**-8  # less than one step of eight bits over [0, 1]
TAIL = 0.1  # the share of probabilities, the largest, whose fall is measured
PLAIN = (Block, Attention, MLP, GatedMLP, SplitGatedMLP)
PLACES = ("norms", "queries", "values")


@dataclass(frozen=True)
class Pathologies:
    """What one block's activations look like."""

    block: int
    norm1: float  # of what attention reads: the largest range of a channel over the median range
    norm1_far: float  # and the share of channels whose range is more than four times the median
    norm2: float  # the same of what the MLP reads
    norm2_far: float
    tiny: float  # the share of attention probabilities below 2^-8
    largest: float  # of these probabilities
    tail: float  # the share of them that is above p falls about as p^-tail: the smaller, the heavier is the tail
    low: float  # the smallest of the numbers that the last layer of the MLP reads
    high: float  # and the largest
    negative: float  # and the share below zero


@torch.no_grad()
def pathologies(model: ViT, images: Tensor) -> list[Pathologies]:
    """What the activations of each block look like while the model sees these images."""
    if not len(images):
        raise LabkitError("There are no images to look at; pass at least one.")
    seen: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}  # what went in, what came out
    with ExitStack() as hooks:
        for i, (block, _, mlp) in enumerate(_parts(model)):
            for name, layer in (("norm1", block.norm1), ("norm2", block.norm2), ("fc2", mlp.fc2)):
                hooks.enter_context(
                    layer.register_forward_hook(lambda _, x, y, k=(i, name): seen.update({k: (x[0], y)}))
                )
        steps = model.observe(images).steps
    rows = []
    for i, step in enumerate(steps):
        assert step.evidence is not None  # the mixers are attentions
        attn, hidden = step.evidence.attention(), seen[i, "fc2"][0]
        norms = *channel_outliers(seen[i, "norm1"][1]), *channel_outliers(seen[i, "norm2"][1])
        tiny, negative = (float(where.double().mean()) for where in (attn < TINY, hidden < 0))
        ends = float(hidden.min()), float(hidden.max())
        rows.append(Pathologies(i, *norms, tiny, float(attn.max()), tail_exponent(attn), *ends, negative))
    return rows


def table(rows: Sequence[Pathologies]) -> Table:
    """One line for each block."""
    headers = ["block", *(f"norm{i}: {what}" for i in (1, 2) for what in ("widest / median", f"beyond {FAR}x"))]
    headers += ["attention < 2^-8", "largest", "tail", "MLP: min", "max", "< 0"]
    kinds = ["d", ".1f", ".0%", ".1f", ".0%", ".0%", ".3f", ".1f", ".2f", ".1f", ".0%"]
    lines = [[format(value, kind) for value, kind in zip(astuple(row), kinds, strict=True)] for row in rows]
    return Table(headers, lines, [True] * len(headers))


def channel_outliers(x: Tensor) -> tuple[float, float]:
    """Of channels (..., d): the largest range over the median range, and the share beyond four times the median.

    Where most channels are constant, any other is infinitely far beyond them; where all are, none is.
    """
    low, high = x.flatten(0, -2).aminmax(dim=0)
    reach = (high - low).double()
    median, widest = float(reach.median()), float(reach.max())
    ratio = widest / median if median else math.inf if widest else 1.0
    return ratio, float((reach > FAR * median).double().mean())


def tail_exponent(x: Tensor) -> float:
    """Hill's estimate over the largest tenth: where the share above p falls as p^-a, this is a; infinite if all agree.

    Probabilities end at 1, where no power law goes on: it tells tails apart, and is no proof of a law.
    """
    x = x[x > 0].double()
    top = x.topk(math.ceil(TAIL * len(x))).values
    spread = float((top / top[-1:]).log().sum())
    return len(top) / spread if spread else math.inf


@torch.no_grad()
def plant(
    model: ViT,
    ratio: float = 40,
    channels: int = 3,
    seed: int = 0,
    places: Sequence[str] = PLACES[:1],
    offset: float = 0,
) -> ViT:
    """A copy with the same logits in which a few channels reach `ratio` times as far as before; 1 changes nothing.

    "norms" are what attention and MLP read: `channels` outliers each, which `offset` moves up or down by so many of
    their gains. "queries", whose keys shrink as much, and "values" have `channels` in a head, the same in all heads;
    where queries and keys are normalised, the gain of that norm grows.
    """
    if not 1 <= ratio < math.inf:
        raise LabkitError(f"ratio={ratio} makes no outlier; choose a finite number from 1 up, as 40.")
    if not places or not set(places) <= set(PLACES):
        raise LabkitError(f"places={places!r} is not where to plant; choose among {PLACES}.")
    if model.entry is not None or any(getattr(block, "reducer", None) is not None for block in model.blocks):
        raise LabkitError("A token reducer may decide by keys and values; plant first, and attach it to the copy.")
    harder, draw = copy.deepcopy(model), torch.Generator().manual_seed(seed)

    def factors(d: int) -> Tensor:
        if not 1 <= channels < d:
            raise LabkitError(f"channels={channels} of {d} are not a few; choose a number from 1 to {d - 1}.")
        return torch.ones(d, dtype=torch.float64).index_fill(0, torch.randperm(d, generator=draw)[:channels], ratio)

    for block, attn, mlp in _parts(harder, plain=True):
        width, d_head = attn.proj.in_features, attn.proj.in_features // attn.heads
        if "norms" in places:
            for norm, branch, readers in (("norm1", attn, ["qkv"]), ("norm2", mlp, _readers(mlp))):
                side = 2.0 * torch.randint(0, 2, (width,), generator=draw) - 1
                _grow_norm(block, norm, branch, readers, factors(width), offset * side)
        for place, grow in (("queries", _grow_queries), ("values", _grow_values)):
            if place in places:
                grow(attn, factors(d_head))
    return harder


def _grow_norm(
    block: nn.Module, name: str, branch: nn.Module, readers: Sequence[str], factor: Tensor, offset: Tensor
) -> None:
    norm: Any = getattr(block, name)
    gain = getattr(norm, "weight", None)
    shift = -offset * (factor > 1) * (1.0 if gain is None else gain.cpu())
    folded = [fold(norm, getattr(branch, reader), 1 / factor, shift) for reader in readers]
    setattr(block, name, folded[0][0])
    for reader, (_, layer) in zip(readers, folded, strict=True):
        setattr(branch, reader, layer)


def _grow_queries(attn: Attention, factor: Tensor) -> None:
    if attn.position is not None:
        name = type(attn.position).__name__
        raise LabkitError(f'{name} reads queries and keys or turns them; plant in "norms" and "values" here.')
    for part, norm, times in ((0, attn.q_norm, factor), (1, attn.k_norm, 1 / factor)):
        if isinstance(norm, nn.Identity):
            _grow_rows(attn, part, times)
        elif not list(norm.parameters()):
            raise LabkitError('The norm of queries or keys has no gain; plant in "norms" and "values" here.')
        for parameter in norm.parameters():
            parameter.mul_(times.to(parameter))


def _grow_values(attn: Attention, factor: Tensor) -> None:
    if not isinstance(attn.norm, nn.Identity):
        raise LabkitError('A norm stands between values and projection; plant in "norms" and "queries" here.')
    _grow_rows(attn, 2, factor)
    attn.proj.weight.div_(factor.repeat(attn.heads).to(attn.proj.weight))


def _grow_rows(attn: Attention, part: int, factor: Tensor) -> None:
    """The rows of the joint projection that make the queries (0), the keys (1) or the values (2) of all heads."""
    for parameter in attn.qkv.parameters():
        rows = parameter.unflatten(0, (3, attn.heads, -1))[part]
        rows.mul_(factor.to(rows) if rows.ndim == 2 else factor.to(rows)[:, None])


def _parts(model: ViT, plain: bool = False) -> Iterator[tuple[Any, Any, Any]]:
    """Each block, its attention and its MLP; `plain` refuses subclasses, which may read or write more than these do."""
    for i, block in enumerate(model.blocks):
        for part in [block, block.attn, block.mlp] if isinstance(block, Block) else [block]:
            if not isinstance(part, PLAIN) or (plain and type(part) not in PLAIN):
                raise LabkitError(f"Block {i} has a {type(part).__name__}; expected plain attention and an MLP.")
        yield block, block.attn, block.mlp


def _readers(mlp: nn.Module) -> list[str]:
    return ["fc1_g", "fc1_x"] if isinstance(mlp, SplitGatedMLP) else ["fc1"]
