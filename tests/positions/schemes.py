"""Every position scheme in a small ViT, and what a function of the displacement is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from labkit.positions.alibi import ALiBi
from labkit.positions.conditional import PEG
from labkit.positions.contextual import BucketBias, ContextualAttention, ContextualRPE
from labkit.positions.fuzzy import AdaptiveTokenMerger, AnyResolution, FuzzyPositionalEncoding
from labkit.positions.gaussian import GaussianAttention
from labkit.positions.global_local import GlobalPosition, LocalAttention
from labkit.positions.learned import LearnedTable
from labkit.positions.lookhere import lookhere_layers
from labkit.positions.mixer import replace_attention
from labkit.positions.relative import ContinuousBias, RelativeBias
from labkit.positions.rope import RoPE, RoPEAxial, RoPEMixed
from labkit.positions.sinusoidal import Sinusoidal
from labkit.positions.urpe import URPEAttention
from labkit.vit import PatchEmbed, ViT

GRID, DIM, HEADS, D_HEAD, DEPTH = (4, 4), 16, 4, 4, 2


def vit(position: object = None, **options: object) -> ViT:
    return ViT(32, 8, 5, DIM, DEPTH, HEADS, **{"position": position, "positions": False} | options)


def per_block(make: Callable[[], nn.Module]) -> list[nn.Module]:
    return [make() for _ in range(DEPTH)]


POSITIONS: dict[str, Callable[[], object]] = {
    "learned": lambda: LearnedTable(GRID, DIM),
    "sinusoidal 1-D": lambda: Sinusoidal(DIM, axes=1),
    "sinusoidal 2-D": lambda: Sinusoidal(DIM),
    "RoPE": lambda: RoPE(D_HEAD),
    "RoPE axial": lambda: RoPEAxial(D_HEAD),
    "RoPE mixed": lambda: per_block(lambda: RoPEMixed(D_HEAD, HEADS)),
    "ALiBi": lambda: ALiBi(HEADS),
    "relative": lambda: per_block(lambda: RelativeBias(GRID, HEADS)),
    "continuous": lambda: per_block(lambda: ContinuousBias(GRID, HEADS, hidden=8)),
    "LookHere": lambda: lookhere_layers(HEADS, DEPTH),
    "buckets": lambda: per_block(lambda: BucketBias(HEADS, "euclidean")),
    "contextual": lambda: per_block(lambda: ContextualRPE(HEADS, D_HEAD, "cross", on="qk")),
    "PEG": lambda: PEG(DIM),
    "global": lambda: GlobalPosition(DIM),
    "fuzzy": lambda: FuzzyPositionalEncoding(GRID, DIM),
}
MIXERS: dict[str, Callable] = {
    "contextual values": ContextualAttention,
    "Gaussian": GaussianAttention,
    "URPE": lambda dim, heads: URPEAttention(dim, heads, GRID),
    "local": LocalAttention,
}
AT_THE_TOKENS = ("learned", "sinusoidal 1-D", "sinusoidal 2-D", "global", "fuzzy")
BOUNDED = ("relative", "URPE")  # a table of displacements knows no longer ones
SCHEMES = [*POSITIONS, *MIXERS, "merger"]


def build(scheme: str, **options: object) -> ViT:
    if scheme in POSITIONS:
        return vit(POSITIONS[scheme](), **options)
    if scheme in MIXERS:
        return replace_attention(vit(**options), MIXERS[scheme])
    merger = AdaptiveTokenMerger(DIM, HEADS, (2, 3))
    return vit(patching=AnyResolution(PatchEmbed(8, 3, DIM), FuzzyPositionalEncoding(GRID, DIM), merger), **options)


def first_pairs(grid: tuple[int, int]) -> Tensor:
    """(n*n,): for each pair of patches, the first pair with the same displacement."""
    places = [(i, j) for i in range(grid[0]) for j in range(grid[1])]
    seen: dict[tuple[int, int], int] = {}
    pairs = [(a[0] - b[0], a[1] - b[1]) for a in places for b in places]
    return torch.tensor([seen.setdefault(pair, at) for at, pair in enumerate(pairs)])


def depends_on_displacement(matrix: Tensor, grid: tuple[int, int], tol: float = 0.0) -> bool:
    """Is (..., n, n) the same for all pairs with one displacement?"""
    pairs = matrix.flatten(-2)
    expected = pairs[..., first_pairs(grid)]
    return bool(((pairs == expected) | ((pairs - expected).abs() <= tol)).all())


def crop(matrix: Tensor, large: tuple[int, int], small: tuple[int, int], corner: tuple[int, int]) -> Tensor:
    """The rows and columns of (..., n, n) that belong to a window of the grid."""
    rows, columns = (torch.arange(small[i]) + corner[i] for i in (0, 1))
    index = (rows[:, None] * large[1] + columns).flatten()
    return matrix[..., index, :][..., index]
