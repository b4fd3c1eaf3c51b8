"""labkit: an interactive, notebook-based kit to learn and explore efficient vision transformers."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public names are imported when first used: `import labkit` alone costs next to nothing.
_HOME = {
    "Explorer": "labkit.viz.explorer",
    "ViT": "labkit.vit",
    "load": "labkit.zoo",
    "save": "labkit.zoo",
    "setup": "labkit.notebook",
    "figure": "labkit.notebook",
    "table": "labkit.notebook",
    "text": "labkit.notebook",
    "show": "labkit.viz.source",
    "trace": "labkit.tracing.record",
    "predict": "labkit.check.predict",
    "reveal": "labkit.check.predict",
    "progress": "labkit.check.progress",
}
_MODULES = (
    *("attention", "audit", "blocks", "check", "clock", "compress", "convert", "cost", "data", "distill", "doctor"),
    *("explain", "fuse", "memory", "operations", "papers", "patching", "positions", "quant", "results", "roofline"),
    *("stack", "tokens", "tracing", "train", "viz", "zoo"),
)
__all__ = [*_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"labkit.{name}")
    raise AttributeError(f"module 'labkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
