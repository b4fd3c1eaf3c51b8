"""What fewer tokens save and cost: MACs beside the published ones, milliseconds beside the MACs, accuracy on shapes.

    python bench/tokens.py --time        # ten minutes; the weights are random, which changes no count and no time
    python bench/tokens.py --accuracy    # twenty minutes: every method and control off the shelf
    python bench/tokens.py --tune        # half an hour: some of them trained on for a few hundred steps
    python bench/tokens.py --run         # all three
    python bench/tokens.py --summary

The share of the ideal is the measured speed-up over the one that the MACs of the tokens promise; scoring, matching
and moving tokens are in the time and not in the promise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from bench import parts, tokens_accuracy, tokens_tuned
from bench.parts import Part
from labkit import clock, tokens
from labkit.cost import count
from labkit.evidence import Evidence
from labkit.papers import cite
from labkit.tables import Table, ranged
from labkit.tokens import score
from labkit.tokens.cluster import dpc_knn, k_medoids
from labkit.tokens.learned import LearnedDrop
from labkit.tokens.schedule import SHARES, attach_schedule, constant, model_macs, staged, to_macs, tokens_after
from labkit.tokens.slow_fast import slow_fast
from labkit.vit import ViT

NAME, SIZE, WIDTH = "deit_small_patch16_224", 224, 384
ALL, THIRDS = range(12), (3, 6, 9)
TOME, DYNAMIC, EVO = (
    '"Token Merging: Your ViT But Faster", 2022',
    '"DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification", 2021',
    '"Evo-ViT: Slow-Fast Token Evolution for Dynamic Vision Transformer", 2021',
)
PUBLISHED: dict[str, tuple[Callable[[ViT], ViT], float, str]] = {  # how to attach it, the published GMACs, by whom
    "merge r = 8": (lambda vit: tokens.attach(vit, tokens.Merge(8), ALL), 3.4, TOME),
    "merge r = 13": (lambda vit: tokens.attach(vit, tokens.Merge(13), ALL), 2.7, TOME),
    "merge r = 16": (lambda vit: tokens.attach(vit, tokens.Merge(16), ALL), 2.3, TOME),
    "fuse 0.7": (lambda vit: tokens.attach(vit, tokens.Fuse(0.7), THIRDS), 3.0, cite("S029")),
    "fuse 0.5": (lambda vit: tokens.attach(vit, tokens.Fuse(0.5), THIRDS), 2.3, cite("S029")),
    "predict 0.7": (lambda vit: predicted(vit, 0.7), 2.9, DYNAMIC),
    "slow-fast 0.5": (lambda vit: slow_fast(vit, 0.5, range(4, 12)), 3.0, EVO),
}


def predicted(vit: ViT, keep: float) -> ViT:
    for layer in THIRDS:
        vit = tokens.attach(vit, LearnedDrop(WIDTH, keep).eval(), [layer])
    return vit


def clusters(method: Any) -> Callable[[int], tokens.Cluster]:
    return lambda count: tokens.Cluster(count, method)


def after(layer: int) -> Callable[[Any, int], list[Any]]:
    """The amount in one block only."""
    return lambda amount, depth: [amount if i == layer else None for i in range(depth)]


COUNTS = range(196, 0, -1)
MATCHED: dict[str, tuple[Any, Any, Any]] = {  # what makes the reducer, how its amounts are laid out, the dial
    "keep: class attention": (tokens.Keep, staged, SHARES),
    "keep: class attention x values": (lambda keep: tokens.Keep(keep, score.class_value), staged, SHARES),
    "keep: norm of the key": (lambda keep: tokens.Keep(keep, score.key_norm), staged, SHARES),
    "keep: PageRank": (lambda keep: tokens.Keep(keep, score.page_rank()), staged, SHARES),
    "keep: away from the crowd": (lambda keep: tokens.Keep(keep, score.reverse(score.energy())), staged, SHARES),
    "fuse: class attention": (tokens.Fuse, staged, SHARES),
    "merge: similar keys": (tokens.Merge, constant, None),
    "merge: energy": (tokens.MergeByEnergy, constant, None),
    "merge: several criteria": (tokens.MergeByCriteria, constant, None),
    "cluster: density peaks": (clusters(dpc_knn), after(3), COUNTS),
    "cluster: k-medoids": (clusters(k_medoids), after(3), COUNTS),
}
MACS = (0.75, 0.5)
WHY = {  # what keeps a method below 0.95 of the ideal
    "merge: several criteria": "it reads the whole attention map, which the fused kernel never writes",
    "slow-fast 0.5": "it asks each block for the class row in advance, and gives every token its own back",
}
BATCHES = (1, 2, 4, 8, 16, 32, 64)


def by_description(evidence: Evidence, x: Tensor, sizes: Tensor, r: int, prefix: int) -> tuple[Tensor, Tensor]:
    """Bipartite matching and merging as the paper words it, by gather and scatter: the pace to keep up with."""
    metric = F.normalize(evidence.k.mean(dim=1), dim=-1)
    scores = metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)
    if prefix:
        scores[:, 0] = -torch.inf  # the class token takes its turn, and proposes to nobody
    best, partner = scores.max(dim=-1)
    order = best.argsort(dim=-1, descending=True)[..., None]
    source, stay = order[:, :r], order[:, r:].sort(dim=1).values
    target = partner[..., None].gather(1, source)

    def merge(values: Tensor) -> Tensor:
        a, b, width = values[:, ::2], values[:, 1::2], values.shape[-1]
        moved = a.gather(1, source.expand(-1, -1, width))
        joined = b.scatter_add(1, target.expand(-1, -1, width), moved)
        return torch.cat([a.gather(1, stay.expand(-1, -1, width)), joined], dim=1)

    counts = merge(sizes[..., None])
    return merge(x * sizes[..., None]) / counts, counts[..., 0]


def matching(seconds: float) -> dict[str, list[float]]:
    """Our matching and merging at (16, 197, 384), r = 16, as a share of the description's processor time."""
    dice = torch.Generator().manual_seed(0)
    x, sizes = torch.randn(16, 197, WIDTH, generator=dice), torch.ones(16, 197)
    heads = torch.randn(16, 6, 197, 64, generator=dice)
    evidence = Evidence(heads, heads)
    ours = tokens.Merge(16)
    candidates = {
        "described": lambda x: by_description(evidence, x, sizes, 16, 1),
        "ours": lambda x: ours.reduce(x, evidence, sizes, 1),
    }
    timing = clock.compare(candidates, x, rounds=100, seconds=seconds, clocks=("cpu",))
    return {"ours": list(timing.ratio("ours", to="described"))}


