"""Group the patches by their pixels before the first block: drop the flattest ones, or merge those of the same word.

"Efficient Online Inference of Vision Transformers by Training-Free Tokenization", 2024 (S188). Within an image, the
patches of least variance are dropped. Across images, k-means learns a vocabulary of visual words; the patches of an
image that lie near the same word become one token, their mean, and those near none stay as they are. No training,
and the blocks know nothing of it:

    tokens.attach(model, Keep(0.7, pixel_variance), "entry")
    words = learn_words(images, patch=16, count=500, generator=torch.Generator().manual_seed(0))
    tokens.attach(model, VisualWords(words, threshold=0.1), "entry")

The tokens have their positions already, so a word's token holds its pixels at the mean of the positions: twins say
what they show but no longer where they were, and merging them is free only in a model without positions. Later blocks
attend to it by the number of its patches, where the paper attends to it as to one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from labkit.errors import LabkitError
from labkit.evidence import Evidence, Grid, Groups

# (patches (..., n, numbers), words (count, numbers)) → how far apart, (..., n, count)
Distance = Callable[[Tensor, Tensor], Tensor]


def patch_grid(evidence: Evidence, prefix: int) -> Grid:
    """The grid of square patches that the images were cut into, found from the number of patch tokens."""
    if evidence.images is None:
        raise LabkitError('There are pixels only in front of the first block; attach this reducer with layers="entry".')
    n, (h, w) = evidence.k.shape[2] - prefix, evidence.images.shape[-2:]
    side = max(1, math.isqrt(h * w // max(1, n)))
    if h % side or w % side or (h // side) * (w // side) != n:
        raise LabkitError(
            f"{n} patch tokens are no grid of squares of a {h}x{w} image; expected a token for each square patch, "
            "none dropped or merged before."
        )
    return h // side, w // side


def pixels(evidence: Evidence, prefix: int) -> Tensor:
    """(b, patches, c p²): what each patch token was made from, in float32 or better."""
    h, w = patch_grid(evidence, prefix)
    assert evidence.images is not None
    images = evidence.images.to(torch.promote_types(evidence.images.dtype, torch.float32))
    return rearrange(images, "b c (h p) (w q) -> b (h w) (c p q)", h=h, w=w)


def pixel_variance(evidence: Evidence, prefix: int) -> Tensor:
    """A score for `Keep`: how much the numbers of each patch vary, over all its pixels and channels."""
    return pixels(evidence, prefix).var(dim=-1)


def cosine(patches: Tensor, words: Tensor) -> Tensor:
    """1 - cos, the paper's: blind to contrast, so a dim patch is like a bright one, and zeros are like nothing."""
    near = F.normalize(patches, dim=-1) @ F.normalize(words, dim=-1).T
    return (1 - near).clamp(min=0)  # rounding must not put a twin nearer than 0


def rms(patches: Tensor, words: Tensor) -> Tensor:
    """The root of the mean squared difference of their numbers, in units of a pixel: what k-means makes small."""
    squares = patches.square().mean(dim=-1, keepdim=True) + words.square().mean(dim=-1)
    return (squares - 2 * patches @ words.T / words.shape[1]).clamp(min=0).sqrt()


@torch.no_grad()
def learn_words(images: Tensor, patch: int, count: int, generator: torch.Generator, steps: int = 20) -> Tensor:
    """The `count` visual words (count, c p²) of the patches of (b, c, h, w) images, by k-means.

    A start is drawn far from those before it (k-means++), so that each is another patch; then every word becomes
    the mean of the patches nearest to it, `steps` times.
    """
    if patch < 1 or images.ndim != 4 or images.shape[-2] % patch or images.shape[-1] % patch:
        raise LabkitError(
            f"Images of shape {tuple(images.shape)} do not divide into patches of {patch}x{patch}; expected "
            "(b, c, h, w) with multiples of the patch size."
        )
    patches = rearrange(images, "b c (h p) (w q) -> (b h w) (c p q)", p=patch, q=patch)
    patches = patches.to(torch.promote_types(images.dtype, torch.float32))
    words = _starts(patches, count, generator)
    for _ in range(steps):
        home = rms(patches, words).argmin(dim=1)
        members = torch.bincount(home, minlength=count)[:, None]
        means = torch.zeros_like(words).index_add(0, home, patches) / members.clamp(min=1)
        words = torch.where(members > 0, means, words)
    return words


def _starts(patches: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(count, numbers): patches that all differ; the chance of the next is its squared distance to those before."""
    chosen: list[int] = []
    chance, square = torch.ones(len(patches)), patches.new_full((len(patches),), torch.inf)
    while len(chosen) < count and chance.any():
        chosen.append(int(torch.multinomial(chance, 1, generator=generator)))
        square = torch.minimum(square, (patches - patches[chosen[-1]]).square().mean(dim=1))
        chance = square.cpu()
    if count < 1 or len(chosen) < count:
        raise LabkitError(
            f"count={count} words cannot be learnt from {len(patches)} patches; expected a whole number from 1 to "
            "the number of patches that differ."
        )
    return patches[chosen]


def same_word(patches: Tensor, words: Tensor, threshold: float, distance: Distance = cosine) -> Tensor:
    """(b, n): the number of the group of each of (b, n, numbers) patches, in the order in which the groups begin.

    Patches nearer to their nearest word than the threshold share its group; any other is a group of its own.
    """
    b, n = patches.shape[:2]
    away, word = distance(patches, words).min(dim=2)
    place = torch.arange(n, device=patches.device).expand(b, n)
    label = torch.where(away < threshold, word, len(words) + place)
    first = torch.full((b, len(words) + n), n, device=patches.device).scatter_reduce(1, label, place, "amin")
    first = first.gather(1, label)
    return ((first == place).cumsum(dim=1) - 1).gather(1, first)


@dataclass
class VisualWords:
    """A reducer for the entry: patches nearer than the threshold to the same word become one token.

    `threshold=0` is the identity. Each image goes on with its own number of tokens; in a batch the places behind the
    shorter ones stay empty. Twins that no word is near stay two tokens.
    """

    words: Tensor  # (count, c p²), as `learn_words` gives them
    threshold: float
    distance: Distance = cosine

    def reduce(self, x: Tensor, evidence: Evidence, sizes: Tensor | None, prefix: int) -> tuple[Tensor, Groups]:
        if not self.threshold >= 0:
            raise LabkitError(f"threshold={self.threshold} is no distance; expected 0, which merges nothing, or more.")
        patches = pixels(evidence, prefix)
        if self.words.ndim != 2 or self.words.shape[1] != patches.shape[2]:
            raise LabkitError(
                f"The words have shape {tuple(self.words.shape)}, but the patches here are {patches.shape[2]} numbers "
                f"each; expected (count, {patches.shape[2]}), learnt at this patch size."
            )
        b, n = x.shape[:2]
        alone = torch.arange(n, device=x.device).expand(b, n)
        home = same_word(patches, self.words.to(patches), self.threshold, self.distance) + prefix
        home = torch.cat([alone[:, :prefix], home], dim=1)
        length = home.amax(dim=1, keepdim=True) + 1
        count = int(length.max())
        if bool((length == n).all()):
            return x, Groups.choice(alone, n)
        there = None if bool((length == count).all()) else (alone[:, :count] < length).to(x.dtype)
        groups = Groups(home, count, sizes, there=there)
        return groups.mean(x), groups
