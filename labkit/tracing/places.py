"""From tokens back to places: who is inside a token, and a map of tokens spread over the grid of patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from labkit.evidence import Grid


@dataclass(frozen=True)
class Each(Sequence[Tensor]):
    """A sequence whose entries are computed when they are asked for."""

    length: int
    entry: Callable[[int], Tensor]

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        numbers = range(self.length)[index]
        return self.entry(numbers) if isinstance(numbers, int) else [self.entry(i) for i in numbers]


def inside(cells: Grid, patches: Grid, prefix: int = 0) -> Tensor:
    """(prefix + cells, patches): each cell of a coarse grid consists of the patches that it covers, by area."""
    along_h, along_w = overlap(cells[0], patches[0]), overlap(cells[1], patches[1])
    covered = torch.kron(along_h, along_w)
    return torch.cat([covered.new_zeros(prefix, covered.shape[1]), covered])


def overlap(coarse: int, fine: int) -> Tensor:
    """(coarse, fine): the share of each coarse interval of [0, 1] that lies in each fine one."""
    start, end = torch.arange(coarse)[:, None] / coarse, (torch.arange(coarse)[:, None] + 1) / coarse
    left, right = torch.arange(fine) / fine, (torch.arange(fine) + 1) / fine
    common = (torch.minimum(end, right) - torch.maximum(start, left)).clamp_min(0)
    common = common.masked_fill(common < 1e-6, 0)
    return common / common.sum(dim=1, keepdim=True)


def through_tokens(attn: Tensor, provenance: Tensor, prefix: int, queries: slice | Sequence[int]) -> Tensor:
    """Attention between tokens (heads, n, n) as attention between prefix tokens and patches.

    What a token gets is shared by the patches inside it; a patch asks as the tokens that it is inside of.
    """
    n, count = provenance.shape
    keys = torch.zeros(n, prefix + count)
    keys[:prefix, :prefix] = torch.eye(prefix)
    keys[:, prefix:] = provenance
    owners = keys.T[queries]
    owners = owners / owners.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return owners @ attn @ keys


def put_in_place(
    attn: Tensor, windows: Tensor, key_windows: Tensor, shape: tuple[int, int], queries: slice | Sequence[int]
) -> Tensor:
    """Maps of windows (heads, windows, q, k) as rows (heads, chosen queries, keys), zero outside the query's window."""
    place = torch.empty(shape[0] + 1, dtype=torch.long)  # of each query among the members; the last takes the padding
    place[windows.flatten()] = torch.arange(windows.numel())
    chosen = place[:-1][queries]
    columns = key_windows[chosen // windows.shape[1]] % (shape[1] + 1)  # -1, the padding, is the last column
    rows = attn.new_zeros(attn.shape[0], len(chosen), shape[1] + 1)
    rows.scatter_(2, columns.expand(attn.shape[0], -1, -1), attn.flatten(1, 2)[:, chosen])
    return rows[..., :-1]
