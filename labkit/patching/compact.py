"""Small ViTs for little data: convolutions and pooling make the tokens, and a learned mean of the tokens is the image.

"Escaping the Big Data Paradigm with Compact Transformers", 2021 (S250). Overlapping convolutions give what a large
data set would have had to teach; the pooling reads all tokens, so that there is no class token.

    vit = cct(depth=2, heads=2, dim=128, layers=2)                               # CCT-2/3x2, 0.28 M parameters
    vit = labkit.ViT(64, 8, 10, 64, 6, 4, pool=SeqPool(64))                      # the pooling alone
    vit = labkit.ViT(64, 8, 10, 64, 6, 4, patching=ConvTokenizer(64, layers=3))  # the tokenizer alone
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from einops import rearrange
from torch import Tensor, nn

from labkit.evidence import Grid
from labkit.layers import log_sizes
from labkit.vit import ViT, check_images


class ConvTokenizer(nn.Module):
    """Images → (x, grid) by `layers` times convolution, ReLU and a pooling that halves the grid.

    With a kernel and a stride of one patch, no padding, no bend and no pooling it is PatchEmbed.
    """

    def __init__(
        self,
        dim: int,
        layers: int = 2,
        kernel: int = 3,
        stride: int = 1,
        padding: int | None = None,  # None: half a kernel
        channels: int = 3,
        hidden: int = 64,
        act: Callable[[], nn.Module] = nn.ReLU,
        pool: bool = True,
    ) -> None:
        super().__init__()
        self.channels = channels
        padding = kernel // 2 if padding is None else padding
        widths = [channels] + [hidden] * (layers - 1) + [dim]
        parts: list[nn.Module] = []
        for before, after in pairwise(widths):
            parts += [nn.Conv2d(before, after, kernel, stride, padding, bias=False), act()]
            parts += [nn.MaxPool2d(3, 2, 1)] if pool else []
        self.layers = nn.Sequential(*parts)

    def forward(self, images: Tensor) -> tuple[Tensor, Grid]:
        check_images(images, self.channels, None)
        maps = self.layers(images)
        return rearrange(maps, "b d h w -> b (h w) d"), (maps.shape[-2], maps.shape[-1])


class SeqPool(nn.Module):
    """Tokens (b, n, d) → (b, d): their mean, weighted by the softmax of a learned score; zero scores: the mean."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1)

    def weights(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """How much each token counts, (b, n), one of s patches s times; the rows sum to 1."""
        scores = self.score(x)[..., 0]
        return (scores if sizes is None else scores + log_sizes(sizes)).softmax(dim=-1)

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        return (self.weights(x, sizes)[:, None] @ x)[:, 0]


def cct(
    depth: int = 2,
    heads: int = 2,
    dim: int = 128,
    layers: int = 2,
    kernel: int = 3,
    image_size: int = 32,
    classes: int = 10,
    mlp_ratio: float = 1.0,
) -> ViT:
    """CCT-depth/kernel x layers, the compact convolutional transformer; with 6 or 7 blocks, mlp_ratio is 2."""
    tokenizer = ConvTokenizer(dim, layers, kernel)
    return ViT(image_size, 1, classes, dim, depth, heads, mlp_ratio, patching=tokenizer, pool=SeqPool(dim))
