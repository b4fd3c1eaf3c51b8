"""One token for each patch of each channel: channels may be missing, and a model learns what each of them says.

All channels share one projection; a learned embedding tells them apart, a learned position is common to them.
In training a random subset is shown: first its size, uniform on 1..C, then its members. c channels make c times
the tokens and c² times the attention. "Channel Vision Transformers: An Image Is Worth C x 16 x 16 Words", 2023 (S308).

    patching = ChannelPatchEmbed(64, 8, dim=64, channels=5, sample=True)
    vit = ViT(64, dim=64, depth=4, heads=4, channels=5, patching=patching, positions=False)
    patching.holds = (0, 3)  # from here on, images hold these two channels

When each image of a batch has channels of its own, they are padded and masked: "ChAda-ViT : Channel Adaptive
Attention for Joint Representation Learning of Heterogeneous Microscopy Images", 2023 (S330).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Grid
from labkit.patching.patches import pair
from labkit.vit import Size, ViT, check_images, resample_positions


def hierarchical_channel_sample(channels: int, generator: torch.Generator | None = None) -> Tensor:
    """A random subset of the channels, in order: its size is uniform, and so is the subset among those of its size.

    A channel is in it with probability Σₘ (1 / C) (m / C) = (C + 1) / 2C.
    """
    size = int(torch.randint(1, channels + 1, (), generator=generator))
    return torch.randperm(channels, generator=generator)[:size].sort().values


class ChannelPatchEmbed(nn.Module):
    """Images (b, c, h, w) → tokens (b, c * rows * columns, dim), channel after channel, on a grid (c * rows, columns).

    `tied=False` gives each channel a kernel of its own; the sum over channels is then a `PatchEmbed`.
    """

    def __init__(
        self, image_size: Size, patch: int, dim: int, channels: int, tied: bool = True, sample: bool = False
    ) -> None:
        super().__init__()
        self.patch, self.sample = patch, sample
        h, w = pair(image_size)
        self.grid: Grid = (h // patch, w // patch)
        self.weight = nn.Parameter(torch.randn(1 if tied else channels, dim, 1, patch, patch) * 0.02)
        self.bias = nn.Parameter(torch.zeros(dim))
        self.channel_embed = nn.Parameter(torch.randn(channels, dim) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, self.grid[0] * self.grid[1], dim) * 0.02)
        self.holds: Sequence[int] = tuple(range(channels))  # which of the channels the images hold, in their order

    def forward(self, images: Tensor) -> tuple[Tensor, Grid]:
        check_images(images, len(self.holds), (self.patch, self.patch))
        holds = torch.tensor(tuple(self.holds), device=images.device)
        if self.training and self.sample:
            shown = hierarchical_channel_sample(len(holds)).to(images.device)
            images, holds = images[:, shown], holds[shown]
        weight = self.weight.expand(len(self.channel_embed), -1, -1, -1, -1)[holds].flatten(0, 1)
        maps = F.conv2d(images, weight, self.bias.repeat(len(holds)), self.patch, groups=len(holds))
        h, w = maps.shape[-2:]
        x = rearrange(maps, "b (c d) h w -> b c (h w) d", c=len(holds))
        x = x + self.channel_embed[holds][:, None] + resample_positions(self.pos_embed, self.grid, (h, w))
        return x.flatten(1, 2), (len(holds) * h, w)


def present_forward(vit: ViT, images: Tensor, present: Tensor) -> Tensor:
    """Logits of a ViT on channel tokens when image i holds only the channels where `present` (b, c) is True.

    What stands in the others is anything finite: no token attends to them, and the head does not read them.
    """
    if present.shape != images.shape[:2] or not present.any(dim=1).all():
        b, c = images.shape[:2]
        raise LabkitError(f"present must be ({b}, {c}) truth values with a True for each image; mark what it holds.")
    x, (h, w) = vit.embed(images)
    here = present.repeat_interleave(h * w // images.shape[1], dim=1)
    # A block adds log(size) to the scores of a key: a token that stands for no patch at all gets -inf.
    sizes = F.pad(here, (vit.prefix, 0), value=True).to(x)
    for block in vit.blocks:
        x = block(x, (h, w), sizes, vit.prefix).x
    return torch.cat([vit.read(x[i : i + 1, own > 0]) for i, own in enumerate(sizes)])