def timed(models: dict[str, Any], batch: int, rounds: int, seconds: float, first: str = "plain") -> dict[str, Any]:
    """Name → how many times as fast as `first`, with its interval, by processor time."""
    timing = clock.compare(models, torch.rand(batch, 3, SIZE, SIZE), rounds=rounds, seconds=seconds, clocks=("cpu",))
    faster = {name: timing.ratio(first, to=name) for name in models}
    return {name: list(ratio) for name, ratio in faster.items()}


def measure_time(scale: float = 1.0) -> dict[str, Any]:
    """`scale` shortens the run."""
    torch.manual_seed(0)
    theirs = timm.create_model(NAME, img_size=SIZE).eval()
    plain = ViT.from_timm(theirs).eval().set_impl("fast")
    whole = model_macs(plain)
    published = {name: attach(plain).eval() for name, (attach, _, _) in PUBLISHED.items()}
    faster = timed({"plain": plain, "timm": theirs, **published}, 8, 15, 240 * scale)
    than_timm = timed({"timm": theirs, "merge r = 13": published["merge r = 13"]}, 8, 40, 60 * scale, "timm")
    rows: dict[str, Any] = {}
    for name, slim in published.items():
        shortcut, slim.last = count(slim, SIZE).macs, "full"
        rows[name] = {"macs": count(slim, SIZE).macs, "shortcut": shortcut, "faster": faster[name]}
        slim.last = "class"
    matched: dict[str, Any] = {}
    for share in MACS:
        slim_by, promised = {}, {}
        for name, (make, plan, dial) in MATCHED.items():
            amounts = to_macs(plain, share, make, plan, dial)
            slim_by[name] = attach_schedule(plain, make, amounts)
            promised[name] = whole / model_macs(plain, tokens_after(plain, make, amounts))
        for name, ratio in timed({"plain": plain, **slim_by}, 16, 11, 300 * scale).items():
            if name in promised:
                matched.setdefault(name, {})[str(share)] = {"ideal": promised[name], "faster": ratio}
    sizes = {}
    for batch in BATCHES:
        some = {"plain": plain, "merge r = 13": published["merge r = 13"], "fuse 0.7": published["fuse 0.7"]}
        sizes[str(batch)] = timed(some, batch, 9, 40 * scale)
    return {
        "whole": whole,
        "published": rows,
        "timm": faster["timm"],
        "merge r = 13 and timm": than_timm["merge r = 13"],
        "matched": matched,
        "batches": sizes,
        "matching": matching(20 * scale),
    }


