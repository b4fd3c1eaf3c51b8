"""Let patches overlap: a kernel wider than its stride, so that no edge of a patch cuts an object unseen.

As in "CvT: Introducing Convolutions to Vision Transformers", 2021 (S017), and in "PVT v2: Improved Baselines with
Pyramid Vision Transformer", 2021. The tokens are as many as the strides, floor((h + 2 padding - kernel) / stride) + 1
in a column, but each costs c kernel² d: (kernel / stride)² times the patches that do not overlap.

    vit = labkit.ViT(64, 8, 10, 64, 6, 4, patching=OverlapPatchEmbed(64, kernel=15, stride=8))
    token_grid((224, 224), kernel=7, stride=4, padding=3)            # (56, 56)
    OverlapPatchEmbed(64, 8, 8, padding=0, norm=torch.nn.Identity)   # PatchEmbed(8)
"""

from __future__ import annotations

from collections.abc import Callable

from einops import rearrange
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Grid
from labkit.vit import check_images


def token_grid(size: Grid, kernel: int, stride: int, padding: int = 0) -> Grid:
    """How many places a sliding square has: floor((size + 2 padding - kernel) / stride) + 1 in each direction."""
    h, w = ((side + 2 * padding - kernel) // stride + 1 for side in size)
    if h < 1 or w < 1:
        raise LabkitError(
            f"A kernel of {kernel} does not fit into {size[0]}x{size[1]} pixels with a padding of {padding}; "
            "choose a smaller kernel or a larger image."
        )
    return h, w


class OverlapPatchEmbed(nn.Module):
    """Images → (x, grid) by a convolution and a norm; parameters carry the names of timm's PVT v2."""

    def __init__(
        self,
        dim: int,
        kernel: int = 7,
        stride: int = 4,
        padding: int | None = None,  # None: half a kernel, so that the grid is that of the strides
        channels: int = 3,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        if kernel < stride:
            raise LabkitError(f"A kernel of {kernel} with a stride of {stride} skips pixels; choose a larger kernel.")
        self.proj = nn.Conv2d(channels, dim, kernel, stride, kernel // 2 if padding is None else padding)
        self.norm = norm(dim)

    def forward(self, images: Tensor) -> tuple[Tensor, Grid]:
        proj = self.proj
        size = check_images(images, proj.in_channels, None)
        grid = token_grid(size, proj.kernel_size[0], proj.stride[0], int(proj.padding[0]))
        return self.norm(rearrange(proj(images), "b d h w -> b (h w) d")), grid
