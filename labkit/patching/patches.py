"""Patchify: cut the image into squares and flatten each; the smaller the square, the less is lost, the more it costs.

"Scaling Laws in Patchification: An Image Is Worth 50,176 Tokens And More", 2025 (S183): accuracy grows down to
patches of one pixel. A patch of p x p pixels holds c p² numbers and its token d, so a linear projection has rank
min(d, c p²); no linear code of d numbers a patch beats the d leading principal components of the patches.

    tokens = cut(images, 8)                    # (b, n, 3 * 8 * 8); uncut(tokens, 8, grid) is the images again
    patch_embed(images, 8, vit.patch_embed.proj.weight, vit.patch_embed.proj.bias)
    patch_sweep(images, (32, 16, 8, 4), dim=192, depth=12)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from labkit.errors import LabkitError
from labkit.evidence import Grid
from labkit.vit import Size, check_images


def pair(size: Size) -> Grid:
    """(height, width) of a square's side or of a pair."""
    h, w = (size, size) if isinstance(size, int) else size
    if h < 1 or w < 1:
        raise LabkitError(f"A size of {h}x{w} holds no pixel; choose at least 1x1.")
    return h, w


def cut(images: Tensor, patch: Size) -> Tensor:
    """Images (b, c, h, w) → flattened patches (b, n, c p²), row by row: by a new shape, which moves pixels only."""
    (p, q), _ = _squares(images, patch)
    return rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", p=p, q=q)


def cut_by_loops(images: Tensor, patch: Size) -> Tensor:
    """The same, square after square."""
    (p, q), (h, w) = _squares(images, patch)
    squares = []
    for row in range(h):
        for column in range(w):
            square = images[:, :, row * p : (row + 1) * p, column * q : (column + 1) * q]
            squares.append(square.flatten(1))
    return torch.stack(squares, dim=1)


def cut_by_convolution(images: Tensor, patch: Size) -> Tensor:
    """The same by a convolution: each of its c p² kernels looks at one pixel, and its stride is the patch."""
    (p, q), _ = _squares(images, patch)
    channels = images.shape[1]
    kernels = torch.eye(channels * p * q, dtype=images.dtype, device=images.device)
    return F.conv2d(images, kernels.view(-1, channels, p, q), stride=(p, q)).flatten(2).transpose(1, 2)


def uncut(tokens: Tensor, patch: Size, grid: Grid) -> Tensor:
    """Flattened patches (b, n, c p²) back in their places: the images (b, c, h p, w p) that `cut` cut."""
    (p, q), (h, w) = pair(patch), grid
    if tokens.ndim != 3 or tokens.shape[1] != h * w or tokens.shape[2] % (p * q):
        raise LabkitError(
            f"Tokens of shape {tuple(tokens.shape)} are no {h}x{w} patches of {p}x{q} pixels; "
            f"expected (batch, {h * w}, channels * {p * q})."
        )
    return rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=h, p=p, q=q)


def patch_embed(images: Tensor, patch: Size, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """cut, then W patch + b: what `labkit.vit.PatchEmbed` does with the convolution weights (d, c, p, p)."""
    return F.linear(cut(images, patch), weight.flatten(1), bias)


def vit_macs(image: Size, patch: Size, dim: int, depth: int, classes: int = 1000, channels: int = 3) -> int:
    """MACs of a ViT with n = N + 1 tokens, every row of which is read: linear and quadratic in N = (h / p) (w / p).

    N c p² d for the patches (the same for every p), depth (12 n d² + 2 n² d) for the blocks, d for each class.
    """
    (h, w), (p, q) = pair(image), pair(patch)
    patches = (h // p) * (w // q)
    n = patches + 1
    return patches * channels * p * q * dim + depth * (12 * n * dim**2 + 2 * n**2 * dim) + dim * classes


def pca_errors(images: Tensor, patch: Size) -> Tensor:
    """Mean squared error of a pixel that the best linear code of d numbers a patch leaves, for d = 0, 1, …, c p².

    Best for these images: with fewer patches than numbers in a patch, it has them by heart and bounds nothing.
    """
    patches = cut(images.double(), patch).flatten(0, 1)
    centred = patches - patches.mean(dim=0)
    few = len(centred) < centred.shape[1]
    energy = torch.linalg.eigvalsh(centred @ centred.T if few else centred.T @ centred).clamp(min=0)
    errors = F.pad(energy.cumsum(dim=0).flip(0), (0, max(0, centred.shape[1] - len(centred)) + 1))
    return errors / centred.numel()


class Cut(NamedTuple):
    """One row of a patch sweep."""

    patch: int
    tokens: int
    macs: int
    numbers: int  # in a patch: c p²
    rank: int  # of the projection: min(d, c p²)
    error: float  # mean squared error of a pixel, by the best linear code of `dim` numbers a patch


def patch_sweep(images: Tensor, patches: Iterable[int], dim: int, depth: int) -> list[Cut]:
    """What each patch size costs a ViT on these images, and what a token of `dim` numbers must lose."""
    rows = []
    for patch in patches:
        _, (h, w) = _squares(images, patch)
        channels, size = images.shape[1], (images.shape[-2], images.shape[-1])
        numbers = channels * patch**2
        rank = min(dim, numbers)
        error = pca_errors(images, patch)[rank].item()
        rows.append(Cut(patch, h * w, vit_macs(size, patch, dim, depth, channels=channels), numbers, rank, error))
    return rows


def _squares(images: Tensor, patch: Size) -> tuple[Grid, Grid]:
    """The patch and the grid, of images that divide into such patches."""
    p, q = pair(patch)
    h, w = check_images(images, images.shape[1] if images.ndim == 4 else 3, (p, q))
    return (p, q), (h // p, w // q)
