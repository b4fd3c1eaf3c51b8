"""What cheaper attention costs and gives: time and memory over the number of tokens, and a tournament of mixers.

    python bench/attention.py --time                       # 64 to 4,096 tokens; the players of the tournament
    python bench/attention.py --run [--rows "windows" ...] [--seeds 0 1 2]
    python bench/attention.py --summary

The tournament trains one small ViT on noisy silhouettes with a different mixer in both of its blocks. The MLPs are
widened or narrowed until every row has as many parameters as the one with plain attention.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

from bench import studies
from bench.studies import Study
from labkit import clock, memory, results
from labkit.attention.gallery import VARIANTS, variant
from labkit.layers import MLP, init_weights
from labkit.tables import Table, ranged
from labkit.vit import ViT

DIM, HEADS, DEPTH, SIZE, PATCH = 64, 4, 2, 32, 4
BATCH = 16  # images, when the players are timed
GRID = (SIZE // PATCH, SIZE // PATCH)
GRIDS = ((8, 8), (16, 16), (32, 32), (64, 64))
REFERENCE, FUSED = "multi-head", "multi-head, fused"
CONTROLS = ("identity", "random matrix", "average pooling", "depthwise", "Fourier")
PAIRS = {"windows": ("window", "window, shifted"), "near and far": ("window", "dilated")}
ALONE = (
    *(REFERENCE, "cosine", "multi-query", "axial", "neighbourhood", "cross-shaped", "spatial reduction", "linformer"),
    *("nyström", "slots", "bi-level routing", "linear, relu", "linear, relu + conv", "random features", "retention"),
    *("additive", "channels", "gated positional", *CONTROLS),
)
PLAYERS = {name: (name, name) for name in ALONE} | PAIRS


def size(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def player(names: tuple[str, str]) -> ViT:
    """The ViT with these mixers, and MLPs as wide as its share of the parameters allows."""
    vit = ViT(SIZE, PATCH, 10, DIM, DEPTH, HEADS, pool="avg")
    budget = size(vit)
    blocks: Any = vit.blocks
    for block, name in zip(blocks, names, strict=True):
        block.attn = variant(name).make(DIM, HEADS, GRID)
    left = budget - size(vit) + sum(size(block.mlp) for block in blocks)
    hidden = round((left / DEPTH - DIM) / (2 * DIM + 1))  # two matrices and two biases
    for block in blocks:
        block.mlp = MLP(DIM, hidden).apply(init_weights)
    return vit


STUDY = Study(
    "bench-attention",
    "bench/attention.py",
    "classify",
    REFERENCE,
    {row: partial(player, names) for row, names in PLAYERS.items()},
    steps=300,
    lr=0.02,
    vit=(("size", SIZE), ("patch", PATCH), ("dim", DIM), ("depth", DEPTH), ("heads", HEADS)),
    sizes=(SIZE,),
)


def timed(candidates: Mapping[str, nn.Module], inputs: tuple[Any, ...], to: str, quick: bool) -> dict[str, Any]:
    """Processor seconds and the ratio to one of them, interleaved, and the most memory held at a time."""
    rounds, seconds = (clock.FEWEST, 5.0) if quick else (15, 90.0)
    timing = clock.compare(candidates, inputs, rounds=rounds, seconds=seconds, clocks=("cpu",))
    with torch.inference_mode():
        held = {name: memory.measure(module, *inputs).peak for name, module in candidates.items()}
    return {
        name: {"seconds": timing.median(name), "ratio": timing.ratio(name, to=to), "peak": held[name]}
        for name in candidates
    }


def over_tokens(quick: bool) -> dict[str, Any]:
    """Every variant of the gallery in its fastest form, on one image of each grid."""
    found = {}
    for grid in GRIDS[: 2 if quick else None]:
        torch.manual_seed(0)
        mixers: dict[str, Any] = {each.name: each.make(DIM, HEADS, grid).eval() for each in VARIANTS}
        mixers[FUSED] = variant(REFERENCE).make(DIM, HEADS, grid).eval()
        for name, mixer in mixers.items():
            if hasattr(mixer, "impl") and name != REFERENCE:
                mixer.impl = "fast"
        n = grid[0] * grid[1]
        found[str(n)] = timed(mixers, (torch.randn(1, n, DIM), grid), FUSED, quick)
        for each in VARIANTS:
            found[str(n)][each.name]["macs"] = each.cost(grid, DIM, HEADS).macs
        print(f"{n} tokens: {len(mixers)} mixers timed", flush=True)
    return found


def time(quick: bool) -> None:
    torch.manual_seed(0)
    players = {row: player(names).eval() for row, names in PLAYERS.items()}
    values = {
        "tokens": over_tokens(quick),
        "players": timed(players, (torch.randn(BATCH, 3, SIZE, SIZE),), REFERENCE, quick),
    }
    if not quick:
        command, interval = "python bench/attention.py --time", "95 % bootstrap of the median"
        results.save("bench-attention-time", values, command=command, seed=0, interval=interval)


def ratio(found: dict[str, Any]) -> str:
    return ranged(found["ratio"])


def time_summary() -> str:
    stored = results.load("bench-attention-time")
    tokens, players = {n: stored["tokens"][n] for n in sorted(stored["tokens"], key=int)}, stored["players"]
    last = max(tokens, key=int)
    heads = [f"{n} tokens" for n in tokens]
    by_name = sorted(tokens[last], key=lambda name: tokens[last][name]["seconds"])
    lines = [
        [name, *(ratio(tokens[n][name]) for n in tokens), f"{tokens[last][name]['peak'] / 1e6:.1f}"] for name in by_name
    ]
    scale = Table(
        [f"times {FUSED}, processor time", *heads, f"peak MB at {last}"], lines, [False] + [True] * (len(heads) + 1)
    )
    slower = {n: sum(tokens[n][name]["ratio"][1] > 1 for name in by_name) for n in tokens}
    verdict = "; ".join(f"{slower[n]} of {len(by_name) - 1} at {n} tokens" for n in tokens)
    rows = sorted(players, key=lambda row: players[row]["seconds"])
    race = Table(
        ["player", "ms an image", f"times {REFERENCE}, plain"],
        [[row, f"{1e3 * players[row]['seconds'] / BATCH:.2f}", ratio(players[row])] for row in rows],
        [False, True, True],
    )
    return f"{scale}\n\nSlower than fused attention beyond doubt: {verdict}.\n\n{race}\n\n{stored.caption()}"


def main(arguments: list[str] | None = None) -> int:
    parser = studies.parser("Attention against the number of tokens, and a tournament of mixers.")
    parser.add_argument("--time", action="store_true", help="time all variants and players anew")
    parser.add_argument("--quick", action="store_true", help="with --time: two sizes, few rounds, nothing kept")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.time:
        time(options.quick)
        return 0
    studies.go((STUDY,), options, parser)
    if options.summary or not options.run:
        print(f"\n{time_summary()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
