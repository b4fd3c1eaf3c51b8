"""The models that ship: `load` checks the hash of what it reads.

`python -m labkit.zoo train NAME` makes a model again; `python -m labkit.zoo verify` shows that losing its tokens or
bits costs accuracy; `python -m labkit.zoo cards` prints the model cards.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from labkit import checkpoint, data, paths, results
from labkit.checkpoint import Architecture, read, sha256
from labkit.data.batch import ImageSet
from labkit.errors import LabkitError, closest
from labkit.intervals import wilson
from labkit.quant import storage
from labkit.quant.model import layers
from labkit.verify import hits, verify
from labkit.vit import ViT
from labkit.zoo_specs import SPECS

__all__ = ["SPECS", "accuracy", "card", "cards", "known", "load", "save"]


def known() -> dict[str, str]:
    """The names that `load` takes, each with a line about it."""
    return {name: spec.about for name, spec in SPECS.items()} | {
        "timm:NAME": "any plain ViT of timm, with its published weights (needs the network once)"
    }


def load(name: str) -> ViT:
    """A model that ships ("shapes-vit"), one of timm's ("timm:deit_small_patch16_224") or a file (.safetensors)."""
    if name.startswith("timm:"):
        return ViT.from_timm(name.removeprefix("timm:"), pretrained=True).eval()
    if name.endswith((".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pkl")):
        file = checkpoint.contents(Path(name))
        return (storage if file.quantized else checkpoint).restore(file)
    if name not in SPECS:
        raise LabkitError(f'The model "{name}" is unknown; choose one of {", ".join(known())}.{closest(name, SPECS)}')
    path = paths.CHECKPOINTS / f"{name}.safetensors"
    model, expected = read(path), card(name)["sha256"]
    if sha256(path) != expected:
        raise LabkitError(
            f"{path.name} is not the file that was published: its sha256 is {sha256(path)[:12]}…, its card says "
            f"{expected[:12]}…. Restore it (git checkout data/checkpoints), or train it again: make train MODEL={name}."
        )
    return model


def save(model: ViT, path: str | Path, architecture: Architecture) -> int:
    """A float or a quantized model in a .safetensors file, which `load` reads; returns the bytes on disk.

    `architecture` are the arguments of `ViT`, or "timm:NAME" for what `ViT.from_timm(NAME)` built.
    """
    return (storage if layers(model) else checkpoint).save(model, path, architecture)


def card(name: str) -> dict[str, Any]:
    """What is known about a shipped model: recipe, seed, command, data, accuracy with its interval, hash."""
    path = paths.CHECKPOINTS / f"{name}.json"
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError) as error:
        raise LabkitError(f"The model card {path} cannot be read ({error}); restore it from the repository.") from None


def accuracy(model: nn.Module, held_out: ImageSet) -> dict[str, float]:
    right = hits(model, held_out)
    low, high = wilson(int(right.sum()), len(right))
    share = right.float().mean().item()
    return {"images": len(right), "accuracy": round(share, 4), "low": round(low, 4), "high": round(high, 4)}


def cards() -> str:
    """The model cards as one table."""
    rows = [card(name) for name in SPECS]
    lines = [f"{'model':16} {'held-out accuracy':26} {'images seen':>12} {'MB':>5}  {'sha256':12}  about"]
    for row in rows:
        h = row["held_out"]
        score = f"{h['accuracy']:.1%} [{h['low']:.1%}, {h['high']:.1%}]"
        size = row["bytes"] / 1e6
        seen = row["recipe"]["images"]
        lines.append(f"{row['name']:16} {score:26} {seen:>12,} {size:>5.1f}  {row['sha256'][:12]}  {row['about']}")
    return "\n".join(lines)


def report(name: str) -> int:
    """Print both tables for a shipped model, save them, and return 0 when every demand holds."""
    model = load(name)
    assert model.pool == "class"
    rows, demands = verify(model, data.shapes("test", 4000), data.shapes("train", 256, start=10_000_000).images)
    for row in rows:
        print(f"{row['setting']:18} {row['accuracy']:6.1%}  [{row['low']:.1%}, {row['high']:.1%}]")
    print()
    for d in demands:
        verdict = "holds" if d["holds"] else "FAILS"
        print(f"{verdict}  {d['name']:46} {d['points']:5} points [{d['low']}, {d['high']}], demanded {d['demand']}")
    command = f"python -m labkit.zoo verify {name}"
    results.save(f"verify-{name}", {"accuracy": rows, "demands": demands}, command=command, seed=0)
    return 0 if all(d["holds"] for d in demands) else 1


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["train"] and len(arguments) == 2:
        from labkit.zoo_make import make  # which loads from here

        name = arguments[1]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        print(json.dumps(make(name, Path("runs") / name, device)["held_out"]))
    elif arguments[:1] == ["verify"] and len(arguments) <= 2:
        return report(arguments[1] if len(arguments) == 2 else "shapes-vit")
    elif arguments == ["cards"]:
        print(cards())
    else:
        raise LabkitError("usage: python -m labkit.zoo train NAME | verify [NAME] | cards")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except LabkitError as error:
        sys.exit(f"labkit: {error}")
