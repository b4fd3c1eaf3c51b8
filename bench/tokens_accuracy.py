"""What fewer tokens cost `shapes-vit`: accuracy, agreement with the full model and object recall, method by method.

Every method keeps the share `keep` of the patches behind the second block (merging, which can at most halve them
there, goes on in the third); adaptive ones that share on average. Controls: chance, the least attended, the middle of
the frame, the image shrunk, and the true mask.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from math import sqrt
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from labkit import data, tokens, zoo
from labkit.data.batch import ImageSet
from labkit.evidence import Reducer, provenance
from labkit.intervals import bootstrap, paired_difference, wilson
from labkit.operations import operations
from labkit.tables import Table, ranged
from labkit.token_labels import coverage
from labkit.tokens import score
from labkit.tokens.cluster import Method, dpc_knn, k_medoids
from labkit.tokens.recall import object_recall
from labkit.tokens.words import pixel_variance
from labkit.vit import ViT

MODEL, IMAGES, BATCH, CUT = "shapes-vit", 2000, 250, 1
DIALLED = 256  # training images on which the dial of an adaptive method is set
KEEPS = (0.9, 0.7, 0.5, 0.3)
Cut = Callable[[ViT, float, ImageSet], ViT]  # (model, keep, the batch: an oracle looks at its masks) → a slim model


def keep_by(rank: score.Score, at: Any = (CUT,)) -> Cut:
    return lambda model, keep, _: tokens.attach(model, tokens.Keep(keep, rank), at)


def oracle(model: ViT, keep: float, batch: ImageSet) -> ViT:
    assert batch.masks is not None
    return tokens.attach(model, tokens.Keep(keep, score.known(coverage(batch.masks, model.grid))), [CUT])


def middle(model: ViT, keep: float, _: ImageSet) -> ViT:
    """A photographer's guess: what matters is central."""
    h, w = model.grid
    rows, columns = torch.arange(h) - (h - 1) / 2, torch.arange(w) - (w - 1) / 2
    near = -(rows[:, None] ** 2 + columns**2).flatten()[None]
    return tokens.attach(model, tokens.Keep(keep, score.known(near)), [CUT])


