"""Is attention an explanation? Take a head away and see: the only question about a head that is causal.

"Are Sixteen Heads Really Better than One?", 2019: the importance of a head is what its absence changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from labkit.explain.patches import Target, chosen_class
from labkit.tracing.capture import Head, silenced
from labkit.tracing.record import evaluating, trace


class HeadEffects(NamedTuple):
    """What changes when one head puts out zeros, (layers, heads) each; NaN where a layer has fewer heads."""

    probability: Tensor  # of the target class, the mean over images: without the head minus with it
    accuracy: Tensor  # the share of images given the target class, likewise


@torch.no_grad()
def without(model: nn.Module, images: Tensor, heads: Iterable[Head], batch: int = 256) -> Tensor:
    """The logits (b, classes) when these heads, pairs (layer, head), put out zeros."""
    with evaluating(model):
        run = silenced(model, heads)
        return torch.cat([run(part) for part in images.split(batch)])


def head_effects(model: nn.Module, images: Tensor, target: Target = None, batch: int = 256) -> HeadEffects:
    """The effect of each head alone on the target class: the labels, or what the whole model predicts."""
    layers = [layer.heads for layer in trace(model, images[:1]).layers]
    whole = without(model, images, [], batch)
    labels = chosen_class(whole, target)
    effects = torch.full((2, len(layers), max(layers, default=0)), torch.nan)
    for layer, heads in enumerate(layers):
        for head in range(heads):
            logits = without(model, images, [(layer, head)], batch)
            effects[:, layer, head] = verdict(logits, labels) - verdict(whole, labels)
    return HeadEffects(*effects)


def verdict(logits: Tensor, labels: Tensor) -> Tensor:
    """(2,): the mean probability of the labels and the share of images that get them."""
    probability = logits.softmax(dim=1).gather(1, labels[:, None])[:, 0]
    return torch.stack([probability, (logits.argmax(dim=1) == labels).float()]).mean(dim=1).cpu()
