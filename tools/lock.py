"""Writes requirements.lock (exact versions, any platform, Python >= 3.11) and binder/requirements.txt.

Binder takes the same versions without the test tools, and torch from the CPU wheels: a fifth of the size.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CPU_WHEELS = "--extra-index-url https://download.pytorch.org/whl/cpu"
GPU_ONLY = re.compile(r"(nvidia|cuda|triton)\b")
LOCK_HEAD = "# Exact versions that were tested, for Python 3.11 and newer. Written by `make lock`.\n"
BINDER_HEAD = f"""\
# The versions of requirements.lock, torch without CUDA. Written by `make lock`.
# No line may refer to the repository itself: Binder would install torch anew after every edit.
{CPU_WHEELS}
"""


def compile_pins(*args: str) -> list[str]:
    command = ["uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--no-emit-index-url"]
    done = subprocess.run([*command, *args], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


def cpu_pin(pin: str) -> str:
    return f"{pin}+cpu" if pin.startswith(("torch==", "torchvision==")) else pin


def main() -> None:
    if shutil.which("uv") is None:
        sys.exit("make lock needs uv on PATH: pip install uv")
    everywhere = ["--universal", "--python-version", "3.11", "--fork-strategy", "fewest"]
    pins = compile_pins(*everywhere, "--extra", "test", "requirements.txt", "pyproject.toml")
    (ROOT / "requirements.lock").write_text(LOCK_HEAD + "\n".join(pins) + "\n")

    linux = ["--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28"]
    pins = compile_pins(*linux, "-c", "requirements.lock", "requirements.txt")
    pins = [cpu_pin(pin) for pin in pins if not GPU_ONLY.match(pin)]
    (ROOT / "binder" / "requirements.txt").write_text(BINDER_HEAD + "\n".join(pins) + "\n")


if __name__ == "__main__":
    main()
