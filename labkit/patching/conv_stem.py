"""Let a few small convolutions make the tokens: each halves the image, and the last one is as wide as a token.

"Early Convolutions Help Transformers See Better", 2021: a stem of 3 x 3 convolutions of stride 2 in place of one
large patch trains faster and minds the learning rate less. The authors leave out one block to pay for it.

    vit = labkit.ViT(64, 8, 10, 64, 5, 4, patching=ConvStem(8, 64))
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Grid
from labkit.vit import check_images


class ConvStem(nn.Module):
    """Images → (x, grid) by log2(patch) convolutions with norm and ReLU, then a linear layer.

    The widths double up to `dim`. Kernels whose first row and column are zero do not overlap: without norms and
    bends the stem then is a PatchEmbed with a factored kernel.
    """

    def __init__(self, patch: int = 16, dim: int = 384, channels: int = 3) -> None:
        super().__init__()
        halvings = patch.bit_length() - 1
        if patch < 2 or patch != 2**halvings:
            raise LabkitError(f"The stem halves the image again and again: {patch} is no patch size of 2, 4, 8, 16, …")
        if dim % (patch // 2):
            raise LabkitError(f"The first convolution has {dim} / {patch // 2} channels; choose a width that divides.")
        self.patch, self.channels = patch, channels
        layers: list[nn.Module] = []
        for i in range(halvings):
            width = dim // 2 ** (halvings - 1 - i)
            layers += [nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.layers = nn.Sequential(*layers, nn.Conv2d(dim, dim, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Grid]:
        h, w = check_images(images, self.channels, (self.patch, self.patch))
        return rearrange(self.layers(images), "b d h w -> b (h w) d"), (h // self.patch, w // self.patch)
