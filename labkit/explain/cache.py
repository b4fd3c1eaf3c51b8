"""Results kept on disk under the hash of all that made them, so that nothing slow is computed twice.

The key covers the model (weights, shape, reducers, hooks), the inputs and the versions: whatever changes, the key
changes. A model that cannot be described by value, as with a lambda inside, is never cached.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from labkit import files, paths


def digest(x: Tensor) -> str:
    data = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(f"{x.dtype} {tuple(x.shape)}".encode() + data.tobytes()).hexdigest()


class _ByValue(pickle.Pickler):
    """Pickles to be hashed, never to be loaded: a tensor is written as its digest."""

    def persistent_id(self, obj: Any) -> str | None:
        return digest(obj) if isinstance(obj, Tensor) else None


def key(*parts: Any) -> str | None:
    """The sha256 of these objects' values; None when one of them has a part without a value, such as a lambda."""
    written = io.BytesIO()
    try:
        _ByValue(written, protocol=4).dump(parts)
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
    return hashlib.sha256(written.getvalue()).hexdigest()


def cached(folder: str, name: str | None, compute: Callable[[], Tensor]) -> Tensor:
    """`compute()`, or what it gave before under this name; a damaged file is as good as none."""
    if name is None:
        return compute()
    path = paths.CACHE / folder / f"{name}.safetensors"
    with contextlib.suppress(OSError, SafetensorError, KeyError):
        return _load(path)
    result = compute()
    with contextlib.suppress(OSError):  # a disk that is full or read-only costs time, not the result
        _store(path, result)
    return result


def _load(path: Path) -> Tensor:
    with safe_open(path, "pt") as file:
        result, expected = file.get_tensor("result"), file.metadata()["sha256"]
    if digest(result) != expected:
        raise KeyError("sha256")
    return result


def _store(path: Path, result: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = save({"result": result.detach().cpu().contiguous()}, {"sha256": digest(result)})
    files.replace(path, content)
