"""Relative positions that ask the content: a query meets an encoding of the displacement, not only a bias.

"Rethinking and Improving Relative Position Encoding for Vision Transformer", 2021 (S208). Near displacements get
a bucket each, far ones share: g(x) = round(x) for |x| <= α, else sign(x) min(β, round(α + (β - α) ln(|x| / α) /
ln(γ / α))). With r = table[bucket], "bias" adds a number, "k" q·r, "q" k·r to a score (both / √d_head), and "v"
adds Σ attn r to what is mixed. The products are taken with the buckets, n d buckets MACs, and then gathered: pair
by pair they would cost n² d. Tokens before the patches meet no encoding; tables start at zero.

    vit = labkit.ViT(64, 8, 10, 64, 6, 4, position=[ContextualRPE(4, 16, "product", on="k") for _ in range(6)])
    vit = labkit.ViT(64, 8, 10, 64, 6, 4, position=[BucketBias(4, "euclidean") for _ in range(6)])
    vit = replace_attention(vit, ContextualAttention)     # the values' term, beside either of them
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Grid
from labkit.positions.grid import displacements, for_each_pair
from labkit.positions.mixer import OpenAttention
from labkit.positions.scores import ScoreBias, check_heads, check_tokens

Method = Literal["euclidean", "quantization", "cross", "product"]
Spread = tuple[float, float, float]
SPREAD = (1.9, 3.8, 15.2)  # α, β, γ in patches: the paper's 1 : 2 : 8, with seven buckets an axis


def piecewise_index(x: Tensor, alpha: float, beta: float, gamma: float) -> Tensor:
    """g(x): whole numbers up to ±⌊beta⌋, the nearest one while |x| <= alpha and logarithmic beyond."""
    if not 0 < alpha <= beta or gamma <= alpha:
        raise LabkitError(f"alpha, beta, gamma = {alpha}, {beta}, {gamma} do not fit; expected 0 < α <= β and α < γ.")
    size = x.abs().float()
    far = alpha + (size.clamp(min=alpha) / alpha).log() / math.log(gamma / alpha) * (beta - alpha)
    return (x.sign() * torch.where(size <= alpha, size.round(), far.round().clamp(max=int(beta)))).long()


def bucket_count(method: Method, spread: Spread = SPREAD) -> int:
    """How many encodings a table holds; two tables share the count of "cross"."""
    reach = int(spread[1])
    return {"product": (2 * reach + 1) ** 2, "cross": 2 * (2 * reach + 1)}.get(method, reach + 1)


def irpe_buckets(grid: Grid, method: Method, spread: Spread = SPREAD, device: torch.device | None = None) -> Tensor:
    """(maps, n, n): the bucket of each (query, key); "cross" has two maps, whose encodings add up."""
    if method not in get_args(Method):
        raise LabkitError(f"method={method!r} is unknown; choose one of {', '.join(get_args(Method))}.")
    delta, side = displacements(grid, device), 2 * int(spread[1]) + 1
    if method in ("euclidean", "quantization"):
        squares = (delta**2).sum(dim=1)
        lengths = squares.float().sqrt().round() if method == "euclidean" else _rank(squares, max(grid))
        buckets = [piecewise_index(lengths, *spread)]
    else:
        down, right = (piecewise_index(along, *spread) + side // 2 for along in delta.unbind(dim=1))
        buckets = [down * side + right] if method == "product" else [down, right + side]
    return for_each_pair(torch.stack(buckets, dim=1), grid)


def _rank(squares: Tensor, reach: int) -> Tensor:
    """0, 1, √2, 2, √5, … → 0, 1, 2, 3, 4, …: the place of a distance among all distances on any grid."""
    # Twice the reach: 16 = 4² + 0² comes before 18 = 3² + 3², even on a grid where no axis is that long.
    steps = torch.arange(2 * reach, device=squares.device) ** 2
    known = (steps[:, None] + steps).unique()
    return torch.searchsorted(known, squares)


class BucketBias(ScoreBias):
    """The bias mode: a number for each bucket and head."""

    def __init__(self, heads: int, method: Method = "product", spread: Spread = SPREAD) -> None:
        super().__init__(heads)
        self.method, self.spread = method, spread
        self.table = nn.Parameter(torch.zeros(heads, bucket_count(method, spread)))

    def bias(self, grid: Grid, device: torch.device | None = None) -> Tensor:
        return self.table[:, irpe_buckets(grid, self.method, self.spread, device)].sum(dim=1)


class ContextualRPE(nn.Module):
    """The contextual mode at the scores; `on` is "k" (q·r), "q" (k·r) or "qk". Any grid."""

    place = "scores"

    def __init__(
        self,
        heads: int,
        d_head: int,
        method: Method = "product",
        on: Literal["q", "k", "qk"] = "k",
        spread: Spread = SPREAD,
    ) -> None:
        super().__init__()
        if on not in ("q", "k", "qk"):
            raise LabkitError(f'on={on!r} is unknown; choose "q", "k" or "qk", and ContextualAttention for "v".')
        self.heads, self.d_head, self.method, self.spread = heads, d_head, method, spread
        shape = (heads, bucket_count(method, spread), d_head)
        self.on_k = nn.Parameter(torch.zeros(shape)) if "k" in on else None
        self.on_q = nn.Parameter(torch.zeros(shape)) if "q" in on else None

    def forward(
        self, q: Tensor, k: Tensor, bias: Tensor | None, grid: Grid, prefix: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        check_heads(q.shape[1], self.heads)
        check_tokens(k.shape[2], grid, prefix)
        ask, answer = (t[:, :, prefix:] * self.d_head**-0.5 for t in (q, k))
        rows, terms = ask.shape[2], []
        for index in irpe_buckets(grid, self.method, self.spread, q.device):
            if self.on_k is not None:
                terms.append(meet(ask, self.on_k, index[:rows]))
            if self.on_q is not None:
                terms.append(meet(answer, self.on_q, index.T[:, :rows]).transpose(-2, -1))
        own = F.pad(torch.stack(terms).sum(dim=0), (prefix, 0, q.shape[2] - rows, 0))
        return q, k, own if bias is None else bias + own


class ContextualAttention(OpenAttention):
    """The values' term: out += Σ_key attn r, with attn summed up bucket by bucket first."""

    def __init__(self, dim: int, heads: int, method: Method = "product", spread: Spread = SPREAD) -> None:
        super().__init__(dim, heads)
        self.method, self.spread = method, spread
        self.on_v = nn.Parameter(torch.zeros(heads, bucket_count(method, spread), dim // heads))

    def mix(self, attn: Tensor, v: Tensor, grid: Grid, prefix: int) -> Tensor:
        patches = attn[:, :, prefix:, prefix:]
        shares = patches.new_zeros(*patches.shape[:3], self.on_v.shape[1])
        for index in irpe_buckets(grid, self.method, self.spread, attn.device):
            shares = shares.scatter_add(-1, index[: patches.shape[2]].expand_as(patches), patches)
        return attn @ v + F.pad(shares @ self.on_v, (0, 0, attn.shape[2] - patches.shape[2], 0))


def meet(x: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """x (b, heads, i, d_head) with table[index] (i, j): x·r for every pair, as (b, heads, i, j)."""
    by_bucket = x @ table.transpose(-2, -1)
    return by_bucket.gather(-1, index.expand(*x.shape[:2], *index.shape))
