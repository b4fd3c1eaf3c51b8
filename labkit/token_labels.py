"""Teach every token, not only the class token: during training each patch also names what lies on it.

"All Tokens Matter: Token Labeling for Training Better Vision Transformers", 2021. There a teacher network labels the
patches; here the object masks do. The extra head is dropped after training: what ships is the plain ViT.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit.data.batch import ImageSet
from labkit.vit import ViT


class TokenLabels(nn.Module):
    """A ViT with a training-time head that reads every patch token as one of the classes or as background."""

    def __init__(self, model: ViT) -> None:
        super().__init__()
        assert isinstance(model.head, nn.Linear)
        self.model = model
        self.head = nn.Linear(model.head.in_features, model.head.out_features + 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


def coverage(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """Share of each patch that is object, (b, patches)."""
    return F.adaptive_avg_pool2d(masks.float()[:, None], grid).flatten(1)


def patch_targets(labels: Tensor, masks: Tensor, grid: tuple[int, int], classes: int) -> Tensor:
    """(b, patches, classes + 1): the share of each patch that is object goes to its class, the rest to background."""
    inside = coverage(masks, grid)
    kind = F.one_hot(labels, classes)[:, None] * inside[..., None]
    return torch.cat([kind, 1 - inside[..., None]], dim=-1)


def token_label_loss(wrapped: nn.Module, batch: ImageSet) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the image's label plus that of its patches' labels."""
    assert isinstance(wrapped, TokenLabels) and batch.masks is not None and batch.labels is not None
    seen = wrapped.model.observe(batch.images)
    patches = wrapped.head(seen.steps[-1].x[:, wrapped.model.prefix :]).float()
    targets = patch_targets(batch.labels, batch.masks, seen.grid, patches.shape[-1] - 1)
    loss = F.cross_entropy(seen.logits.float(), batch.labels)
    return loss + F.cross_entropy(patches.flatten(0, 1), targets.flatten(0, 1)), seen.logits
