"""What few bits cost: accuracy method by method and bit by bit, on two models and on one that is made hard to round.

    python bench/quant_accuracy.py               # an hour on one core; what is kept already is not measured again
    python bench/quant_accuracy.py --again training    # rows whose method is named so are measured anew
    python bench/quant_accuracy.py --summary

Every row is kept as soon as it is there, with right and wrong for each image, so that any two can be compared on the
same images. To measure everything anew, delete data/results/bench-quant-accuracy.json.
"""

from __future__ import annotations

import argparse
import base64
import sys
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor

from bench import quant_case, quant_rows
from bench.quant_case import Case
from bench.quant_rows import Row
from bench.quant_summary import summary
from labkit import data, paths, results
from labkit.data.batch import ImageSet
from labkit.intervals import wilson
from labkit.vit import ViT

NAME = "bench-quant-accuracy"
COMMAND = "python bench/quant_accuracy.py"
INTERVAL = "95 % Wilson of the mean of the seeds; Bonett and Price for differences, the widest ends of all seeds"
IMAGES = 1000  # of shapes; of digits all that are held out
BATCH = 250


@cache
def held_out(model: str) -> ImageSet:
    return data.shapes("test", IMAGES) if model.startswith("shapes") else data.digits("val")


@torch.inference_mode()
def logits_of(model: ViT, images: Tensor) -> Tensor:
    return torch.cat([model(some) for some in images.split(BATCH)])


def packed(hits: Tensor) -> str:
    """Right and wrong as text, six and a half images in a character."""
    return base64.b85encode(np.packbits(hits.numpy()).tobytes()).decode()


def judged(logits: Tensor, plain: Tensor, labels: Tensor) -> dict[str, Any]:
    """What is kept of one row and one seed; the error of the logits as a share of their variance."""
    hits = logits.argmax(dim=1) == labels
    error = (logits - plain).square().mean() / plain.var()
    return {"right": packed(hits), "accuracy": float(hits.float().mean()), "error": float(error)}


def joined(seeds: dict[str, dict[str, Any]], n: int) -> dict[str, Any]:
    """A row: the mean over the seeds, the interval that so many images leave, and each seed by itself."""
    mean = sum(seed["accuracy"] for seed in seeds.values()) / len(seeds)
    return {"accuracy": [mean, *wilson(round(mean * n), n)], "seeds": seeds}


def measure(rows: Iterable[Row] | None = None, again: str | None = None) -> dict[str, Any]:
    """Every row that is not kept yet, or named `again`, seed by seed; the file is written after each."""
    torch.set_num_threads(1)
    rows = list(quant_rows.table() if rows is None else rows)
    names = sorted({row.model for row in rows})
    values = _kept({name: len(held_out(name)) for name in names})
    for row in rows:
        if again is not None and again in row.method:
            values["rows"].get(row.table, {}).get(row.model, {}).get(row.bits, {}).pop(row.method, None)
    cases = cache(Case)
    plain = {name: logits_of(cases(name, 0).model, held_out(name).images) for name in names}
    for name in names:
        whole = judged(plain[name], plain[name], held_out(name).labels)  # type: ignore[arg-type]
        values["float"][name] = joined({"0": whole}, len(held_out(name)))
    jobs = [(row, seed) for seed in quant_case.SEEDS for row in rows if seed in row.seeds]
    for number, (row, seed) in enumerate(jobs, start=1):
        kept = values["rows"].setdefault(row.table, {}).setdefault(row.model, {}).setdefault(row.bits, {})
        seeds = kept.get(row.method, {"seeds": {}})["seeds"]
        if str(seed) in seeds:
            continue
        begun, test = time.perf_counter(), held_out(row.model)
        logits = logits_of(row.make(cases(row.model, seed)), test.images)
        seeds[str(seed)] = judged(logits, plain[row.model], test.labels)  # type: ignore[arg-type]
        kept[row.method] = joined(seeds, len(test))
        results.save(NAME, values, command=COMMAND, seed=0, interval=INTERVAL)
        told = f"{row.table}, {row.model}, {row.bits}, {row.method}, seed {seed}"
        share, took = 100 * seeds[str(seed)]["accuracy"], time.perf_counter() - begun
        print(f"{number}/{len(jobs)}  {told}: {share:.1f} % in {took:.0f} s", file=sys.stderr, flush=True)
    return values


def _kept(images: dict[str, int]) -> dict[str, Any]:
    """What the file holds, unless it was measured on other images."""
    if (paths.RESULTS / f"{NAME}.json").is_file():
        values = results.load(NAME).values
        if all(values["images"].get(name, n) == n for name, n in images.items()):
            values["images"] |= images
            return values
    return {"images": images, "float": {}, "rows": {}}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What few bits cost in accuracy.")
    parser.add_argument("--summary", action="store_true", help="print what is kept and measure nothing")
    parser.add_argument("--again", metavar="METHOD", help="measure the rows with this in their name anew")
    options = parser.parse_args(arguments)
    if not options.summary:
        measure(again=options.again)
    stored = results.load(NAME)
    print(f"{summary(stored.values)}\n\n{stored.caption()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
