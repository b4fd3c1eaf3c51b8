"""A study: one small ViT, one thing exchanged from row to row, the same images seen; each finished run is kept.

An interrupted study goes on where it was. The images are the silhouettes of `shapes` (its masks) in pixel noise, as
colours and clutter take a ViT of this size too long to learn; or scikit-learn's handwritten digits, enlarged.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from math import sqrt
from typing import Any, Literal

import numpy as np
import torch
from scipy.stats import t
from torch import Tensor

from labkit import data, paths, results
from labkit.cost import count
from labkit.data.batch import ImageSet
from labkit.data.shapes import Task
from labkit.errors import LabkitError
from labkit.intervals import wilson
from labkit.patching.polyphase import shift_consistency
from labkit.tables import Table, ranged
from labkit.train import Recipe, epochs, train
from labkit.verify import hits
from labkit.vit import ViT

NOISE = 0.1  # of the pixels, which lie at -1 and 1
Rows = dict[str, Callable[[], ViT]]


@dataclass(frozen=True)
class Study:
    """Rows that are trained on the same images and compared with one of them."""

    name: str
    command: str  # the file that measures it
    task: Task | Literal["digits"]
    reference: str
    rows: Rows
    steps: int
    lr: float
    vit: tuple[tuple[str, int], ...]  # what the rows share, as pairs: "size" of the images, "dim", "depth", …
    sizes: tuple[int, ...]  # tested; trained at the first
    shifts: tuple[tuple[int, int], ...] = ()  # pixels down and right, around the edges
    batch: int = 64
    train_images: int = 9600
    test_images: int = 500

    def setting(self) -> dict[str, Any]:
        """What a stored run must share with a new one."""
        keys = ("task", "reference", "steps", "lr", "batch", "train_images", "test_images")
        seen = {
            "images_seen": self.steps * self.batch,
            "noise": NOISE,
            "shifts": [list(shift) for shift in self.shifts],
        }
        return {key: getattr(self, key) for key in keys} | dict(self.vit) | seen


@cache
def silhouettes(split: str, n: int, size: int, task: Task) -> ImageSet:
    """Objects at 1, the rest at -1, and noise; the scene of an index is the same at every size."""
    plain = data.shapes(split, n, size, task=task, difficulty=0.0)
    assert plain.masks is not None
    dice = torch.Generator().manual_seed(size if split == "train" else -size)  # none of the noise is seen twice
    images = 2.0 * plain.masks - 1 + NOISE * torch.randn(plain.masks.shape, generator=dice)
    return replace(plain, images=images[:, None].expand(-1, 3, -1, -1))


@cache
def handwriting(split: str, n: int, size: int) -> ImageSet:
    """Digits between -2 and 2; those to test are the ones that the set holds out."""
    digits = data.digits("train" if split == "train" else "val", size)[:n]
    return replace(digits, images=(digits.images - 0.5) / 0.25)


def images(study: Study, split: str, size: int) -> ImageSet:
    n = study.train_images if split == "train" else study.test_images
    return handwriting(split, n, size) if study.task == "digits" else silhouettes(split, n, size, study.task)


def measure(study: Study, row: str, seed: int) -> dict[str, Any]:
    """Train one model, then ask it at every size and under every shift."""
    torch.manual_seed(seed)
    model = study.rows[row]()
    pool = images(study, "train", study.sizes[0])
    recipe = Recipe(study.steps, "muon", lr=study.lr, weight_decay=0.01, seed=seed)
    start = time.process_time()
    train(model, epochs(pool, study.batch, seed), recipe)
    seconds, cost = time.process_time() - start, count(model, study.sizes[0])
    tests = {size: images(study, "test", size) for size in study.sizes}

    def in_parts(pixels: Tensor) -> Tensor:
        return torch.cat([model(part) for part in pixels.split(250)])

    with torch.inference_mode():
        right = {size: int(hits(model, test).sum()) for size, test in tests.items()}
        first = tests[study.sizes[0]].images
        consistency = shift_consistency(in_parts, first, study.shifts).tolist() if study.shifts else []
    return {
        "right": right,
        "consistency": consistency,
        "tokens": model.grid[0] * model.grid[1],
        "macs": cost.macs,
        "params": cost.params,
        "cpu_seconds": round(seconds, 1),
    }


def stored(study: Study) -> dict[str, dict[str, Any]]:
    """Row → seed → what was measured; runs of another setting are not mixed with these."""
    if not (paths.RESULTS / f"{study.name}.json").is_file():
        return {}
    result = results.load(study.name)
    if result["setting"] != study.setting():
        raise LabkitError(f"data/results/{study.name}.json was measured in another setting; remove it to start anew.")
    return result["runs"]


def run(study: Study, rows: list[str], seed: int) -> None:
    for row in rows:
        if str(seed) in stored(study).get(row, {}):
            continue
        found = measure(study, row, seed)
        runs = stored(study)  # read anew: another process may have kept a run in the meantime
        runs.setdefault(row, {})[str(seed)] = found
        seeds = sorted({s for kept in runs.values() for s in kept}, key=int)
        results.save(
            study.name,
            {"setting": study.setting(), "runs": runs},
            command=f"python {study.command} --run --seeds {' '.join(seeds)}",
            seed=int(seeds[0]),
            interval="95 % Student's t over the seeds; 95 % Wilson over the images of one run",
        )
        print(f"{study.name}: {row}, seed {seed}: {found['right']} right", flush=True)


def percent(values: list[float], share: bool = True) -> str:
    """Mean and 95 % interval by Student's t over the seeds, in percent; a `share` stays between 0 and 100."""
    mean, n = 100 * float(np.mean(values)), len(values)
    if n == 1:
        return f"{mean:.1f} (one seed)"
    half = 100 * t.ppf(0.975, n - 1) * float(np.std(values, ddof=1)) / sqrt(n)
    low, high = (max(0.0, mean - half), min(100.0, mean + half)) if share else (mean - half, mean + half)
    return ranged((mean, low, high), ".1f")


