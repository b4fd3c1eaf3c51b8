"""What a forward pass leaves behind: the evidence of an attention, the step of a block, the observation.

A block hands these over instead of hiding them, so that a token reducer can decide by them and a map can be
drawn from them without a hook.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

Grid = tuple[int, int]


@dataclass
class Evidence:
    """What attention knew, for whoever asks later; probabilities are computed only when somebody does."""

    q: Tensor  # (b, heads, rows, d_head)
    k: Tensor  # (b, heads, n, d_head)
    bias: Tensor | None = None  # added to the scores, broadcastable to (b, heads, rows, n)
    attn: Tensor | None = None  # (b, heads, rows, n), when impl="plain" has computed it anyway

    def attention(self, rows: slice = slice(None)) -> Tensor:
        """Probabilities of the asked query rows; `slice(0, 1)` costs only the class token's row."""
        if self.attn is not None:
            return self.attn[:, :, rows]
        q = self.q[:, :, rows] * self.q.shape[-1] ** -0.5
        scores = q @ self.k.transpose(-2, -1)
        if self.bias is not None:
            scores = scores + (self.bias if self.bias.shape[-2] == 1 else self.bias[..., rows, :])
        return scores.softmax(dim=-1)


class Reducer(Protocol):
    """Turns n tokens into fewer; returns them and the row-stochastic map (b, n_out, n) that made them."""

    def reduce(self, x: Tensor, evidence: Evidence, sizes: Tensor, prefix: int) -> tuple[Tensor, Tensor]: ...


class Step(NamedTuple):
    """What one block computed: nothing needs a hook to be seen."""

    x: Tensor  # (b, n_out, d)
    evidence: Evidence | None  # None for a mixer that is not attention
    map: Tensor | None  # (b, n_out, n), None when the block kept every token as it was
    sizes: Tensor | None  # (b, n_out) patches that each token stands for, None while all are 1


class Observation(NamedTuple):
    """One recorded forward pass."""

    logits: Tensor
    grid: Grid
    embedded: Tensor  # the tokens before the first block
    steps: list[Step]
