"""The same budget after a short training: what a few hundred steps win back, and what learning what to drop adds.

Every row starts from `shapes-vit`, sees the same images in the same order, and is judged as in `tokens_accuracy`. The
full model, trained on as long, is the control: what it gains is no method's. At keep 0.3 behind the second block a
model costs half of its MACs, and the schedules get that budget, too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from bench.tokens_accuracy import CUT, IMAGES, MODEL, judged, merged
from labkit import data, tokens, zoo
from labkit.data.batch import ImageSet
from labkit.intervals import wilson
from labkit.tables import Table, ranged
from labkit.tokens import score
from labkit.tokens.learned import LearnedDrop, dropping_loss
from labkit.tokens.rates import attach_rates, rate_loss, rates
from labkit.tokens.schedule import SHARES, attach_schedule, staged, to_macs
from labkit.train import Loss, Recipe, epochs, train
from labkit.vit import ViT

KEEP, MACS, STEPS, SIZE = 0.3, 0.5, 300, 32
Student = tuple[ViT, Loss | None, float]  # what is trained, its loss (None: cross-entropy) and the learning rate


@cache
def lessons() -> ImageSet:
    return data.shapes("train", STEPS * SIZE, start=1_000_000)


def by(reducer: Callable[[], Any]) -> Callable[[ViT], Student]:
    return lambda model: (tokens.attach(model, reducer(), [CUT]), None, 1e-4)


def joined(make: Callable[[int], Any]) -> Callable[[ViT], Student]:
    return lambda model: (merged(make)(model, KEEP, lessons()), None, 1e-4)


def scheduled(make: Any, plan: Any, dial: Any) -> Callable[[ViT], Student]:
    return lambda model: (attach_schedule(model, make, to_macs(model, MACS, make, plan, dial)), None, 1e-4)


def predictor(model: ViT) -> Student:
    """DynamicViT: nothing but the predictor learns."""
    drop = LearnedDrop(model.blocks[0].norm1.weight.shape[0], KEEP)
    return tokens.attach(model.requires_grad_(False), drop, [CUT]), dropping_loss(), 4e-3


def learned_rates(merge: bool) -> Callable[[ViT], Student]:
    """DiffRate: nothing but the rates learns."""

    def student(model: ViT) -> Student:
        slim = attach_rates(model.requires_grad_(False), merge=merge)
        for rate in rates(slim):
            if rate is not None:
                rate.requires_grad_(True)
        return slim, rate_loss(MACS), 0.05

    return student


ROWS: dict[str, Callable[[ViT], Student]] = {
    "full": lambda model: (model, None, 1e-4),
    "keep: class attention": by(lambda: tokens.Keep(KEEP)),
    "keep: away from the crowd": by(lambda: tokens.Keep(KEEP, score.reverse(score.energy()))),
    "fuse: class attention": by(lambda: tokens.Fuse(KEEP)),
    "keep: a learned predictor, weights frozen": predictor,
    "merge: similar keys": joined(tokens.Merge),
    "merge: several criteria": joined(tokens.MergeByCriteria),
    "control: chance": by(lambda: tokens.Keep(KEEP, score.random(torch.Generator().manual_seed(0)))),
    "schedule: keep in three blocks": scheduled(tokens.Keep, staged, SHARES),
    "schedule: learned rates, weights frozen, dropping": learned_rates(merge=False),
    "schedule: learned rates, weights frozen, merging": learned_rates(merge=True),
}


def measure(n: int = IMAGES, steps: int = STEPS) -> dict[str, Any]:
    """Row → its accuracy, recall and MACs before and after."""
    images, teacher = data.shapes("test", n), zoo.load(MODEL)
    with torch.no_grad():
        full = torch.cat([teacher(part) for part in images.images.split(250)])
    found: dict[str, Any] = {}
    for name, build in ROWS.items():
        torch.manual_seed(0)
        slim, loss, lr = build(copy.deepcopy(zoo.load(MODEL)))
        found[name] = {"before": judge(slim, full, images)}
        train(slim, epochs(lessons(), SIZE), Recipe(steps, "adamw", lr=lr, weight_decay=0.0), loss=loss)
        found[name]["after"] = judge(slim, full, images)
        print(
            f"{name}: {found[name]['before']['accuracy'][0]:.3f} → {found[name]['after']['accuracy'][0]:.3f}",
            flush=True,
        )
    return found


def judge(slim: ViT, full: torch.Tensor, images: ImageSet) -> dict[str, Any]:
    found = judged(lambda *_: slim, KEEP, slim.eval(), full, images)
    hits = found["hits"]
    recall = float(found["recall"].mean())
    accuracy = [float(hits.float().mean()), *wilson(int(hits.sum()), len(hits))]
    return {"accuracy": accuracy, "agreement": found["agreement"], "recall": recall, "macs": found["macs"]}


def summary(found: dict[str, Any]) -> str:
    whole = found["full"]["before"]["macs"]

    lines = []
    for name in sorted(found, key=lambda name: -found[name]["after"]["accuracy"][0]):
        before, after = found[name]["before"], found[name]["after"]
        shares = [100 * before["macs"] / whole, 100 * after["macs"] / whole]
        recalls = [100 * before["recall"], 100 * after["recall"]]
        lines.append([name, ranged(before["accuracy"], ".1f", 100), ranged(after["accuracy"], ".1f", 100)])
        lines[-1] += ["{:.0f} → {:.0f}".format(*pair) for pair in (recalls, shares)]
    columns = ["off the shelf, %", f"after {STEPS} steps of {SIZE}, %", "object recall, %", "MACs, %"]
    return str(Table([f"{MODEL}, trained on, one seed", *columns], lines, [False] + [True] * len(columns)))
