"""What a forward pass leaves behind: the evidence of an attention, the step of a block, the observation.

A block hands these over instead of hiding them, so that a token reducer can decide by them and a map can be
drawn from them without a hook.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from labkit.errors import LabkitError

Grid = tuple[int, int]


@dataclass
class Evidence:
    """What attention knew, for whoever asks later; probabilities are computed only when somebody does."""

    q: Tensor  # (b, heads, rows, d_head); in front of the first block nobody asks yet, and there are no rows
    k: Tensor  # (b, heads, n, d_head)
    bias: Tensor | None = None  # added to the scores, broadcastable to (b, heads, rows, n)
    attn: Tensor | None = None  # (b, heads, rows, n), when impl="plain" has computed it anyway
    v: Tensor | None = None  # (b, heads, n, d_head)
    sizes: Tensor | None = None  # (b, n) how many patches each token stood for, 0 for an empty place; None: all 1
    images: Tensor | None = None  # (b, c, height, width), in front of the first block

    def attention(self, rows: slice = slice(None)) -> Tensor:
        """Probabilities of the asked query rows; `slice(0, 1)` costs only the class token's row."""
        if self.attn is not None:
            return self.attn[:, :, rows]
        if self.q.shape[2] == 0:
            raise LabkitError(
                "There is no attention in front of the first block; reduce there by what needs none, or in a block."
            )
        q = self.q[:, :, rows] * self.q.shape[-1] ** -0.5
        scores = q @ self.k.transpose(-2, -1)
        if self.bias is not None:
            scores = scores + (self.bias if self.bias.shape[-2] == 1 else self.bias[..., rows, :])
        return scores.softmax(dim=-1)


def taken(x: Tensor, places: Tensor) -> Tensor:
    """(b, n, d) and (b, m) → (b, m, d): of each image the tokens at these places, whole rows at a time."""
    return x[torch.arange(len(x), device=x.device)[:, None], places]


@dataclass
class Groups:
    """A map that sorts: every token goes into one new token, or nowhere. Its matrix is made for who asks for it."""

    home: Tensor  # (b, n) the number of the new token, -1 for those that are dropped
    count: int  # new tokens
    weight: Tensor | None = None  # (b, n) what a token counts in its group; None: all alike
    joins: bool = True  # False: every new token is one old token
    there: Tensor | None = None  # (b, count) 1 for a token, 0 for an empty place; None: all are there

    @classmethod
    def choice(cls, kept: Tensor, n: int, there: Tensor | None = None) -> Groups:
        """The tokens `kept` (b, count) of n, in that order, and no others; where not `there`, a place stays empty."""
        b, count = kept.shape
        places = torch.arange(count, device=kept.device).expand(b, -1)
        if there is None:
            return cls(kept.new_full((b, n), -1).scatter(1, kept, places), count, joins=False)
        home = kept.new_full((b, n + 1), -1).scatter(1, torch.where(there > 0, kept, n), places)[:, :n]
        return cls(home, count, there=there)

    @classmethod
    def masked(cls, there: Tensor) -> Groups:
        """All tokens stay where they are, and those that are not `there` (b, n) are out of sight: for training."""
        n = there.shape[1]
        return cls(torch.arange(n, device=there.device).expand(there.shape), n, there=there)

    def sizes(self, before: Tensor) -> Tensor:
        """(b, n) → (b, count): how many patches each new token stands for, none where there is no token."""
        sizes = self.total(before[..., None])[..., 0]
        return sizes if self.there is None else sizes * self.there.to(sizes)

    def total(self, values: Tensor) -> Tensor:
        """(b, n, d) → (b, count, d), the sum over each group."""
        b, _, d = values.shape
        place = torch.where(self.home < 0, self.count, self.home)  # behind the last group what is dropped adds up
        place = place + (self.count + 1) * torch.arange(b, device=place.device)[:, None]
        sums = values.new_zeros(b * (self.count + 1), d).index_add(0, place.flatten(), values.flatten(0, 1))
        return sums.unflatten(0, (b, self.count + 1))[:, :-1]

    def mean(self, values: Tensor) -> Tensor:
        """(b, n, d) → (b, count, d), the weighted mean over each group: matrix() @ values, without the matrix."""
        weight = values.new_ones(*self.home.shape, 1) if self.weight is None else self.weight[..., None].to(values)
        return self.total(values * weight) / self.total(weight).clamp_min(torch.finfo(values.dtype).tiny)

    def spread(self, values: Tensor) -> Tensor:
        """(b, count, d) → (b, n, d): every old token gets what its new one has, a dropped one zeros."""
        padded = F.pad(values, (0, 0, 0, 1))
        return taken(padded, self.home % (self.count + 1))

    def matrix(self) -> Tensor:
        """(b, count, n), every row sums to one, to zero where there is no token."""
        weight = self.home.new_ones(self.home.shape, dtype=torch.float32) if self.weight is None else self.weight
        groups = F.one_hot(self.home + 1, self.count + 1)[..., 1:].transpose(1, 2) * weight[:, None]
        rows = groups / groups.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(groups.dtype).tiny)
        return rows if self.there is None else rows * self.there[..., None].to(rows)


class Reducer(Protocol):
    """Turns n tokens into fewer; returns them and the map that made them.

    The map is a row-stochastic (b, n_out, n), or `Groups` where each token goes to one place, which costs no matrix.
    `sizes` (b, n) counts the patches that each token stands for; None while all are 1. A size of 0 is an empty place
    that nobody sees: images of one batch may keep different numbers, and in training a dropped token may stay.
    """

    def reduce(
        self, x: Tensor, evidence: Evidence, sizes: Tensor | None, prefix: int
    ) -> tuple[Tensor, Tensor | Groups]: ...


class Step(NamedTuple):
    """What one block computed: nothing needs a hook to be seen."""

    x: Tensor  # (b, n_out, d)
    evidence: Evidence | None  # None for a mixer that is not attention
    how: Tensor | Groups | None  # the reducer's map, None when the block kept every token as it was
    sizes: Tensor | None  # (b, n_out) patches that each token stands for, 0 for an empty place, None while all are 1

    @property
    def map(self) -> Tensor | None:
        """(b, n_out, n), row-stochastic: what each token is made of."""
        return matrix_of(self.how, self.x)


def matrix_of(how: Tensor | Groups | None, like: Tensor) -> Tensor | None:
    """A reducer's map as the matrix that it is, in the precision of `like`."""
    return how.matrix().to(like) if isinstance(how, Groups) else how


def provenance(maps: Iterable[Tensor | None], patches: int, prefix: int, batch: int) -> Tensor:
    """(b, tokens, patches): what the tokens behind these maps are made of; None is a block that changed none."""
    joint = torch.cat([torch.zeros(prefix, patches), torch.eye(patches)]).expand(batch, -1, -1)
    for how in maps:
        joint = joint if how is None else how.to(joint) @ joint
    return joint


class Observation(NamedTuple):
    """One recorded forward pass."""

    logits: Tensor
    grid: Grid
    embedded: Tensor  # the tokens before the first block
    steps: list[Step]
    entry: Tensor | Groups | None = None  # the map of the reducer in front of the first block

    @property
    def maps(self) -> list[Tensor | None]:
        """The map in front of the first block and that of each block, as matrices."""
        return [matrix_of(self.entry, self.embedded), *(step.map for step in self.steps)]
