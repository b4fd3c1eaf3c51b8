"""Opens JupyterLab on the first lesson; with --headless it opens no browser and prints the URL on one line.

The server listens on 127.0.0.1 only, asks for a token, and fetches neither news nor update notices.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIRST = "notebooks/00_start_here.ipynb"


def command(*more: str) -> list[str]:
    root_user = ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    return [
        sys.executable,
        "-m",
        "jupyterlab",
        "--ip=127.0.0.1",
        f"--ServerApp.root_dir={ROOT}",
        f"--LabApp.default_url=/lab/tree/{FIRST}",
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate",
        *root_user,
        *more,
    ]


def ask_nothing() -> None:
    """Switch off the pop-up that asks a newcomer about Jupyter news, in .venv alone."""
    path = Path(sys.prefix) / "etc" / "jupyter" / "labconfig" / "page_config.json"
    settings = json.loads(path.read_text()) if path.is_file() else {}
    settings.setdefault("disabledExtensions", {})["@jupyterlab/apputils-extension:announcements"] = True
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=2) + "\n")


def address(token: str) -> str:
    """Where the server with this token answers; empty while it does not."""
    from jupyter_server.serverapp import list_running_servers

    for server in list_running_servers():
        if server["token"] == token:
            status = f"http://127.0.0.1:{server['port']}/api/status?token={token}"
            try:
                with urllib.request.urlopen(status, timeout=2):
                    return f"http://127.0.0.1:{server['port']}"
            except (OSError, http.client.HTTPException):  # it told its port, but does not listen yet
                break
    return ""


def headless() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the server below is never left behind
    token = secrets.token_urlsafe(24)
    # The token goes through the environment: an argument would be visible to every user of the machine. The port is
    # Jupyter's to choose, from 8888 up: a free one that we found would be one that any kernel may be given meanwhile.
    server = subprocess.Popen(command("--no-browser", "--log-level=WARN"), env={**os.environ, "JUPYTER_TOKEN": token})
    try:
        while not (found := address(token)):
            if server.poll() is not None:
                print("JupyterLab stopped before it answered; its last lines above say why.", file=sys.stderr)
                return 1
            time.sleep(0.2)
        print(f"{found}/lab/tree/{FIRST}?token={token}", flush=True)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    if not (ROOT / FIRST).is_file():
        sys.exit(f"{FIRST} is missing; get it back with: git checkout -- {FIRST}")
    ask_nothing()
    if sys.argv[1:] == ["--headless"]:
        sys.exit(headless())
    os.chdir(ROOT)
    os.execv(sys.executable, command())
