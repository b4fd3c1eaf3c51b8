"""Models in files: safetensors that carry their architecture, and never pickles, which run code when loaded."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from labkit.errors import LabkitError
from labkit.vit import ViT


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save(model: ViT, path: str | Path, architecture: dict[str, Any]) -> None:
    """One safetensors file with the weights and what `ViT(**architecture)` needs to hold them."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, path.with_suffix(".part"), {"architecture": json.dumps(architecture, sort_keys=True)})
    os.replace(path.with_suffix(".part"), path)


def read(path: Path) -> ViT:
    if not path.is_file():
        raise LabkitError(
            f"There is no checkpoint {path}; expected a .safetensors file written by labkit.checkpoint.save."
        )
    if path.read_bytes()[:2] in (b"PK", b"\x80\x02", b"\x80\x04"):
        raise LabkitError(
            f"{path.name} is a pickle, and loading a pickle runs whatever code is inside it; labkit reads safetensors "
            "only. Convert it where you trust it: safetensors.torch.save_file(state_dict, path)."
        )
    try:
        with safe_open(path, "pt") as file:
            meta, tensors = file.metadata() or {}, {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise LabkitError(
            f"{path.name} is not a readable safetensors file ({error}); fetch or train it again."
        ) from None
    if "architecture" not in meta:
        raise LabkitError(
            f"{path.name} does not say which architecture its weights belong to; write it with labkit.checkpoint.save, "
            'or give weights of a timm model to ViT.from_timm(name, weights="file.safetensors").'
        )
    model = ViT(**json.loads(meta["architecture"]))
    model.load_state_dict(tensors)
    return model.eval()
