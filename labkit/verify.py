"""Does the pair of data and model teach? Losing tokens or bits must cost accuracy, and care must win it back.

Each demand is a difference of two accuracies on the same held-out images, with its 95 % interval; it holds when
the interval lies on the right side of the demanded number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from labkit import quant, tokens
from labkit.data.batch import ImageSet
from labkit.intervals import paired_difference, wilson
from labkit.token_labels import coverage
from labkit.vit import ViT

KEEP, CUT, MERGES = 0.4, 1, 8  # keep 40 % after the second block; merge 8 pairs in every block but the last


@dataclass(frozen=True)
class Demand:
    """`better` must beat `worse` by at least `points` (or, with `at_most`, by no more than them)."""

    name: str
    better: str
    worse: str
    points: float
    at_most: bool = False

    def judge(self, right: dict[str, Tensor]) -> dict[str, object]:
        difference, low, high = (100 * v for v in paired_difference(right[self.better], right[self.worse]))
        holds = difference <= self.points and low <= self.points if self.at_most else low >= self.points
        return {
            "name": self.name,
            "demand": f"{'<=' if self.at_most else '>='} {self.points:g}",
            "holds": holds,
        } | {"points": round(difference, 1), "low": round(low, 1), "high": round(high, 1)}


DEMANDS = (
    Demand("oracle beats class attention", "oracle", "class attention", 0),
    Demand("class attention beats random", "class attention", "random", 3),
    Demand("random beats least attended", "random", "least attended", 3),
    Demand("merging random pairs costs", "full", "merge random", 3),
    Demand("merging similar pairs is nearly free", "full", "merge similar", 1, at_most=True),
    Demand("3-bit weights: per channel beats per tensor", "W3 per channel", "W3 per tensor", 5),
    Demand("W4A4 min-max costs", "full", "W4A4", 15),
)


@torch.inference_mode()
def hits(model: nn.Module, data: ImageSet, batch: int = 250) -> Tensor:
    """Which images the model gets right, (n,) bool."""
    parts = [data[i : i + batch] for i in range(0, len(data), batch)]
    return torch.cat([model(p.images).argmax(dim=1) == p.labels for p in parts])


def naive(weights: int, activations: int | None = None, per: Literal["tensor", "channel"] = "tensor") -> quant.Recipe:
    """Extremes for ends, one grid for a tensor, the same bits everywhere: what is done before one knows better."""
    return quant.Recipe(weights, activations, attention=activations, ends="same", per=per, symmetric=False)


def settings(model: ViT, calibration: Tensor) -> dict[str, Callable[[ImageSet], nn.Module]]:
    """The models to compare, each made for one batch (the oracle looks at the masks of the batch)."""
    dice = torch.Generator().manual_seed(0)

    def keep(score: tokens.Score) -> Callable[[ImageSet], nn.Module]:
        return lambda _: tokens.attach(model, tokens.Keep(KEEP, score), [CUT])

    def oracle(batch: ImageSet) -> nn.Module:
        assert batch.masks is not None
        inside = coverage(batch.masks, model.grid)
        return tokens.attach(model, tokens.Keep(KEEP, lambda *_: inside), [CUT])

    h, w = model.grid
    rows, columns = torch.arange(h) - (h - 1) / 2, torch.arange(w) - (w - 1) / 2
    middle = -(rows[:, None] ** 2 + columns**2).flatten()[None]  # a photographer's guess: what matters is central
    early = range(len(model.blocks) - 1)
    fixed = {
        "full": model,
        "merge similar": tokens.attach(model, tokens.Merge(MERGES), early),
        "merge random": tokens.attach(model, tokens.Merge(MERGES, dice), early),
        "W8A8": quant.quantize(model, naive(8, 8), calibration),
        "W4A4": quant.quantize(model, naive(4, 4), calibration),
        "W3 per tensor": quant.quantize(model, naive(3)),
        "W3 per channel": quant.quantize(model, naive(3, per="channel")),
    }

    def always(m: nn.Module) -> Callable[[ImageSet], nn.Module]:
        return lambda _: m

    return {k: always(m) for k, m in fixed.items()} | {
        "oracle": oracle,
        "class attention": keep(tokens.class_attention),
        "middle": keep(lambda e, prefix: middle),
        "random": keep(lambda e, prefix: torch.rand(len(e.k), e.k.shape[2] - prefix, generator=dice)),
        "least attended": keep(lambda e, prefix: -tokens.class_attention(e, prefix)),
    }


def verify(model: ViT, data: ImageSet, calibration: Tensor, batch: int = 250) -> tuple[list[dict], list[dict]]:
    """(accuracies with intervals, demands with intervals and verdicts) on `data`."""
    parts = [data[i : i + batch] for i in range(0, len(data), batch)]
    right = {
        name: torch.cat([hits(make(part), part, batch) for part in parts])
        for name, make in settings(model, calibration).items()
    }
    rows = []
    for name, r in right.items():
        low, high = wilson(int(r.sum()), len(r))
        rows.append({"setting": name, "accuracy": r.float().mean().item(), "low": low, "high": high})
    return rows, [demand.judge(right) for demand in DEMANDS]
