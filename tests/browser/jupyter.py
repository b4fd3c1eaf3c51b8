"""JupyterLab as a student meets it, driven from a test: a server with empty settings, and notebooks opened in it."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import nbformat

HOMES = ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")
IDLE = "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
RUN_ALL = """() => {
    window.ran = false;
    jupyterapp.commands.execute('notebook:run-all-cells').then(() => { window.ran = true; });
}"""
ASK = """async (code) => {
    const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel, said = [];
    const future = kernel.requestExecute({code, store_history: false});
    future.onIOPub = ({header, content}) => {
        if (header.msg_type === 'stream') said.push(content.text);
        if (header.msg_type === 'error') said.push(`${content.ename}: ${content.evalue}`);
    };
    await future.done;
    return said.join('');
}"""
CELLS = "() => jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells"


class Notebook:
    """A notebook in an open tab."""

    def __init__(self, page) -> None:
        self.page = page

    def run(self, seconds: float = 120) -> list[list[dict]]:
        """Runs every cell and returns the outputs of each code cell, in the notebook's format."""
        self.page.evaluate(RUN_ALL)
        self.page.wait_for_function("() => window.ran", timeout=1000 * seconds)
        return self.outputs()

    def cell(self, number: int):
        """A cell and what is shown below it."""
        return self.page.locator(".jp-Cell").nth(number)

    def ask(self, code: str) -> str:
        """What the kernel prints when it runs some code beside the cells."""
        return self.page.evaluate(ASK, code).strip()

    def wait_for(self, code: str, words: str, seconds: float = 10) -> str:
        """Ask until these words are printed: a widget sends what it changed when the kernel has time for it."""
        end = time.monotonic() + seconds
        while words not in (said := self.ask(code)) and time.monotonic() < end:
            self.page.wait_for_timeout(100)
        assert words in said
        return said

    def outputs(self) -> list[list[dict]]:
        return [cell["outputs"] for cell in self.page.evaluate(CELLS) if cell["cell_type"] == "code"]

    def errors(self) -> list[str]:
        """What the cells raised."""
        outputs = [output for cell in self.outputs() for output in cell]
        return [f"{o['ename']}: {o['evalue']}" for o in outputs if o["output_type"] == "error"]


class Lab:
    """A server on this machine, for as long as the tests run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = secrets.token_urlsafe(24)
        self.url = ""  # known when the server has told its port
        # Here kernels have their sockets, whose paths have to be short.
        self.runtime = tempfile.TemporaryDirectory(prefix="lab-", dir="/tmp", ignore_cleanup_errors=True)
        (folder / "notebooks").mkdir()
        settings = folder / "JUPYTER_CONFIG_DIR" / "labconfig" / "page_config.json"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}))
        self.log = (folder / "log").open("w")
        self.server = subprocess.Popen(
            self.command(), cwd=folder, env=self.environment(), stdout=self.log, stderr=subprocess.STDOUT
        )
        self.wait_until_it_answers()

    def command(self) -> list[str]:
        root_user = ["--allow-root"] if os.geteuid() == 0 else []
        # The port is Jupyter's to choose, for one that we found free may be given to others meanwhile; from a thousand
        # that no other worker's server looks through, and below those that the system hands out.
        port = 10_000 + 1_000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        return [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--expose-app-in-browser", *root_user),
            *("--ip=127.0.0.1", f"--port={port}", "--KernelManager.transport=ipc"),
            *(f"--ServerApp.root_dir={self.folder / 'notebooks'}", "--LabApp.news_url=None"),
            "--LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate",
        ]

    def environment(self) -> dict[str, str]:
        folders = {name: str(self.folder / name) for name in HOMES}
        told = {"JUPYTER_RUNTIME_DIR": self.runtime.name, "JUPYTER_TOKEN": self.token, "OMP_NUM_THREADS": "1"}
        return os.environ | folders | told

    def wait_until_it_answers(self, seconds: float = 60) -> None:
        start = time.monotonic()
        while time.monotonic() - start < seconds and self.server.poll() is None:
            try:
                told = next(Path(self.runtime.name).glob("jpserver-*.json"))
                self.url = f"http://127.0.0.1:{json.loads(told.read_text())['port']}"
                self.ask("/api/status")
                return
            except (StopIteration, ValueError, OSError):  # not told yet, half told, not listening yet
                time.sleep(0.1)
        self.stop()
        raise RuntimeError(f"JupyterLab did not answer; its log:\n{(self.folder / 'log').read_text()[-3000:]}")

    def ask(self, path: str, method: str = "GET") -> bytes:
        head = {"Authorization": f"token {self.token}"}
        with urllib.request.urlopen(
            urllib.request.Request(self.url + path, method=method, headers=head), timeout=10
        ) as reply:
            return reply.read()

    def open(self, path: Path, page, fast: bool = False) -> Notebook:
        """A copy of the notebook without its outputs, in its own tab, the kernel ready; `fast` shortens a lesson."""
        document = nbformat.read(path, as_version=4)
        for cell in document.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
            if fast and "parameters" in cell.metadata.get("tags", []):
                cell.source += "\nfast = True"
        nbformat.write(document, self.folder / "notebooks" / path.name)
        page.goto(f"{self.url}/lab/tree/{path.name}?token={self.token}&reset")
        page.wait_for_function(IDLE, timeout=60_000)
        return Notebook(page)

    def shut_kernels_down(self) -> None:
        for session in json.loads(self.ask("/api/sessions")):
            self.ask(f"/api/sessions/{session['id']}", "DELETE")

    def stop(self) -> None:
        self.server.terminate()
        self.server.wait(timeout=30)
        self.log.close()
        self.runtime.cleanup()
