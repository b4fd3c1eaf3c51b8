"""Images with whatever is known about them: every reader of `labkit.data` returns this one type.

Slicing keeps images, labels and masks in step, so that no picture meets its neighbour's answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from labkit.errors import LabkitError


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """`data.images[3]`, `data[10:20]`, `data[data.labels == 2]`, `data.to("cuda")`."""

    images: Tensor  # (n, 3, h, w) float32 in [0, 1]
    labels: Tensor | None = None  # (n,) int64
    masks: Tensor | None = None  # (n, h, w) bool: which pixels are the object
    names: tuple[str, ...] = ()  # names[label] is the class in words; without labels, one name for each image
    skipped: tuple[str, ...] = ()  # one sentence for each file that could not be used

    def __post_init__(self) -> None:
        # The mean of finite numbers is finite: one cheap pass tells whether a pixel is NaN or infinite.
        if self.images.numel() and not self.images.is_meta and not self.images.mean().isfinite():
            bad = (~self.images.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
            raise LabkitError(
                f"{len(bad)} of {len(self.images)} images hold NaN or infinite pixels, the first is number {bad[0]}; "
                "mend or leave out these images."
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice | Tensor | Sequence[int]) -> ImageSet:
        if isinstance(index, int):
            raise TypeError("An ImageSet keeps its batch dimension: write data[i:i+1], or data.images[i].")
        rows = torch.arange(len(self))[index.cpu() if isinstance(index, Tensor) else index]
        names = self.names if self.labels is not None else tuple(self.names[i] for i in rows if self.names)
        return replace(self.map(lambda part: part[rows.to(part.device)]), names=names)

    def to(self, device: torch.device | str) -> ImageSet:
        return self.map(lambda part: part.to(device))

    def map(self, change: Callable[[Tensor], Tensor]) -> ImageSet:
        """The same set with `change` applied to images, labels and masks alike."""
        labels = None if self.labels is None else change(self.labels)
        masks = None if self.masks is None else change(self.masks)
        return replace(self, images=change(self.images), labels=labels, masks=masks)

    def __repr__(self) -> str:
        n, _, h, w = self.images.shape
        known = [f"{n} image{'s' * (n != 1)} of {h}×{w}"]
        known.append("no labels" if self.labels is None else f"{len(self.names)} classes")
        known += ["masks"] * (self.masks is not None)
        known += [f"{len(self.skipped)} skipped, see .skipped"] * bool(self.skipped)
        return f"ImageSet({', '.join(known)})"
