"""Rehearses a launch on Binder as far as one machine can: `make test-binder`, some minutes, results on the screen.

A copy of the checkout, a fresh environment with binder/requirements.txt, binder/postBuild, JupyterLab through
binder/start; then three lessons, each with its kernel in that environment and its memory capped at 2 GB, where Binder
kills, must stay below 1 GB, which Binder guarantees. Where the index of the CPU wheels cannot be reached, the plain
builds of the same versions stand in: they need more disk, and their libraries are larger, so no budget gets easier.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "binder"
CLONE, ENV = OUT / "clone", OUT / "env"
PYTHON = ENV / "bin" / "python"
CPU_WHEELS = "--extra-index-url https://download.pytorch.org/whl/cpu"
LESSONS = ("00_start_here", "05_seeing_attention", "07_token_pruning")
GUARANTEED, KILLED = 1e9, 2e9  # bytes
TOKEN = "only-on-127.0.0.1"


def requirements(text: str, reachable: bool) -> str:
    """As Binder reads them; without the CPU index the same versions as plain builds."""
    return text if reachable else text.replace(CPU_WHEELS, "").replace("+cpu", "")


def reachable(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10):
            return True
    except OSError:
        return False


def environment() -> dict[str, str]:
    """What a launched machine has on its PATH, and nothing of the Python that runs this file."""
    keep = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "LABKIT"))
    }
    return keep | {"PATH": f"{ENV / 'bin'}:{os.environ['PATH']}", "HOME": str(OUT / "home"), "JUPYTER_TOKEN": TOKEN}


def install() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    for name in filter(lambda name: (ROOT / name).is_file(), listed):
        (CLONE / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, CLONE / name)
    (OUT / "home").mkdir()
    near = reachable(CPU_WHEELS.split()[1])
    print("torch: " + ("the CPU build, as on Binder" if near else "the plain build; the CPU index cannot be reached"))
    pins = OUT / "requirements.txt"
    pins.write_text(requirements((CLONE / "binder" / "requirements.txt").read_text(encoding="utf-8"), near))
    wanted = (CLONE / "binder" / "runtime.txt").read_text(encoding="utf-8").strip().removeprefix("python-")
    if uv := shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent)):
        subprocess.run([uv, "venv", "--quiet", "--seed", "--python", wanted, str(ENV)], check=True)
        pip = [uv, "pip", "install", "--quiet", "--python", str(PYTHON), "--index-strategy=unsafe-best-match"]
    else:
        subprocess.run([f"python{wanted}", "-m", "venv", str(ENV)], check=True)
        pip = [str(PYTHON), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "-r", pins], check=True)
    subprocess.run([CLONE / "binder" / "postBuild"], cwd=CLONE, env=environment(), check=True)


def check_package() -> None:
    """Installed without the checkout, the package has all its files and its data."""
    ask = "import labkit; from labkit import paths; print(labkit.__file__); print(paths.DATA)"
    said = subprocess.run([PYTHON, "-c", ask], cwd=OUT, env=environment(), check=True, capture_output=True, text=True)
    package, data = (Path(line) for line in said.stdout.splitlines())
    assert package.is_relative_to(ENV) and data.is_relative_to(ENV), said.stdout
    for source, installed in ((CLONE / "labkit", package.parent), (CLONE / "data", data)):
        missing = [
            file
            for file in source.rglob("*")
            if file.is_file() and not (installed / file.relative_to(source)).is_file()
        ]
        assert not missing, f"not installed: {', '.join(str(file.relative_to(CLONE)) for file in missing)}"


def launch() -> tuple[float, float]:
    """JupyterLab answers and hands out the first lesson: after how many seconds, with how many bytes."""
    root_user = ["--allow-root"] if os.geteuid() == 0 else []
    # The port is Jupyter's to choose, and it tells which: one that we found free may be given to others meanwhile.
    lab = ["jupyter", "lab", "--no-browser", "--ip=127.0.0.1"]
    command, start = [str(CLONE / "binder" / "start"), *lab, *root_user], time.monotonic()
    with (OUT / "lab.log").open("w") as log:
        told = environment() | {"JUPYTER_RUNTIME_DIR": str(OUT / "runtime")}
        server = subprocess.Popen(command, cwd=CLONE, env=told, stdout=log, stderr=subprocess.STDOUT)
    try:
        while not answers("status"):
            assert server.poll() is None and time.monotonic() - start < 120, (OUT / "lab.log").read_text()[-3000:]
            time.sleep(0.2)
        seconds = time.monotonic() - start
        assert answers(f"contents/notebooks/{LESSONS[0]}.ipynb")
        return seconds, peak_memory(server.pid)
    finally:
        server.terminate()
        server.wait(timeout=30)


def answers(path: str) -> bool:
    try:
        info = next((OUT / "runtime").glob("jpserver-*.json"), OUT / "runtime" / "none")
        url = f"http://127.0.0.1:{json.loads(info.read_text())['port']}/api/{path}"
        head = {"Authorization": f"token {TOKEN}"}
        with urllib.request.urlopen(urllib.request.Request(url, headers=head), timeout=5) as reply:
            return bool(reply.status == 200)
    except (OSError, ValueError, http.client.HTTPException):  # no file yet, half of it, or nobody listens yet
        return False


def capped(command: list[str], limit: float) -> list[str]:
    """`command` with at most `limit` bytes of private writable memory, counted when it is asked for, not when it is
    filled: stricter than Binder. Address space as a whole (ulimit -v) would count torch's libraries, too."""
    return ["bash", "-c", f'ulimit -d {int(limit / 1024)}; exec "$@"', "capped", *command]


