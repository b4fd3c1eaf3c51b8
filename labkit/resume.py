"""Surviving a kill: all that a training run needs to go on is in one safetensors file, replaced in one move."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from labkit.errors import LabkitError

Rows = list[dict[str, float]]


def checkpoint(folder: str | Path) -> Path:
    return Path(folder) / "training.safetensors"


def keep(
    folder: str | Path,
    step: int,
    recipe: dict[str, Any],
    model: nn.Module,
    optims: list[torch.optim.Optimizer],
    average: dict[str, Tensor],
    rows: Rows,
) -> None:
    """One file with weights, optimizer states, average and log; written beside and moved, so never half there."""
    tensors = {f"model/{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average/{k}": v for k, v in average.items()}
    for i, optim in enumerate(optims):
        for p, state in optim.state_dict()["state"].items():
            tensors |= {f"optim/{i}/{p}/{k}": torch.as_tensor(v) for k, v in state.items()}
    meta = {"step": str(step), "recipe": json.dumps(recipe), "log": json.dumps(rows)}
    path = checkpoint(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path.with_suffix(".part"), meta)
    os.replace(path.with_suffix(".part"), path)


def restore(
    folder: str | Path,
    recipe: dict[str, Any],
    model: nn.Module,
    optims: list[torch.optim.Optimizer],
    average: dict[str, Tensor],
) -> tuple[int, Rows]:
    with safe_open(checkpoint(folder), "pt") as file:
        meta, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    if json.loads(meta["recipe"]) != recipe:
        raise LabkitError(f"{checkpoint(folder)} belongs to another recipe; delete the folder or choose a new one.")
    model.load_state_dict({k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")})
    for k in average:
        average[k].copy_(tensors[f"average/{k}"])
    for i, optim in enumerate(optims):
        states: dict[int, dict[str, Tensor]] = {}
        for key in (k for k in tensors if k.startswith(f"optim/{i}/")):
            _, _, p, name = key.split("/")
            states.setdefault(int(p), {})[name] = tensors[key]
        optim.load_state_dict({"state": states, "param_groups": optim.state_dict()["param_groups"]})
    return int(meta["step"]), json.loads(meta["log"])
