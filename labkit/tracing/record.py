"""Run a model once and keep what it attended to: `trace(model, images)`, and `plan`, which says what that costs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from labkit.errors import LabkitError
from labkit.tracing.keeping import Budget, Keep
from labkit.tracing.recorders import OwnRecorder, Watcher
from labkit.tracing.trace import Trace
from labkit.vit import ViT

LIMIT = 2**30  # bytes of attention


def trace(
    model: nn.Module,
    images: Tensor,
    *,
    grads: bool = False,
    keep: Keep = "float32",
    layers: Iterable[int] | None = None,
    batch: int = 32,
    limit: float = LIMIT,
) -> Trace:
    """Run the model on images (b, 3, h, w), in evaluation mode, and keep its attention.

    `keep` and `layers` (numbers in the order in which they run, negative ones from the end) save memory; more than
    `limit` bytes are refused. `grads=True` keeps the graph of one batch, so that `Trace.gradients` works.
    """
    if grads and keep != "float32":
        raise LabkitError(f'Gradients need keep="float32", not "{keep}".')
    budget = Budget(keep, limit, len(images), thrifty="float32" if grads else "uint8")
    return _run(model, images, grads, budget, layers, len(images) if grads else batch)


def plan(model: nn.Module, images: Tensor, layers: Iterable[int] | None = None) -> str:
    """What a trace of these images would take, as a sentence; one image is run, and nothing is kept."""
    budget = Budget("float32", math.inf, len(images), record=False)
    _run(model, images[:1], False, budget, layers, 1)
    return budget.sentence()


def _run(
    model: nn.Module, images: Tensor, grads: bool, budget: Budget, layers: Iterable[int] | None, batch: int
) -> Trace:
    model = getattr(model, "_orig_mod", model)
    _check(model, images)
    chosen = None if layers is None else list(layers)
    if chosen is not None and any(number < 0 for number in chosen):  # from the end: one image tells where that is
        count = len(_run(model, images[:1], False, Budget("uint8", math.inf, 1, record=False), None, 1).layers)
        chosen = [number + count if -count <= number < 0 else number for number in chosen]
    recorder = (OwnRecorder if isinstance(model, ViT) else Watcher)(model, budget, chosen, grads)
    logits = []
    with evaluating(model), torch.set_grad_enabled(grads):
        for part in images.split(batch):
            logits.append(as_logits(recorder.run(part)))
            budget.check()
        return recorder.trace(images, torch.cat(logits))


def _check(model: nn.Module, images: Tensor) -> None:
    """A sentence for what would otherwise fail somewhere inside the model."""
    if images.ndim != 4 or not len(images):
        raise LabkitError(f"A trace needs images (batch, channels, height, width); these are {tuple(images.shape)}.")
    devices = {str(tensor.device) for tensor in (images, *model.parameters())}
    if len(devices) > 1 or "meta" in devices:
        raise LabkitError(
            f"The model and the images are on {' and '.join(sorted(devices))}; expected one device that holds numbers."
        )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout and no statistics of the batch inside; every module is as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def as_logits(out: Any) -> Tensor:
    """The (b, classes) tensor of what a model returned."""
    out = getattr(out, "logits", out)
    out = out[0] if isinstance(out, tuple | list) and out else out
    if not isinstance(out, Tensor):
        raise LabkitError(f"The model returned a {type(out).__name__}; expected a tensor of logits (batch, classes).")
    return out
