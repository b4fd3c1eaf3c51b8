"""Run a block on fewer tokens and give every token its own back: reduce, compute, undo.

A reducer in front of a block says which tokens go through it as one, and each adds what that one has become more:
x + spread(new - old). The next block sees all tokens again, so that a dense prediction keeps its grid and what was
coarse here may be fine there. With `Merge` it is the idea of "Token Merging for Fast Stable Diffusion", 2023, where
only the attention runs on fewer tokens; with `Keep` the others wait outside; `labkit.tokens.vip` and
`labkit.tokens.slow_fast` are two more.

    squeeze(model, Merge(60), range(3, 12))                  196 → 136 → 196 tokens in each of nine blocks
    squeeze(model, Keep(0.5), [6, 8, 10])                    half of the patches pass these blocks by

The reducer decides in front of the attention. The attention of the block before would be free, but it was paid to
other tokens than these; so a block is asked in advance for the rows of the class token and its like, exactly, by

    q · (W y + c) = (Wᵀ q) · y + q · c      y = norm(x); q · c is the same for all keys, and softmax does not see it

which is a product of d numbers for each head and token and no key at all: 0.2 % of a block of a ViT-S.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Evidence, Grid, Groups, Reducer, Step
from labkit.layers import Attention, Block, log_sizes, outputs, reduce_tokens, twin
from labkit.vit import ViT


class Glance(Evidence):
    """What is known in front of a block: queries (b, heads, rows, d) of the first tokens, scaled, and what they meet.

    That is (b, 1, n, d), the normed tokens, when the queries have taken over the weights of the keys; else the keys.
    """

    def attention(self, rows: slice = slice(None)) -> Tensor:
        known = self.q.shape[2]
        if rows.stop is None or rows.stop > known:
            raise LabkitError(
                f"In front of a block only the rows of the {known} tokens before the patches are known; score by "
                "class_attention, by another of these rows or by what needs no attention."
            )
        scores = torch.einsum("bhrd,bhnd->bhrn", self.q[:, :, rows], self.k)
        return (scores if self.bias is None else scores + self.bias).softmax(dim=-1)


def glance(block: Block, x: Tensor, sizes: Tensor | None = None, rows: int = 1) -> Glance:
    """How the first `rows` tokens of x (b, n, d) would attend in the block.

    It costs 2 rows d², and heads n d for each row that is asked; where the block normalises its keys they have to be
    computed, for n d², and a row is n d.
    """
    attn: Any = block.attn
    y, d = block.norm1(x), attn.qkv.out_features // 3
    q = attn.q_norm(rearrange(outputs(attn.qkv, y[:, :rows], 0, d), "b r (h e) -> b h r e", h=attn.heads))
    q, k = q * q.shape[-1] ** -0.5, y[:, None]
    if isinstance(attn.k_norm, nn.Identity):
        q = torch.einsum("bhre,hed->bhrd", q, rearrange(attn.qkv.weight[d : 2 * d], "(h e) d -> h e d", h=attn.heads))
    else:
        k = attn.k_norm(rearrange(outputs(attn.qkv, y, d, 2 * d), "b n (h e) -> b h n e", h=attn.heads))
    return Glance(q, k, None if sizes is None else log_sizes(sizes)[:, None, None, :], sizes=sizes)


def decompress(x: Tensor, old: Tensor, new: Tensor, groups: Groups) -> Tensor:
    """Each token of x (b, n, d) adds how the token (b, count, d) that it went into has changed; a dropped one stays."""
    change = new - old
    return x + groups.spread(change if groups.there is None else change * groups.there[..., None].to(change))


class InFull(Evidence):
    """The attention of new tokens as one of the old: to a group, its members together pay and get the same.

    A token that was dropped is seen by nobody, and looks at itself. Computed only for who asks.
    """

    def __init__(self, few: Evidence, groups: Groups, sizes: Tensor | None, rows: int | None) -> None:
        self.few, self.groups, self.sizes, self.rows = few, groups, sizes, rows

    def attention(self, rows: slice = slice(None)) -> Tensor:
        alone = torch.eye(self.q.shape[2], self.k.shape[2], dtype=self.q.dtype, device=self.q.device)[rows]
        went = self.there[:, None, : self.q.shape[2], None][:, :, rows] > 0
        return torch.where(went, super().attention(rows), alone)

    def spread(self, t: Tensor) -> Tensor:
        wide = self.groups.spread(rearrange(t, "b h m e -> b m (h e)"))
        return rearrange(wide, "b n (h e) -> b h n e", h=t.shape[1])

    @cached_property
    def q(self) -> Tensor:  # type: ignore[override]
        return self.few.q if self.rows is not None else self.spread(self.few.q)

    @cached_property
    def k(self) -> Tensor:  # type: ignore[override]
        return self.spread(self.few.k)

    @cached_property
    def v(self) -> Tensor | None:  # type: ignore[override]
        return None if self.few.v is None else self.spread(self.few.v)

    @cached_property
    def there(self) -> Tensor:
        """(b, n): 0 for a token that was dropped."""
        there = self.k.new_ones(len(self.k), self.groups.count) if self.groups.there is None else self.groups.there
        return self.groups.spread(there.to(self.k)[..., None])[..., 0]

    @cached_property
    def bias(self) -> Tensor:  # type: ignore[override]
        return log_sizes(self.there if self.sizes is None else self.there * self.sizes)[:, None, None, :]


class Squeezed(nn.Module):
    """A block that computes on what a reducer makes of its tokens, and returns as many as came.

    Its evidence is that of all tokens: each asks and is asked as the one that it went into.
    """

    def __init__(self, block: nn.Module, reducer: Reducer) -> None:
        super().__init__()
        if not isinstance(block, Block):
            raise LabkitError(f"A {type(block).__name__} cannot be squeezed; expected a plain Block.")
        why = (
            "its mixer is no plain attention"
            if not isinstance(block.attn, Attention)
            else "it has a token reducer of its own"
            if block.reducer is not None
            else "it has to know where each token is"
            if block.attn.position is not None or block.after is not None
            else None
        )
        if why is not None:
            raise LabkitError(f"This block cannot be squeezed: {why}. Expected plain attention, an MLP and no more.")
        self.blocks: Any = nn.ModuleList([block])  # under this name whoever watches attention finds it inside a block
        self.reducer: Reducer = reducer

    def forward(
        self, x: Tensor, grid: Grid, sizes: Tensor | None = None, prefix: int = 0, rows: int | None = None
    ) -> Step:
        block: Block = self.blocks[0]
        small, groups, counts = reduce_tokens(self.reducer, x, glance(block, x, sizes, prefix), sizes, prefix)
        if not isinstance(groups, Groups):
            raise LabkitError(
                f"{type(self.reducer).__name__} mixes its tokens, and what was mixed cannot be given back; squeeze by "
                "a reducer that sends each token to one place, such as Keep, Merge, Fuse or Cluster."
            )
        step = block(small, grid, counts, prefix, rows)
        evidence = None if step.evidence is None else InFull(step.evidence, groups, sizes, rows)
        if rows is not None:  # they are prefix tokens, which no reducer touches
            return Step(step.x, evidence, None, sizes)
        return Step(decompress(x, small, step.x, groups), evidence, None, sizes)


def squeeze(model: ViT, reducer: Reducer, layers: Iterable[int]) -> ViT:
    """A copy of the model, sharing its weights, whose given blocks (0 is the first) compute on fewer tokens."""
    slim = twin(model)
    slim.blocks = nn.ModuleList(model.blocks)
    for layer in layers:
        if not -len(model.blocks) <= layer < len(model.blocks):
            raise LabkitError(f"There is no block {layer}; the model has {len(model.blocks)}, counted from 0.")
        slim.blocks[layer] = Squeezed(model.blocks[layer], reducer)
    return slim
