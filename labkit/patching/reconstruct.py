"""See what tokens have lost: decode them by the best linear means and hold the image against the original.

A tokeniser without bends is an affine map t = A x + b. Of all images with the tokens t, x = A⁺ (t - b) is the one of
least norm. Knowing what patches look like, their mean m and covariance L Lᵀ, x = m + L (A L)⁺ (t - b - A m) errs
least on average. No code of d numbers a patch beats the patches' principal components, which `pca_bound` measures.

    tokens, grid = vit.patch_embed(images)
    seen = reconstruct(tokens, vit.patch_embed, (64, 64), like=images)
    psnr(images, seen), pca_bound(images, patch=8, d=64)
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Grid
from labkit.patching.patches import cut, pair, pca_errors, uncut
from labkit.vit import PatchEmbed, Size


@torch.no_grad()
def reconstruct(
    tokens: Tensor, tokeniser: nn.Module, size: Size, channels: int = 3, like: Tensor | None = None
) -> Tensor:
    """Images (b, channels, *size) from the tokens (b, n, d) that an affine `tokeniser(images) -> (x, grid)` made.

    `like` are images whose patches say what patches look like; only a PatchEmbed can use them.
    """
    h, w = pair(size)
    if type(tokeniser) is PatchEmbed and isinstance(tokeniser.norm, nn.Identity):
        p, q = tokeniser.proj.stride
        if h % p == 0 and w % q == 0:
            return unembed(tokens, tokeniser.proj, (h // p, w // q), like)
    if like is not None:
        raise LabkitError(
            f"like= needs the whole patches of a PatchEmbed, got {type(tokeniser).__name__} at {h}x{w}; leave it out."
        )
    return least_squares(tokens, tokeniser, (h, w), channels)


def unembed(tokens: Tensor, proj: nn.Conv2d, grid: Grid, like: Tensor | None = None) -> Tensor:
    """The inverse, patch by patch, of a convolution whose stride is its kernel."""
    patch, weight, rest = (proj.stride[0], proj.stride[1]), proj.weight.double().flatten(1), tokens.double()
    rest = rest if proj.bias is None else rest - proj.bias.double()
    if like is None:
        return uncut(rest @ torch.linalg.pinv(weight).T, patch, grid).to(tokens.dtype)
    patches = cut(like.double(), patch).flatten(0, 1)
    mean = patches.mean(dim=0)
    energy, axes = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    spread = axes * energy.clamp(min=0).sqrt()
    # Directions in which the patches hardly vary would be guessed from the rounding of the tokens.
    decoder = spread @ torch.linalg.pinv(weight @ spread, rtol=1e-6)
    return uncut(mean + (rest - weight @ mean) @ decoder.T, patch, grid).to(tokens.dtype)


@torch.no_grad()
def least_squares(tokens: Tensor, tokeniser: nn.Module, size: Grid, channels: int = 3, steps: int = 300) -> Tensor:
    """The image of least norm for any affine tokeniser, by conjugate gradients that begin at the black image.

    Directions that the tokeniser hardly passes on come last: where `steps` end the search early, they are missing.
    """
    affine = copy.deepcopy(tokeniser).double().eval()
    black = torch.zeros(len(tokens), channels, *size, dtype=torch.float64, device=tokens.device)
    _check_affine(affine, black[:1])
    made, back, *_ = torch.func.vjp(lambda images: affine(images)[0], black)
    if made.shape != tokens.shape:
        raise LabkitError(
            f"The tokens have shape {tuple(tokens.shape)}, but {type(tokeniser).__name__} makes {tuple(made.shape)} "
            f"of images of {size[0]}x{size[1]}; pass the tokens it made and the size of their images."
        )
    x, rest = black, tokens.double() - made
    direction = gradient = back(rest)[0]
    squared = first = _squared(gradient)
    for _ in range(steps):
        if (squared <= 1e-24 * first).all():
            break
        step = affine(direction)[0] - made
        length = squared / _squared(step).clamp(min=1e-300)
        x, rest = x + length[:, None, None, None] * direction, rest - length[:, None, None] * step
        gradient = back(rest)[0]
        squared, before = _squared(gradient), squared
        direction = gradient + (squared / before.clamp(min=1e-300))[:, None, None, None] * direction
    return x.to(tokens.dtype)


def psnr(images: Tensor, others: Tensor, peak: float = 1.0) -> Tensor:
    """10 log10(peak² / mean squared error) in decibels, (b,): half the error is 6 dB more, no error is infinity."""
    if images.shape != others.shape:
        raise LabkitError(f"Images of shape {tuple(images.shape)} do not compare with {tuple(others.shape)}.")
    return 10 * torch.log10(peak**2 / (images - others).square().flatten(1).mean(dim=1))


def pca_bound(images: Tensor, patch: Size, d: int, peak: float = 1.0) -> float:
    """The PSNR of these images, taken together, that no linear code of d numbers a patch exceeds."""
    errors = pca_errors(images, patch)
    if d < 0:
        raise LabkitError(f"A token has at least 0 numbers, not {d}.")
    return 10 * torch.log10(peak**2 / errors[min(d, len(errors) - 1)]).item()


def _check_affine(tokeniser: nn.Module, black: Tensor) -> None:
    """f(x) + f(y) = f(x + y) + f(0) holds for weighted sums of pixels and for nothing else."""
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(black.shape, generator=draw, dtype=black.dtype).to(black.device) for _ in range(2))
    at_x, at_y, at_both, at_black = (tokeniser(images)[0] for images in (x, y, x + y, black))
    if (at_x + at_y - at_both - at_black).abs().max() > 1e-6 * at_x.abs().max():
        raise LabkitError(
            f"{type(tokeniser).__name__} is not affine (it has a norm, an activation or an attention), so its tokens "
            "have no least-squares image; take the tokens before that step."
        )


def _squared(x: Tensor) -> Tensor:
    return x.square().flatten(1).sum(dim=1)
