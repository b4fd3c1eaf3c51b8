"""The models that ship and how each was made; `load` checks the hash of what it reads.

`python -m labkit.zoo train NAME` makes a model again; `python -m labkit.zoo verify` shows that losing its tokens or
bits costs accuracy; `python -m labkit.zoo cards` prints the model cards.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit import checkpoint, data, paths, results
from labkit.checkpoint import Architecture, read, sha256
from labkit.data.batch import ImageSet
from labkit.errors import LabkitError, closest
from labkit.intervals import wilson
from labkit.patching.flexi import FlexiEmbed, flexible
from labkit.quant import storage
from labkit.quant.model import layers
from labkit.token_labels import TokenLabels, token_label_loss
from labkit.train import Batches, Loss, Recipe, epochs, train
from labkit.verify import hits, verify
from labkit.vit import PatchEmbed, ViT

MEAN, STD = 0.5, 0.25  # of the pixels during training; folded into the patch embedding afterwards


@dataclass(frozen=True)
class Spec:
    """All that is needed to make a shipped model again."""

    about: str
    architecture: dict[str, Any]
    recipe: Recipe
    batch: int
    batches: Callable[[int], Batches]  # batch size → batches
    held_out: Callable[[], ImageSet]
    loss: Loss | None = None  # None: cross-entropy of the labels
    start: str = ""  # a shipped model whose weights are the first ones; it reads pixels as they are
    patches: tuple[int, ...] = ()  # sizes of patches; every batch is read once with each of them


def every_patch(sizes: tuple[int, ...], loss: Loss) -> Loss:
    """The mean of the loss over sizes of patches. All weights are shared; those of the patches are resized."""

    def mean(module: nn.Module, batch: ImageSet) -> tuple[Tensor, Tensor]:
        embed: Any = next(part for part in module.modules() if isinstance(part, FlexiEmbed))
        own, found = embed.patch, []
        for size in sizes:
            embed.patch = size
            found.append(loss(module, batch))
        embed.patch = own
        return torch.stack([value for value, _ in found]).mean(), found[0][1]

    return mean


def _ramp(done: float) -> float:
    """The curriculum: from plain scenes to the full difficulty over the first 60 % of the run."""
    return min(1.0, done / 0.6)


def _shapes(batch: int) -> Batches:
    return lambda step, done: data.shapes("train", batch, start=step * batch, difficulty=_ramp(done))


def _more_shapes(batch: int) -> Batches:
    """Images that no training of `_shapes` has met, at full difficulty."""
    return lambda step, done: data.shapes("train", batch, start=1_000_000 + step * batch)


def _digits(batch: int) -> Batches:
    """Every digit is shifted by up to three pixels each time it is seen: 1,400 images are few."""
    source = epochs(data.digits("train"), batch)

    def at(step: int, done: float) -> ImageSet:
        plain = source(step, done)
        corners = torch.randint(0, 7, (2, len(plain)), generator=torch.Generator().manual_seed(step)).tolist()
        size, padded = plain.images.shape[-1], F.pad(plain.images, (3, 3, 3, 3))
        moved = [im[:, y : y + size, x : x + size] for im, y, x in zip(padded, *corners, strict=True)]
        return replace(plain, images=torch.stack(moved))

    return at


def _shapes_spec(about: str, **architecture: Any) -> Spec:
    return Spec(
        about,
        {"image_size": 64, "patch_size": 8, "classes": 10, "dim": 128, "depth": 6, "heads": 4} | architecture,
        Recipe(steps=7000, optimizer="muon", lr=3e-3, weight_decay=0.01, precision="bfloat16"),
        32,
        _shapes,
        lambda: data.shapes("test", 4000),
        token_label_loss,
    )


SPECS = {
    "shapes-vit": _shapes_spec("plain patches, class token: the default model of the course"),
    "shapes-vit-gap": _shapes_spec("the same with the mean of the patches in place of the class token", pool="avg"),
    "shapes-vit-flexi": replace(
        _shapes_spec("shapes-vit trained on with patches of 8 and of 16 pixels: see labkit.patching.flexi"),
        recipe=Recipe(steps=1800, optimizer="muon", lr=1.5e-3, weight_decay=0.01, precision="bfloat16"),
        batches=_more_shapes,
        start="shapes-vit",
        patches=(8, 16),
    ),
    "digits-vit": Spec(
        "a very small ViT that reads real handwriting",
        {"image_size": 32, "patch_size": 4, "classes": 10, "dim": 64, "depth": 4, "heads": 4},
        Recipe(steps=1500, optimizer="muon", lr=3e-3, weight_decay=0.05, ema=0.99),
        64,
        _digits,
        lambda: data.digits("val"),
    ),
}


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


@torch.no_grad()
def fold_normalisation(model: ViT) -> None:
    """conv((x - mean) / std) = conv'(x): the shipped model reads pixels in [0, 1] as they are."""
    assert isinstance(model.patch_embed, PatchEmbed)
    proj = model.patch_embed.proj
    assert proj.bias is not None
    proj.weight /= STD
    proj.bias.sub_(MEAN * proj.weight.sum(dim=(1, 2, 3)))


