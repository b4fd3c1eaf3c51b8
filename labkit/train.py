"""One training loop for everything: a step is a pure function of (weights, optimizer state, step number).

Because batches are addressed by their step and nothing else is random, a run that is killed resumes from its last
checkpoint and ends with the same weights as one that was not. AdamW follows "Decoupled Weight Decay Regularization"
(2019); Muon ("Muon: An optimizer for hidden layers", 2024) orthogonalises the update of every matrix in the blocks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from labkit.data.batch import ImageSet
from labkit.errors import LabkitError
from labkit.resume import checkpoint, keep, restore

Batches = Callable[[int, float], ImageSet]  # (step, share of the run that is done) → one batch
Loss = Callable[[nn.Module, ImageSet], tuple[Tensor, Tensor]]  # → (loss, logits)


@dataclass(frozen=True)
class Recipe:
    """How to train; everything a model card must repeat."""

    steps: int
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05  # share of the steps
    smoothing: float = 0.0
    ema: float = 0.0  # 0 is off, else the decay of the average of the weights
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0


@dataclass
class Log:
    """What happened: one row each `every` steps, ready for JSON and for a plot."""

    rows: list[dict[str, float]] = field(default_factory=list)

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.rows, indent=1) + "\n")


def labels_of(batch: ImageSet) -> Tensor:
    if batch.labels is None:
        raise LabkitError("Training needs labels, and these images have none; use class sub-folders.")
    return batch.labels


def classify(smoothing: float = 0.0) -> Loss:
    """Cross-entropy of the labels."""

    def loss(model: nn.Module, batch: ImageSet) -> tuple[Tensor, Tensor]:
        logits = model(batch.images).float()
        return F.cross_entropy(logits, labels_of(batch), label_smoothing=smoothing), logits

    return loss


def epochs(data: ImageSet, batch: int, seed: int = 0) -> Batches:
    """Batches from a finite set: a fresh permutation each epoch, addressed by the step alone."""
    per_epoch = max(1, len(data) // batch)

    def at(step: int, done: float) -> ImageSet:
        epoch, i = divmod(step, per_epoch)
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        return data[order[i * batch : (i + 1) * batch]]

    return at


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a half cosine to zero."""
    warm = max(1, round(recipe.warmup * recipe.steps))
    if step < warm:
        return recipe.lr * (step + 1) / warm
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, recipe.steps - warm)))


def optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW for all, or Muon for the matrices of the blocks and AdamW for the rest; vectors are never decayed."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    muon = [p for name, p in named if recipe.optimizer == "muon" and p.ndim == 2 and "blocks." in name]
    rest = [(name, p) for name, p in named if not any(p is q for q in muon)]
    plain = [p for name, p in rest if p.ndim < 2 or name.rsplit(".", 1)[-1] in ("pos_embed", "cls_token", "reg_token")]
    decayed = [p for _, p in rest if not any(p is q for q in plain)]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    # Muon's update has the size of AdamW's under this rule, so one learning rate drives both.
    adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=recipe.lr)
    if not muon:
        return [adamw]
    kwargs: dict[str, Any] = {"weight_decay": recipe.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
    return [torch.optim.Muon(muon, lr=recipe.lr, **kwargs), adamw]


def train(
    model: nn.Module,
    batches: Batches,
    recipe: Recipe,
    *,
    loss: Loss | None = None,
    folder: str | Path | None = None,
    every: int = 100,
    validate: Callable[[nn.Module], float] | None = None,
    watch: Callable[[list[dict[str, float]]], None] | None = None,
    progress: bool = False,
) -> Log:
    """Train `model` in place. With `folder`, every `every` steps are safe: the same call resumes after a kill.

    `validate(model)` is logged with each row; `watch(rows)` is called with the log so far (a live plot, say).
    """
    loss = loss or classify(recipe.smoothing)
    device = next(model.parameters()).device
    optims = optimizers(model, recipe)
    average = {k: v.detach().clone() for k, v in model.state_dict().items()} if recipe.ema else {}
    log, begin = Log(), 0
    if folder is not None and checkpoint(folder).exists():
        begin, log.rows = restore(folder, asdict(recipe), model, optims, average)
    seen: list[float] = []
    model.train()
    for step, batch in _ahead(batches, begin, recipe.steps, progress):
        batch = batch.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            value, logits = loss(model, batch)
        if not torch.isfinite(value):
            raise LabkitError(
                f"The loss became {value.item()} at step {step}; lower lr={recipe.lr} or lengthen warmup."
            )
        value.backward()
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = learning_rate(recipe, step)
            optim.step()
            optim.zero_grad()
        with torch.no_grad():
            for name, now in model.state_dict().items() if recipe.ema else ():
                if now.is_floating_point():
                    average[name].lerp_(now, 1 - min(recipe.ema, (step + 1) / (step + 10)))
                else:  # a counter has no average
                    average[name].copy_(now)
        seen.append((logits.argmax(-1) == labels_of(batch)).float().mean().item())
        if (step + 1) % every == 0 or step + 1 == recipe.steps:
            row = {
                "step": step + 1,
                "loss": round(value.item(), 4),
                "accuracy": round(sum(seen) / len(seen), 4),
            }
            if validate is not None:
                row["validation"] = round(validate(model.eval()), 4)
                model.train()
            log.rows, seen = [*log.rows, row], []
            if watch is not None:
                watch(log.rows)
            if folder is not None:
                keep(folder, step + 1, asdict(recipe), model, optims, average, log.rows)
    if recipe.ema:
        model.load_state_dict(average)
    model.eval()
    return log


def _ahead(batches: Batches, begin: int, steps: int, progress: bool) -> Iterator[tuple[int, ImageSet]]:
    """Every step with its batch, which was made in a second thread while the step before it ran."""
    with ThreadPoolExecutor(1) as pool:
        coming = [pool.submit(batches, step, step / steps) for step in range(begin, min(begin + 2, steps))]
        for step in tqdm(range(begin, steps), initial=begin, total=steps, disable=not progress):
            batch = coming.pop(0).result()
            if step + 2 < steps:
                coming.append(pool.submit(batches, step + 2, (step + 2) / steps))
            yield step, batch
