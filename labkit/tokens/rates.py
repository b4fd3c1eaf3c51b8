"""Learn how many tokens each block keeps: a softmax over the counts gives the rank of every token a probability.

"DiffRate : Differentiable Compression Rate for Efficient Vision Transformers", 2023 (S312). Patches are sorted by
what the class token looks at, and the first of them stay, as many as the distribution expects; the others are dropped
or, with `merge`, go into the most similar that stays. The forward pass cuts hard, the gradient is that of the
probabilities. The paper has two rates in each block, one to drop and one to merge; here a block does one or the other.

    slim = attach_rates(model)                                    # they begin with half of the tokens
    train(slim, batches, Recipe(100, lr=0.05), loss=rate_loss(0.6))             # until it costs 60 % of its MACs
    plain = attach_schedule(model, lambda kept: kept, learned_schedule(slim))   # the same counts, with no rates
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.cost import count
from labkit.errors import LabkitError
from labkit.evidence import Evidence, Groups, taken
from labkit.tokens.schedule import attach_schedule, blocks_macs
from labkit.tokens.score import Score, class_attention, highest, present
from labkit.vit import ViT


@dataclass
class KeepCount:
    """A reducer: keeps the `count` best patches, in order, and drops the others or merges them into those."""

    count: int
    merge: bool = False
    score: Score = class_attention

    def reduce(self, x: Tensor, evidence: Evidence, sizes: Tensor | None, prefix: int) -> tuple[Tensor, Groups]:
        if self.count < 1:
            raise LabkitError(f"count={self.count} keeps nothing; expected a whole number of at least 1.")
        scores = present(self.score(evidence, prefix).expand(len(x), -1), sizes, prefix)
        kept = highest(scores, self.count, prefix)
        groups = Groups.choice(kept, x.shape[1])
        rest = prefix + scores.argsort(dim=1, descending=True, stable=True)[:, self.count :, None]
        if not self.merge or rest.shape[1] == 0:
            return taken(x, kept), groups
        unit = F.normalize(x, dim=-1)
        alike = unit.take_along_dim(rest, 1) @ unit.take_along_dim(kept[:, prefix:, None], 1).transpose(1, 2)
        groups = Groups(groups.home.scatter(1, rest[..., 0], prefix + alike.argmax(dim=2)), groups.count, sizes)
        return groups.mean(x), groups


class DiffRate(nn.Module):
    """A reducer that learns its count: a distribution over all of `patches`, `granularity` fewer, and so on, never 0.

    It keeps as many as it expects, by their scores; `merge` is that of `KeepCount`. In training nobody leaves: who is
    out has size 0, and through the sizes the gradient reaches the rate.
    """

    counts: Tensor
    ranks: Tensor

    def __init__(self, patches: int, granularity: int = 1, merge: bool = False, score: Score = class_attention) -> None:
        super().__init__()
        if patches < 1 or granularity < 1:
            raise LabkitError(f"patches={patches}, granularity={granularity}; expected numbers of at least 1.")
        self.register_buffer("counts", torch.arange(patches, 0, -granularity), persistent=False)
        self.register_buffer("ranks", torch.arange(patches), persistent=False)
        self.logits = nn.Parameter(torch.zeros(len(self.counts)))
        self.merge, self.score = merge, score

    def token_probability(self) -> Tensor:
        """(patches,): how probable it is that the token of each rank stays, that more than its rank are kept."""
        shares = self.logits.to(torch.promote_types(self.logits.dtype, torch.float32)).softmax(dim=0)
        return (shares * (self.ranks[:, None] < self.counts)).sum(dim=1)

    def expected(self) -> Tensor:
        """Σ count · its probability, which is the sum of what the ranks have."""
        return self.token_probability().sum()

    def mask(self) -> Tensor:
        """(patches,): 1 for as many ranks as expected, rounded up, then 0; the gradient is the probabilities'."""
        probability = self.token_probability()
        stays = self.ranks < probability.detach().sum() - 1e-3  # a sum of floats is no exact integer
        return stays.to(probability) + (probability - probability.detach())

    @torch.no_grad()
    def settled(self) -> KeepCount:
        """The reducer that it is in eval mode, with a plain number in place of the rate."""
        return KeepCount(int(self.mask().sum()), self.merge, self.score)

    def reduce(self, x: Tensor, evidence: Evidence, sizes: Tensor | None, prefix: int) -> tuple[Tensor, Groups]:
        if (patches := x.shape[1] - prefix) > len(self.ranks):
            raise LabkitError(f"This rate expects at most {len(self.ranks)} patches, got {patches}; attach new rates.")
        if not self.training:
            return self.settled().reduce(x, evidence, sizes, prefix)
        scores = present(self.score(evidence, prefix).expand(len(x), -1), sizes, prefix)
        rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        stay = F.pad(self.mask()[rank].to(x), (prefix, 0), value=1.0)
        before = torch.ones_like(stay) if sizes is None else sizes
        return melt(x, stay, before, prefix) if self.merge else (x, Groups.masked(stay * (before > 0)))