def run(name: str) -> float:
    """Run a lesson to its end; its peak, in bytes."""
    kernel = AsyncKernelManager(kernel_name="python3")
    assert kernel.kernel_spec is not None
    start = [str(CLONE / "binder" / "start"), str(PYTHON), "-m", "ipykernel_launcher", "--log-level=ERROR"]
    kernel.kernel_spec.argv = capped([*start, "-f", "{connection_file}"], KILLED)
    folder, peaks = CLONE / "notebooks", []
    notebook = nbformat.read(folder / f"{name}.ipynb", as_version=4)
    client = NotebookClient(notebook, km=kernel, timeout=180, resources={"metadata": {"path": folder}})
    client.owns_km = True  # and stops it at the end
    client.on_cell_executed = lambda **_: peaks.append(peak_memory(kernel.provisioner.pid))  # type: ignore[union-attr]
    client.execute(env=environment())
    return max(peaks)


def peak_memory(pid: int) -> float:
    sys.path.insert(0, str(ROOT))
    from tests.lesson_budget import peak_memory  # the measure of `make test`

    return peak_memory(pid)


def main() -> int:
    if not sys.platform.startswith("linux"):
        print(
            "Binder is Linux, and so is this rehearsal: memory is capped and measured as Linux does.", file=sys.stderr
        )
        return 2
    shutil.rmtree(OUT, ignore_errors=True)
    start = time.monotonic()
    install()
    check_package()
    print(f"installed in {time.monotonic() - start:.0f} s", flush=True)
    seconds, server = launch()
    print(f"JupyterLab answers after {seconds:.1f} s and takes {server / 1e6:.0f} MB", flush=True)
    for name in LESSONS:
        start, peak = time.monotonic(), run(name)
        print(f"{name}: {time.monotonic() - start:.0f} s, {peak / 1e6:.0f} MB at its peak", flush=True)
        assert peak < GUARANTEED, f"{name} takes {peak / 1e6:.0f} MB; Binder guarantees {GUARANTEED / 1e6:.0f} MB"
    return 0


if __name__ == "__main__":
    sys.exit(main())
