"""Every way to explain a prediction under one signature: a method takes (model, images, target) and gives maps.

A map is (b, rows, columns) on the model's patches, larger where the method sees more reason for the target class; the
target is one class, one for each image, or None for the predicted ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from labkit.explain import attribution
from labkit.explain.attention import class_row, gradient_rollout, reader_of, rollout
from labkit.explain.gradcam import grad_cam
from labkit.explain.patches import Target
from labkit.explain.relevance import relevance
from labkit.tracing.record import trace

Method = Callable[[nn.Module, Tensor, Target], Tensor]
BATCH = 32


def batched(method: Method) -> Method:
    """A few images at a time: the attention of many does not fit into memory."""

    @torch.enable_grad()
    def run(model: nn.Module, images: Tensor, target: Target = None) -> Tensor:
        parts = images.split(BATCH)
        targets = target.split(BATCH) if isinstance(target, Tensor) and target.ndim else [target] * len(parts)
        maps = [method(model, part, one) for part, one in zip(parts, targets, strict=True)]
        return torch.cat(maps).to(images.device)

    return run


def last_block(model: nn.Module, images: Tensor, target: Target = None) -> Tensor:
    return class_row(trace(model, images), reader=reader_of(model))


def all_blocks(model: nn.Module, images: Tensor, target: Target = None) -> Tensor:
    seen, reader = trace(model, images), reader_of(model)
    return torch.stack([class_row(seen, layer, reader=reader) for layer in range(len(seen.layers))]).mean(dim=0)


def plain_rollout(model: nn.Module, images: Tensor, target: Target = None) -> Tensor:
    return rollout(trace(model, images), reader=reader_of(model))


def class_rollout(model: nn.Module, images: Tensor, target: Target = None) -> Tensor:
    return gradient_rollout(trace(model, images, grads=True), target, reader=reader_of(model))


def class_relevance(model: nn.Module, images: Tensor, target: Target = None) -> Tensor:
    return relevance(trace(model, images, grads=True), target, reader=reader_of(model))


METHODS: dict[str, Method] = {
    # The first three look the same whatever the target is.
    "class attention, last block": batched(last_block),
    "class attention, mean of blocks": batched(all_blocks),
    "rollout": batched(plain_rollout),
    "gradient rollout": batched(class_rollout),
    "relevance (Chefer)": batched(class_relevance),
    "Grad-CAM": batched(grad_cam),
    "integrated gradients": partial(attribution.integrated_gradients, cache=False),
    "SmoothGrad": partial(attribution.smooth_grad, cache=False),
    "occlusion": partial(attribution.occlusion, cache=False),
    "patch ablation": partial(attribution.patch_ablation, cache=False),
}