@dataclass(kw_only=True)
class Melted(Groups):
    """Groups whose sizes carry the gradient of who was merged."""

    after: Tensor

    def sizes(self, before: Tensor) -> Tensor:
        return self.after


def melt(x: Tensor, stay: Tensor, before: Tensor, prefix: int) -> tuple[Tensor, Melted]:
    """Who does not `stay` (b, n) gives what it stands for to the most similar that does; its place stays, empty.

    The gradient of the mask is that of giving a part.
    """
    there, own = stay * (before > 0), torch.arange(x.shape[1], device=x.device).expand(stay.shape)
    unit = F.normalize(x.detach()[:, prefix:], dim=-1)
    alike = unit @ unit.transpose(1, 2)
    alike.diagonal(dim1=1, dim2=2).fill_(-2)  # itself only where no other stays
    nearest = alike.masked_fill(there[:, None, prefix:] < 0.5, -torch.inf).argmax(dim=2)
    target = torch.cat([own[:, :prefix], prefix + nearest], dim=1)
    given = before * (1 - stay)
    after = (before * stay).scatter_add(1, target, given)
    drawn = given[..., None] * (x - taken(x, target))
    drawn = torch.zeros_like(x).scatter_add(1, target[..., None].expand_as(x), drawn)
    x = x + drawn / torch.where(there > 0, after, 1)[..., None]
    return x, Melted(torch.where(given > 0, target, own), x.shape[1], before.detach(), there=there, after=after)


def attach_rates(model: ViT, granularity: int = 1, merge: bool = False, score: Score = class_attention) -> ViT:
    """A copy of the model, sharing its weights, with a `DiffRate` in each block but the first, as in the paper's code.

    A last block of which only the class token is read has nothing to save; its rate stays as it is.
    """
    device, patches = next(model.parameters()).device, model.grid[0] * model.grid[1]
    amounts = [None] + [granularity] * (len(model.blocks) - 1)
    return attach_schedule(model, lambda g: DiffRate(patches, g, merge, score).to(device), amounts)


def rates(model: Any) -> list[DiffRate | None]:
    """The rate of each block, None where there is none. To train nothing else, freeze the model and thaw these."""
    found = [block.reducer for block in model.blocks]
    if not any(found) or not all(rate is None or isinstance(rate, DiffRate) for rate in found):
        raise LabkitError("A budget needs rates, and no other reducers, in the blocks; make it by attach_rates(model).")
    return found


def tokens_left(model: ViT) -> list[Tensor]:
    """How many tokens leave each block, with a gradient.

    Σ over ranks of Π over blocks is the smallest count, and so a rate above what arrives still learns.
    """
    patches = torch.ones(model.grid[0] * model.grid[1], device=next(model.parameters()).device)
    stays = [patches if rate is None else rate.mask() for rate in rates(model)]
    return list(model.prefix + torch.stack(stays).cumprod(dim=0).sum(dim=1))


def learned_schedule(model: ViT) -> list[KeepCount | None]:
    """What each block has settled on, as reducers of plain numbers."""
    return [None if rate is None else rate.settled() for rate in rates(model)]


@lru_cache(maxsize=1)  # counted once, and not at every step of training
def fixed_macs(model: ViT) -> int:
    """What the model costs outside its blocks."""
    return sum(count(model).parts[part]["macs"] for part in ("patch", "head"))


def budget_loss(model: ViT, share: float) -> Tensor:
    """(MACs that the model costs with its rates / MACs without - `share`)², by the law of `labkit.cost`."""
    if not 0 < share <= 1:
        raise LabkitError(f"share={share} is not a share; expected a number above 0 and at most 1.")
    left: Any = tokens_left(model)
    macs: Any = fixed_macs(model) + blocks_macs(model, left)
    all_left = [model.prefix + model.grid[0] * model.grid[1]] * len(left)
    return (macs / (fixed_macs(model) + blocks_macs(model, all_left)) - share) ** 2


def rate_loss(share: float, weight: float = 100.0) -> Callable[[nn.Module, Any], tuple[Tensor, Tensor]]:
    """A loss for `labkit.train.train`: cross-entropy, and `weight` times the model's distance from its budget."""
    from labkit.train import classify  # a dial needs the loop only when it is trained

    def loss(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
        task, logits = classify()(model, batch)
        return task + weight * budget_loss(model, share), logits

    return loss
