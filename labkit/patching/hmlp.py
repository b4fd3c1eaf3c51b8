"""A small MLP inside each patch: pixels become 4x4 cells, cells become a patch, and no patch sees another.

So hiding patches before the stem or after it is the same, as masked training wants; convolutions that overlap
break this. "Three things everyone should know about Vision Transformers", 2022 (S226); parameters carry the
names of the authors' stem.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Grid
from labkit.vit import check_images


class HMLPStem(nn.Module):
    """Images → (x, grid) by strides 4, 2, 2, …: `ViT(patching=HMLPStem(16, dim))`.

    Without norms and bends it is `PatchEmbed` with a factored kernel. The norms are batch norms: in training,
    a hidden patch still touches the others through the statistics of the batch.
    """

    def __init__(self, patch: int = 16, dim: int = 768, channels: int = 3) -> None:
        super().__init__()
        self.patch, self.channels = patch, channels
        strides = _strides(patch)
        if dim % 4:
            raise LabkitError(f"The stem is a quarter as wide as its output inside; {dim} is no multiple of 4.")
        widths = [channels] + [dim // 4] * (len(strides) - 1) + [dim]
        layers: list[nn.Module] = []
        for stride, before, after in zip(strides, widths, widths[1:], strict=False):
            layers += [nn.Conv2d(before, after, stride, stride), nn.BatchNorm2d(after), nn.GELU()]
        self.proj = nn.Sequential(*layers[:-1])

    def forward(self, images: Tensor) -> tuple[Tensor, Grid]:
        h, w = check_images(images, self.channels, (self.patch, self.patch))
        return rearrange(self.proj(images), "b d h w -> b (h w) d"), (h // self.patch, w // self.patch)


def _strides(patch: int) -> list[int]:
    """16 → 4, 2, 2; 8 → 4, 2; 4 → 4."""
    strides = [4]
    while patch > 4 and patch % 2 == 0:
        strides, patch = [*strides, 2], patch // 2
    if patch != 4:
        raise LabkitError("The stem goes from pixels to 4x4 cells and doubles: choose a patch size of 4, 8, 16 or 32.")
    return strides