def time_summary(found: dict[str, Any]) -> str:
    whole = found["whole"]
    lines = [
        [
            name,
            f"{row['macs'] / 1e9:.2f}",
            f"{PUBLISHED[name][1]:.1f}",
            f"{row['shortcut'] / 1e9:.2f}",
            ranged(row["faster"]),
            ranged(row["faster"], times=row["shortcut"] / whole),
        ]
        for name, row in found["published"].items()
    ]
    columns = ["GMACs", "published", "GMACs, class row last", "times as fast", "share of ideal"]
    first = Table([f"{NAME}, batch 8", *columns], lines, [False] + [True] * len(columns))
    lines = []
    for name, shares in found["matched"].items():
        cells = [shares[str(share)] for share in MACS]
        lines.append([name, *(ranged(c["faster"]) for c in cells)])
        lines[-1] += [ranged(c["faster"], times=1 / c["ideal"]) for c in cells]
    columns = [f"{what} at {share:g} of the MACs" for what in ("times as fast", "share of ideal") for share in MACS]
    second = Table([f"{NAME}, batch 16", *columns], lines, [False] + [True] * len(columns))
    ideal = {name: whole / row["shortcut"] for name, row in found["published"].items()}
    shares = {name: row["faster"][0] / ideal[name] for name, row in found["published"].items()}
    shares |= {
        name: min(cell["faster"][0] / cell["ideal"] for cell in cells.values())
        for name, cells in found["matched"].items()
    }
    slow = [
        f"{name} {share:.2f} ({WHY.get(name, 'noise, or a reason to find')})"
        for name, share in shares.items()
        if share < 0.95
    ]
    names = [name for name in found["batches"][str(BATCHES[0])] if name != "plain"]
    lines = [[name, *(ranged(found["batches"][str(b)][name]) for b in BATCHES)] for name in names]
    third = Table(["times as fast, by batch", *map(str, BATCHES)], lines, [False] + [True] * len(BATCHES))
    return "\n\n".join(
        [
            str(first),
            "\n".join(f"{name}: published in {by}." for name, (_, _, by) in PUBLISHED.items()),
            f"merge r = 13 is {ranged(found['merge r = 13 and timm'])} times as fast as timm at batch 8.",
            f"Matching and merging at (16, 197, {WIDTH}), r = 16: {ranged(found['matching']['ours'])} of the "
            "time of the paper's description in gathers and scatters.",
            str(second),
            f"Below 0.95 of the ideal: {'; '.join(slow) or 'none'}.",
            str(third),
        ]
    )


PARTS: dict[str, Part] = {
    "time": ("bench-tokens", measure_time, time_summary, "95 % bootstrap of the median"),
    "accuracy": (
        "bench-tokens-accuracy",
        tokens_accuracy.measure,
        tokens_accuracy.summary,
        "95 %: Wilson for shares, Bonett and Price for differences, bootstrap for recall",
    ),
    "tune": ("bench-tokens-tuned", tokens_tuned.measure, tokens_tuned.summary, "95 % Wilson"),
}


def main(arguments: list[str] | None = None) -> int:
    about = "Fewer tokens: MACs, milliseconds and what they cost."
    return parts.main("bench/tokens.py", about, PARTS, arguments, under="methods")


if __name__ == "__main__":
    sys.exit(main())
