"""The forward pass of our ViT against timm's: the same random weights, the same images, in turns."""

from __future__ import annotations

import copy

import timm
import torch

from bench.outcome import Outcome
from labkit.clock import compare
from labkit.cost import count
from labkit.vit import ViT

NAME, BATCH = "deit_small_patch16_224", 8


def bench(quick: bool) -> Outcome:
    torch.manual_seed(0)
    theirs = timm.create_model(NAME).eval()
    fast = ViT.from_timm(theirs).eval().set_impl("fast")
    full, plain = copy.deepcopy(fast), copy.deepcopy(fast).set_impl("plain")
    full.last = "full"
    images = torch.rand(BATCH, 3, *theirs.patch_embed.img_size)
    models = {"timm": theirs, "fast": fast, "fast, all rows": full, "plain": plain}
    with torch.inference_mode():
        apart = max(float((model(images) - theirs(images)).abs().max()) for model in models.values())

    rounds, seconds = (5, 10.0) if quick else (25, 120.0)
    timing = compare(models, images, rounds=rounds, seconds=seconds, clocks=("cpu", "wall"))
    to_timm, low, high = timing.ratio("fast")
    row, row_low, row_high = timing.ratio("fast, all rows", to="fast")
    costs = {name: count(model) for name, model in models.items()}
    saved = 1 - costs["fast"].macs / costs["fast, all rows"].macs
    giga = "; ".join(f"{name}: {cost.macs / 1e9:.3f}" for name, cost in costs.items())
    text = f"{timing}\nGMACs: {giga}. One row in the last block instead of all saves {saved:.1%}."
    return Outcome(
        f"{NAME}, batch {BATCH}, forward",
        text,
        timing.values() | {"macs": {name: cost.macs for name, cost in costs.items()}, "max_difference": apart},
        {
            f"fast takes <= 1.00 of timm's time: {to_timm:.3f} ({low:.3f} to {high:.3f})": to_timm <= 1.0,
            f"one row is faster than all rows: {row:.3f} times ({row_low:.3f} to {row_high:.3f})": row > 1.0,
            f"logits equal timm's within 1e-5: {apart:.1e}": apart <= 1e-5,
        },
    )
