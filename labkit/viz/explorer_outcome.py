"""What the model says: of an image, in a caption; and of an image while some of its heads are silent, as bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from labkit.data.batch import ImageSet
from labkit.tracing.capture import silenced
from labkit.tracing.record import as_logits, evaluating
from labkit.tracing.trace import Trace
from labkit.viz.explorer_words import ablate

TOP = 10  # classes that get a bar


@dataclass(frozen=True)
class Outcome:
    """`outcome(image, heads)`: the likeliest classes with their probabilities, whole and with these heads silent."""

    model: nn.Module
    trace: Trace
    names: Sequence[str]

    def __call__(self, image: int, heads: Sequence[Sequence[int]]) -> dict[str, Any]:
        before = after = self.trace.logits[image].detach()
        if heads:
            with evaluating(self.model), torch.inference_mode():
                run = silenced(self.model, [(layer, head) for layer, head in heads])
                after = as_logits(run(self.trace.images[image : image + 1]))[0]
        top = before.argsort(descending=True, stable=True)[:TOP].tolist()
        whole, rest = shares(before), shares(after)
        outcome = {
            "silenced": len(heads),
            "heads": sum(layer.heads for layer in self.trace.layers),
            "answer": class_name(self.names, int(after.argmax())),
            "classes": [
                {
                    "name": class_name(self.names, i),
                    "before": whole[i],
                    "after": rest[i],
                    "was": round(10 * before[i].item()),
                    "logit": round(10 * after[i].item()),
                }
                for i in top
            ],
        }
        return outcome | {"says": ablate(outcome)}


def shares(logits: Tensor) -> list[int]:
    """Probabilities in tenths of a percent: whole numbers, which read the same everywhere."""
    return [math.floor(share * 1000 + 0.5) for share in logits.double().softmax(dim=-1).tolist()]


def class_name(names: Sequence[str], number: int) -> str:
    return names[number] if number < len(names) else f"class {number}"


def caption(about: ImageSet, image: int) -> str:
    """The image, and its true class where that is known."""
    if about.labels is not None:
        return f"Image {image}: {class_name(about.names, int(about.labels[image]))}"
    return f"Image {image}: {about.names[image]}" if about.names else f"Image {image}"


def verdict(about: ImageSet, image: int, trace: Trace, name: str) -> str:
    """What the model says of the image; empty when it has no classes."""
    if trace.logits.ndim != 2 or trace.logits.shape[1] < 2:
        return ""
    names = about.names if about.labels is not None else ()
    best = int(trace.logits[image].argmax())
    sure = shares(trace.logits[image].detach())[best]
    return f". {name} says {class_name(names, best)} ({sure // 10}.{sure % 10} %)"


def picture(image: Tensor) -> np.ndarray:
    """uint8 (h, w, 3); an image that was normalised is stretched to its own darkest and brightest value."""
    pixels = image.detach().cpu().float().numpy()
    low, high = float(pixels.min()), float(pixels.max())
    if low < -1e-3 or high > 1 + 1e-3:
        pixels = (pixels - low) / max(high - low, 1e-12)
    pixels = pixels if len(pixels) == 3 else np.repeat(pixels[:1], 3, axis=0)
    return np.rint(pixels.clip(0, 1).transpose(1, 2, 0) * 255).astype(np.uint8)
