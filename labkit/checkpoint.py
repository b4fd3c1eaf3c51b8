"""Models in files: safetensors that carry their architecture, and never pickles, which run code when loaded."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from labkit import files
from labkit.errors import LabkitError
from labkit.vit import ViT

Architecture = dict[str, Any] | str  # the arguments of ViT, or "timm:NAME"
PASSING = ("training", "impl", "last")  # how a model runs at the moment, not what it is


class Contents(NamedTuple):
    """What a file holds."""

    name: str
    told: dict[str, Any]  # the architecture and, of a quantized model, all that is no tensor
    tensors: dict[str, Tensor]

    @property
    def quantized(self) -> bool:
        return "recipe" in self.told


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save(model: ViT, path: str | Path, architecture: Architecture) -> int:
    """One safetensors file with the weights and what `ViT(**architecture)` needs to hold them; its size in bytes."""
    return write(model, Path(path), {"architecture": described(architecture, model)}, model.state_dict(), restore)


def read(path: Path) -> ViT:
    return restore(contents(path))


def restore(file: Contents) -> ViT:
    """The float model that a file holds, in eval mode."""
    if file.quantized:
        raise LabkitError(f"{file.name} holds a quantized model; labkit.load reads it.")
    try:
        model = build(file.told.get("architecture"))
        fill(model, file.tensors)
    except LabkitError as reason:
        raise LabkitError(f"{file.name} cannot be read: {reason}") from None
    return model.eval()


def described(architecture: Architecture, model: ViT) -> dict[str, Any]:
    """The architecture as a file tells it; of "timm:NAME" with the classes that this model has."""
    if isinstance(architecture, dict):
        return architecture
    if not architecture.startswith("timm:"):
        raise LabkitError(
            f'architecture={architecture!r}; expected the arguments of ViT as a dict, or "timm:NAME" for what was '
            "built by ViT.from_timm(NAME)."
        )
    return {"timm": architecture.removeprefix("timm:"), "num_classes": getattr(model.head, "out_features", 0)}


def build(architecture: Any) -> ViT:
    """A ViT with weights that mean nothing yet; {"timm": NAME, ...} is one of timm's, with timm's arguments."""
    try:
        if "timm" in architecture:
            told = {k: v for k, v in architecture.items() if k != "timm"}
            return ViT.from_timm(architecture["timm"], pretrained=False, **told)
        return ViT(**architecture)
    except LabkitError:
        raise
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as reason:  # all that torch makes of odd numbers
        why = str(reason).splitlines()[0]
        raise LabkitError(f"no ViT has the architecture {str(architecture)[:300]} ({why[:200]}).") from None


def fill(model: ViT, tensors: dict[str, Tensor]) -> None:
    """The tensors become the model's, in their own precision; one that either side lacks is named."""
    own = model.state_dict()
    for name in {**own, **tensors}:
        here, there = (tuple(side[name].shape) if name in side else "none" for side in (own, tensors))
        if here != there:
            raise LabkitError(f"the architecture has {name} of shape {here}, and the file {there}.")
    model.load_state_dict(tensors, assign=True)


def write(
    model: ViT, path: Path, told: dict[str, Any], tensors: dict[str, Tensor], again: Callable[[Contents], ViT]
) -> int:
    """A file appears only when the model has been read back from it, and is the one that was given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _check_bare(model)
    part = path.with_suffix(".part")
    key = "quantized" if "recipe" in told else "architecture"
    try:  # one entry only: safetensors writes several in an order that changes, and the file's hash with it
        words = {key: json.dumps(told if key == "quantized" else told[key], sort_keys=True)}
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, part, words)
        _check_same(model, again(contents(part)._replace(name=f"{path.name}, written with this architecture,")))
        part.chmod(0o644)  # safetensors lets nobody else read it
        os.replace(part, path)
    except TypeError as reason:
        raise LabkitError(f"The architecture cannot be written down ({reason}); a file holds a plain ViT.") from None
    finally:
        part.unlink(missing_ok=True)
    return path.stat().st_size


def contents(path: Path) -> Contents:
    """What is in a safetensors file of ours; anything else is refused in a sentence."""
    files.check_readable(path, "checkpoint", "expected a .safetensors file written by labkit.save")
    with path.open("rb") as stream:
        begin = stream.read(2)
    if begin in (b"PK", b"\x80\x02", b"\x80\x04"):
        raise LabkitError(
            f"{path.name} is a pickle, and loading a pickle runs whatever code is inside it; labkit reads safetensors "
            "only. Convert it where you trust it: safetensors.torch.save_file(state_dict, path)."
        )
    try:
        with safe_open(path, "pt") as file:
            meta, tensors = file.metadata() or {}, {k: file.get_tensor(k).clone() for k in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise LabkitError(
            f"{path.name} is not a readable safetensors file ({error}); fetch or train it again."
        ) from None
    key = next((key for key in ("quantized", "architecture") if key in meta), None)
    if key is None:
        raise LabkitError(
            f"{path.name} does not say which architecture its weights belong to; write it with labkit.save, "
            'or give weights of a timm model to ViT.from_timm(name, weights="file.safetensors").'
        )
    try:
        told = dict(json.loads(meta[key]))
    except (TypeError, ValueError, RecursionError) as error:
        raise LabkitError(f"What {path.name} says of its model is not as labkit writes it ({error}).") from None
    return Contents(path.name, told if key == "quantized" else {key: told}, tensors)


def _check_bare(model: ViT) -> None:
    for name, module in model.named_modules():
        if getattr(module, "reducer", None) is not None or getattr(module, "entry", None) is not None:
            raise LabkitError(
                f"{name or 'The entry'} has a token reducer, and a file holds the model alone; save the model that the "
                "reducer was attached to, and attach it again after loading."
            )


def _check_same(model: ViT, again: ViT) -> None:
    """Weights of the right shapes are not all: heads, norms and activations must be the model's as well."""
    ours, theirs = _measures(model), _measures(again)
    for name in {**ours, **theirs}:
        if ours.get(name) != theirs.get(name):
            raise LabkitError(
                f"The architecture is not that of the model: {name} is {theirs.get(name)} there and {ours.get(name)} "
                "here; give the one that the model was built with."
            )


def _measures(model: nn.Module) -> dict[str, Any]:
    """Every module's kind, and whatever else of it is a number, a word or a few of them."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        found[f"{name or 'the model'}"] = type(module).__name__
        for key, value in vars(module).items():
            if isinstance(value, bool | int | float | str | tuple) and key not in PASSING and not key.startswith("_"):
                found[f"{name}.{key}"] = value
    return found