def accuracies(study: Study, seeds: dict[str, Any], size: int) -> dict[str, float]:
    return {seed: found["right"][str(size)] / study.test_images for seed, found in seeds.items()}


def over_seeds(study: Study, runs: dict[str, Any], row: str) -> list[str]:
    """One line: cost, accuracy at each size, difference to the reference seed by seed, consistency under shifts."""
    seeds = runs[row]
    one, base = next(iter(seeds.values())), accuracies(study, runs.get(study.reference, {}), study.sizes[0])
    by_size = [accuracies(study, seeds, size) for size in study.sizes]
    beyond = [share - base[seed] for seed, share in by_size[0].items() if seed in base and row != study.reference]
    return [
        *(row, str(one["tokens"]), f"{one['params'] / 1e3:.0f}", f"{one['macs'] / 1e6:.2f}"),
        *(percent(list(found.values())) for found in by_size),
        percent(beyond, share=False) if beyond else "",
        *([percent([float(np.mean(found["consistency"])) for found in seeds.values()])] if study.shifts else []),
    ]


def one_by_one(study: Study, runs: dict[str, Any], row: str) -> list[str]:
    """One line: the accuracy of each seed's model with Wilson's interval over the test images."""
    cells = []
    for seed in sorted(runs[row], key=int):
        right = runs[row][seed]["right"][str(study.sizes[0])]
        share = (right / study.test_images, *wilson(right, study.test_images))
        cells.append(f"seed {seed}: {ranged(share, '.1f', 100)}")
    return [row, "  ".join(cells)]


def summary(study: Study) -> str:
    runs = stored(study)
    rows = [row for row in study.rows if row in runs]
    sizes = [f"% at {size}" for size in study.sizes]
    shifted = ["% same when shifted"] if study.shifts else []
    columns = ["tokens", "k params", "M MACs", *sizes, f"minus {study.reference}", *shifted]
    table = Table([study.name, *columns], [over_seeds(study, runs, r) for r in rows], [False] + [True] * len(columns))
    each = [one_by_one(study, runs, row) for row in rows]
    runs_table = Table(["each run", f"% at {study.sizes[0]}"], each, [False, False])
    seen = f'task "{study.task}", {study.steps * study.batch:,} images seen at three times the MACs each'
    ranges = "95 % by Student's t over the seeds, then by Wilson over the images of each run"
    return f"{table}\n\n{runs_table}\n\n{seen}; {study.test_images} tested; ranges: {ranges}."


def parser(description: str) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--run", action="store_true", help="measure what is not yet stored")
    found.add_argument("--rows", nargs="+", metavar="ROW", help="default: all")
    found.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    found.add_argument("--summary", action="store_true", help="print the tables of what is stored")
    return found


def go(studies: tuple[Study, ...], options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Run what is missing, print what is there."""
    known = list(dict.fromkeys(row for study in studies for row in study.rows))
    if unknown := set(options.rows or known) - set(known):
        parser.error(f"there is no row {', '.join(sorted(unknown))}; there is {', '.join(known)}")
    torch.set_num_threads(1)
    for seed in options.seeds if options.run else ():
        for study in studies:
            run(study, [row for row in study.rows if row in (options.rows or known)], seed)
    if options.summary or not options.run:
        print("\n\n".join(summary(study) for study in studies if stored(study)))
