"""`tool("check")` is tools/check.py as a module: those scripts are no package."""

from __future__ import annotations

import importlib.util
from types import ModuleType

from labkit import paths


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tools_{name}", paths.ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
