"""What it costs and gives to make tokens differently: patchings and positions on one small ViT, the same images seen.

    python bench/patching.py --run [--rows "patch 8" ...] [--seeds 0 1 2]
    python bench/patching.py --summary

A finished run is kept at once and not measured again, so an interrupted bench goes on where it was. The images are
the silhouettes of `shapes` (its masks) in pixel noise: colours and clutter take a ViT of this size too long to learn.
Positions are judged on the task "relate" (on which side of the disc is the star?), which no bag of patches can solve.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from functools import cache
from math import sqrt
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from scipy.stats import t
from torch import Tensor

from bench.patching_rows import NOISE, SHIFTS, SIZE, SIZES, STUDIES, Study
from labkit import data, paths, results
from labkit.cost import count
from labkit.data.batch import ImageSet
from labkit.data.shapes import Task
from labkit.errors import LabkitError
from labkit.intervals import wilson
from labkit.patching.polyphase import shift_consistency
from labkit.tables import Table
from labkit.train import Recipe, epochs, train
from labkit.verify import hits


@cache
def silhouettes(split: str, n: int, size: int, task: Task) -> ImageSet:
    """Objects at 1, the rest at -1, and noise; the scene of an index is the same at every size."""
    plain = data.shapes(split, n, size, task=task, difficulty=0.0)
    assert plain.masks is not None
    dice = torch.Generator().manual_seed(size if split == "train" else -size)  # none of the noise is seen twice
    images = 2.0 * plain.masks - 1 + NOISE * torch.randn(plain.masks.shape, generator=dice)
    return replace(plain, images=images[:, None].expand(-1, 3, -1, -1))


def measure(study: Study, row: str, seed: int) -> dict[str, Any]:
    """Train one model, then ask it at every size and under every shift."""
    torch.manual_seed(seed)
    model = study.rows[row]()
    pool = silhouettes("train", study.train_images, SIZE, study.task)
    recipe = Recipe(study.steps, "muon", lr=study.lr, weight_decay=0.01, seed=seed)
    start = time.process_time()
    train(model, epochs(pool, study.batch, seed), recipe)
    seconds, cost = time.process_time() - start, count(model, SIZE)
    tests = {size: silhouettes("test", study.test_images, size, study.task) for size in SIZES}

    def in_parts(images: Tensor) -> Tensor:
        return torch.cat([model(part) for part in images.split(250)])

    with torch.inference_mode():
        right = {size: int(hits(model, test).sum()) for size, test in tests.items()}
    return {
        "right": right,
        "consistency": shift_consistency(in_parts, tests[SIZE].images, SHIFTS).tolist(),
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
            command=f"python bench/patching.py --run --seeds {' '.join(seeds)}",
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
    return f"{mean:.1f} [{low:.1f}, {high:.1f}]"


def accuracies(study: Study, seeds: dict[str, Any], size: int) -> dict[str, float]:
    return {seed: found["right"][str(size)] / study.test_images for seed, found in seeds.items()}


def over_seeds(study: Study, runs: dict[str, Any], row: str) -> list[str]:
    """One line: cost, accuracy at each size, difference to the reference seed by seed, consistency under shifts."""
    seeds = runs[row]
    one, base = next(iter(seeds.values())), accuracies(study, runs.get(study.reference, {}), SIZE)
    by_size = [accuracies(study, seeds, size) for size in SIZES]
    beyond = [share - base[seed] for seed, share in by_size[0].items() if seed in base and row != study.reference]
    return [
        *(row, str(one["tokens"]), f"{one['params'] / 1e3:.0f}", f"{one['macs'] / 1e6:.2f}"),
        *(percent(list(found.values())) for found in by_size),
        percent(beyond, share=False) if beyond else "",
        percent([float(np.mean(found["consistency"])) for found in seeds.values()]),
    ]


def one_by_one(study: Study, runs: dict[str, Any], row: str) -> list[str]:
    """One line: the accuracy of each seed's model with Wilson's interval over the test images."""
    cells = []
    for seed in sorted(runs[row], key=int):
        right = runs[row][seed]["right"][str(SIZE)]
        share, low, high = (100 * v for v in (right / study.test_images, *wilson(right, study.test_images)))
        cells.append(f"seed {seed}: {share:.1f} [{low:.1f}, {high:.1f}]")
    return [row, "  ".join(cells)]


def summary(study: Study) -> str:
    runs = stored(study)
    rows = [row for row in study.rows if row in runs]
    sizes = [f"% at {size}" for size in SIZES]
    columns = ["tokens", "k params", "M MACs", *sizes, f"minus {study.reference}", "% same when shifted"]
    table = Table([study.name, *columns], [over_seeds(study, runs, r) for r in rows], [False] + [True] * len(columns))
    runs_table = Table(["each run", f"% at {SIZE}"], [one_by_one(study, runs, row) for row in rows], [False, False])
    seen = f'task "{study.task}", {study.steps * study.batch:,} images seen at three times the MACs each'
    ranges = "95 % by Student's t over the seeds, then by Wilson over the images of each run"
    return f"{table}\n\n{runs_table}\n\n{seen}; {study.test_images} tested; ranges: {ranges}."


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Patchings and positions on one small ViT.")
    parser.add_argument("--run", action="store_true", help="measure what is not yet stored")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--summary", action="store_true", help="print the tables of what is stored")
    options = parser.parse_args(arguments)
    known = [row for study in STUDIES for row in study.rows]
    if unknown := set(options.rows or known) - set(known):
        parser.error(f"there is no row {', '.join(sorted(unknown))}; there is {', '.join(known)}")
    torch.set_num_threads(1)
    for seed in options.seeds if options.run else ():
        for study in STUDIES:
            run(study, [row for row in study.rows if row in (options.rows or known)], seed)
    if options.summary or not options.run:
        print("\n\n".join(summary(study) for study in STUDIES if stored(study)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
