"""What this machine is, in words that a measurement can carry: its processor, its usable cores, its GPU."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def describe() -> dict[str, Any]:
    """The part of a measurement's provenance that says on what; nothing in it names a person or a host."""
    return {"cpu": cpu(), "cores": cores(), "gpu": gpu(), "system": platform.system()}


def cpu() -> str:
    """The processor's name; its architecture where the system does not tell more."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "Apple CPU"
    return platform.processor() or platform.machine()


def cores() -> int:
    """The cores this process may use: what the scheduler allows, or less where a container has a quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    allowed = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        limit, period = quota.read_text(encoding="utf-8").split()
        if limit != "max":
            allowed = min(allowed, max(1, int(limit) // int(period)))
    return allowed


def gpu() -> str | None:
    """The name of the first CUDA device, if there is one."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