def merged(make: Callable[[int], Reducer]) -> Cut:
    """Pairs joined behind the second block, and behind the third when half of the tokens are still too many."""

    def cut(model: ViT, keep: float, _: ImageSet) -> ViT:
        patches = model.grid[0] * model.grid[1]
        gone = patches - round(keep * patches)
        first = min(gone, patches // 2)
        slim = tokens.attach(model, make(first), [CUT])
        return slim if first == gone else tokens.attach(slim, make(gone - first), [CUT + 1])

    return cut


def clustered(method: Method) -> Cut:
    return lambda model, keep, _: tokens.attach(
        model, tokens.Cluster(round(keep * model.grid[0] * model.grid[1]), method), [CUT]
    )


def shrunk(model: ViT, keep: float, _: ImageSet) -> ViT:
    h, w = model.grid
    smaller = round(h * sqrt(keep)), round(w * sqrt(keep))
    return tokens.attach(model, tokens.Shrink(model.grid, smaller), [CUT])


def adaptive(make: Callable[[float], Reducer], dial: list[float]) -> Cut:
    """The first setting of the dial with which training images keep the asked share on average."""
    found: dict[float, float] = {}

    def kept(model: ViT, amount: float) -> float:
        images = data.shapes("train", DIALLED).images
        step = tokens.attach(model, make(amount), [CUT]).observe(images).steps[CUT]
        full = step.x.new_ones(step.x.shape[:2]) if step.sizes is None else step.sizes
        return float((full[:, model.prefix :] > 0).sum(dim=1).float().mean()) / (model.grid[0] * model.grid[1])

    def cut(model: ViT, keep: float, _: ImageSet) -> ViT:
        if keep not in found:
            place = bisect_left(dial, keep, key=lambda amount: kept(model, amount))
            found[keep] = dial[min(place, len(dial) - 1)]
        return tokens.attach(model, make(found[keep]), [CUT])

    return cut


def methods() -> dict[str, Cut]:
    dice = torch.Generator().manual_seed(0)
    return {
        "keep: class attention": keep_by(score.class_attention),
        "keep: class attention x values": keep_by(score.class_value),
        "keep: attention received": keep_by(score.attention_received),
        "keep: PageRank": keep_by(score.page_rank()),
        "keep: norm of the key": keep_by(score.key_norm),
        "keep: away from the crowd": keep_by(score.reverse(score.energy())),
        "keep: variance of the pixels, at the entry": keep_by(pixel_variance, "entry"),
        "fuse: class attention": lambda model, keep, _: tokens.attach(model, tokens.Fuse(keep), [CUT]),
        "adaptive: samples": adaptive(lambda n: tokens.Sample(int(n)), [*range(4, 64, 2), *range(64, 1600, 32)]),
        "adaptive: share of attention": adaptive(tokens.KeepShare, [i / 200 for i in range(20, 200)]),
        "merge: similar keys": merged(tokens.Merge),
        "merge: energy": merged(tokens.MergeByEnergy),
        "merge: several criteria": merged(tokens.MergeByCriteria),
        "cluster: density peaks": clustered(dpc_knn),
        "cluster: k-medoids": clustered(k_medoids),
        "control: low frequencies": shrunk,
        "control: the true mask": oracle,
        "control: the middle": middle,
        "control: chance": keep_by(score.random(dice)),
        "control: chance, at the entry": keep_by(score.random(dice), "entry"),
        "control: least attended": keep_by(score.reverse(score.class_attention)),
        "control: random pairs": merged(lambda r: tokens.Merge(r, dice)),
    }


@torch.no_grad()
def judged(cut: Cut, keep: float, model: ViT, full: Tensor, images: ImageSet) -> dict[str, Any]:
    """One method at one budget: right or wrong for each image, what it kept, and what it recalled of the object."""
    logits, recalls, left = [], [], []
    patches = model.grid[0] * model.grid[1]
    parts = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    for part in parts:
        assert part.masks is not None
        seen = cut(model, keep, part).observe(part.images)
        members = provenance(seen.maps, patches, model.prefix, len(part))
        logits.append(seen.logits)
        recalls.append(object_recall(members, coverage(part.masks, model.grid) >= 0.5))
        left.append((members[:, model.prefix :].amax(dim=2) > 0).sum(dim=1) / patches)
    some = parts[0][:50]
    slim = cut(model, keep, some)
    macs = sum(operation.macs for operation in operations(lambda x: tokens.packed(slim, x), some.images)) / len(some)
    said, recall = torch.cat(logits), torch.cat(recalls)
    return {
        "hits": said.argmax(dim=1) == images.labels,
        "agreement": float((said.argmax(dim=1) == full.argmax(dim=1)).float().mean()),
        "recall": recall[~recall.isnan()],  # some objects cover no patch by half
        "kept": float(torch.cat(left).mean()),
        "macs": macs,
    }


def row(found: dict[str, Any], chance: Tensor) -> dict[str, Any]:
    """What is stored: numbers with their intervals."""
    hits = found["hits"]
    return {
        "accuracy": [float(hits.float().mean()), *wilson(int(hits.sum()), len(hits))],
        "over chance": list(paired_difference(hits, chance)),
        "agreement": found["agreement"],
        "recall": [float(found["recall"].mean()), *bootstrap(found["recall"].numpy())],
        "kept": found["kept"],
        "macs": found["macs"],
    }


def measure(n: int = IMAGES) -> dict[str, Any]:
    """Method → keep → its row; the full model under "full"."""
    model, images = zoo.load(MODEL), data.shapes("test", n)
    with torch.no_grad():
        full = torch.cat([model(images.images[i : i + BATCH]) for i in range(0, n, BATCH)])
    whole = judged(lambda model, *_: model, 1.0, model, full, images)
    rows: dict[str, Any] = {"full": {"1.0": row(whole, whole["hits"])}}
    for keep in KEEPS:
        found = {name: judged(cut, keep, model, full, images) for name, cut in methods().items()}
        chance = found["control: chance"]["hits"]
        for name, values in found.items():
            rows.setdefault(name, {})[str(keep)] = row(values, chance)
    return rows


def summary(rows: dict[str, Any]) -> str:
    """Accuracy at every budget, then recall and MACs, the best first."""
    whole = rows["full"]["1.0"]
    order = sorted(set(rows) - {"full"}, key=lambda name: -rows[name][str(KEEPS[-1])]["accuracy"][0])

    def alike(keep: float) -> float:
        """Do methods that recall more of the object answer better? The correlation of the two ranks."""
        both = [[rows[name][str(keep)][what][0] for name in order] for what in ("accuracy", "recall")]
        return float(spearmanr(*both)[0])

    def table(title: str, cell: Callable[[dict[str, Any]], str]) -> str:
        lines = [[name, *(cell(rows[name][str(keep)]) for keep in KEEPS)] for name in order]
        return str(Table([title, *(f"keep {keep:g}" for keep in KEEPS)], lines, [False] + [True] * len(KEEPS)))

    return "\n\n".join(
        [
            f"{MODEL}, all patches: {ranged(whole['accuracy'], '.1f', 100)} % right.",
            table("accuracy, %", lambda r: ranged(r["accuracy"], ".1f", 100)),
            table("points over chance", lambda r: ranged(r["over chance"], ".1f", 100)),
            table("object recall, %", lambda r: ranged(r["recall"], ".1f", 100)),
            "Rank correlation of accuracy and recall: "
            + ", ".join(f"{alike(keep):.2f} at keep {keep:g}" for keep in KEEPS)
            + ".",
            table("as the full model, %", lambda r: f"{100 * r['agreement']:.1f}"),
            table("tokens left / MACs, %", lambda r: f"{100 * r['kept']:.0f} / {100 * r['macs'] / whole['macs']:.0f}"),
        ]
    )