def data_hash(held_out: ImageSet) -> str:
    return hashlib.sha256((held_out.images * 255).round().byte().numpy().tobytes()).hexdigest()[:16]


def begin(spec: Spec) -> ViT:
    """The model before its first step."""
    model = load(spec.start) if spec.start else ViT(**spec.architecture)
    if spec.patches:
        embed = FlexiEmbed(spec.architecture["patch_size"], 3, spec.architecture["dim"])
        embed.load_state_dict(model.patch_embed.state_dict())
        model.patch_embed = embed
    return model


def finish(model: ViT, spec: Spec) -> ViT:
    """The model as it ships: plain patches of its own size, and pixels as they are."""
    if isinstance(model.patch_embed, FlexiEmbed):
        plain = PatchEmbed(model.patch_embed.patch, 3, spec.architecture["dim"])
        plain.load_state_dict(model.patch_embed.state_dict())
        model.patch_embed = plain
    model.set_impl("fast").eval()
    if not spec.start:
        fold_normalisation(model)
    return model


def make(name: str, folder: Path, device: str = "cpu", progress: bool = True) -> dict[str, Any]:
    """Train a shipped model from nothing, save it with its card, and return the card. Resumes when interrupted."""
    if name not in SPECS:
        raise LabkitError(f'The model "{name}" is unknown; choose one of {", ".join(SPECS)}.{closest(name, SPECS)}')
    spec = SPECS[name]
    torch.manual_seed(spec.recipe.seed)
    model = begin(spec).to(device)
    # Written-out attention trains faster than the fused kernel in bfloat16 on a CPU; the weights are the same.
    model.set_impl("plain")
    module: nn.Module = TokenLabels(model).to(device) if spec.loss is token_label_loss else model
    source = spec.batches(spec.batch)

    def normalised(step: int, done: float) -> ImageSet:
        batch = source(step, done)
        return replace(batch, images=(batch.images - MEAN) / STD)

    held_out = spec.held_out()
    loss = every_patch(spec.patches, spec.loss) if spec.patches and spec.loss else spec.loss
    seen = source if spec.start else normalised
    log = train(module, seen, spec.recipe, loss=loss, folder=folder, every=250, progress=progress)
    log.save(folder / "log.json")
    model = finish(model.cpu(), spec)
    path = paths.CHECKPOINTS / f"{name}.safetensors"
    save(model, path, spec.architecture)
    resized = {str(size): accuracy(flexible(model, size), held_out) for size in spec.patches}
    written = {
        "name": name,
        "about": spec.about,
        "command": f"make train MODEL={name}",
        "architecture": spec.architecture,
        "recipe": asdict(spec.recipe) | {"batch": spec.batch, "images": spec.batch * spec.recipe.steps},
        "held_out": accuracy(model, held_out) | {"data": repr(held_out), "hash": data_hash(held_out)},
        **({"start": spec.start, "patches": resized} if resized else {}),
        "torch": torch.__version__,
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
    }
    (paths.CHECKPOINTS / f"{name}.json").write_text(json.dumps(written, indent=2) + "\n")
    return written


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
