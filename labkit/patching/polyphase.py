"""Cut the image where its content says, not where its frame does: then a shift moves the tokens and changes none.

A grid of stride p can begin at p² phases. Take the phase whose pixels have the largest norm, and roll it to the
corner: an image that was shifted around its edges is cut in the same places as before. "Reviving Shift Equivariance
in Vision Transformers", 2023 (S349). Positions must then be relative or convolved: a learned table breaks it.

    vit = ViT(64, dim=64, depth=4, heads=4, patching=Anchored(PatchEmbed(8, 3, 64), 8), positions=False, pool="avg")
    shift_consistency(vit, images, [(0, 1), (3, 5)])  # → ones

It costs one pass over the pixels. Between two phases of equal norm the first wins, which a shift may change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.evidence import Grid
from labkit.patching.patches import pair
from labkit.vit import Size, check_images


def norm(phases: Tensor) -> Tensor:
    """Euclidean, in double precision: a shift changes the order of the sum, and must not change the winner."""
    return phases.double().norm(dim=-1)


def polyphase_anchor(x: Tensor, stride: Size, score: Callable[[Tensor], Tensor] = norm) -> tuple[Tensor, Tensor]:
    """Images or maps (b, c, h, w), rolled so that the best phase begins in the corner, and that phase (b, 2).

    `score` sees what each phase holds, (b, phases, values) in any order, and the largest score wins.
    """
    h, w = check_images(x, x.shape[1], pair(stride))
    p, q = pair(stride)
    best = score(rearrange(x, "b c (h p) (w q) -> b (p q) (c h w)", p=p, q=q)).argmax(dim=1)
    phase = torch.stack([best // q, best % q], dim=1)
    rows = (phase[:, :1] + torch.arange(h, device=x.device)) % h
    columns = (phase[:, 1:] + torch.arange(w, device=x.device)) % w
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    return x.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2), phase


class Anchored(nn.Module):
    """Any patching of this stride, on images that were anchored first."""

    def __init__(self, patching: nn.Module, stride: Size) -> None:
        super().__init__()
        self.patching, self.stride = patching, stride

    def forward(self, images: Tensor) -> tuple[Tensor, Grid]:
        return self.patching(polyphase_anchor(images, self.stride)[0])


@torch.no_grad()
def shift_consistency(model: Callable[[Tensor], Tensor], images: Tensor, shifts: Sequence[Grid]) -> Tensor:
    """For each shift (down, right), around the edges: the share of images that keep their predicted class."""
    if not len(shifts):
        raise LabkitError("No shift was given; try shifts=[(0, 1), (1, 0)].")
    before = model(images).argmax(dim=-1)
    rolled = (images.roll(tuple(shift), dims=(-2, -1)) for shift in shifts)
    return torch.stack([(model(moved).argmax(dim=-1) == before).double().mean() for moved in rolled])
