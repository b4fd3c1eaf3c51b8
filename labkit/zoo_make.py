"""A model that ships, made again from nothing: trained, turned into what is published, and described in a card.

python -m labkit.zoo train shapes-vit      # resumes when it was interrupted
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labkit import paths
from labkit.checkpoint import sha256
from labkit.data.batch import ImageSet
from labkit.errors import LabkitError, closest
from labkit.patching.flexi import FlexiEmbed, flexible
from labkit.token_labels import TokenLabels, token_label_loss
from labkit.train import Loss, train
from labkit.vit import PatchEmbed, ViT
from labkit.zoo import accuracy, load, save
from labkit.zoo_specs import SPECS, Spec

MEAN, STD = 0.5, 0.25  # of the pixels during training; folded into the patch embedding afterwards


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
