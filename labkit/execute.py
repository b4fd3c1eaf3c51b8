"""A notebook run from its first cell to its last by papermill, and kept after each of them.

Whatever happens (a cell that fails, a full disk, Ctrl-C, a kernel that dies) ends in one sentence, and the notebook
that stays is a whole one: that of the last cell for which there was room.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from labkit import files
from labkit.errors import LabkitError

LONGEST = 90  # bytes of a folder's path: a socket's whole path has about a hundred
Told = Callable[[int, int, list[str]], None]  # cells done, cells in all, the tags of the one that begins


def execute(source: Path, notebook: Path, chosen: dict[str, Any], folder: Path, told: Told | None = None) -> None:
    """Runs `source` in `folder` and keeps what it has done in `notebook`, however far it comes."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.engines import papermill_engines
    from papermill.exceptions import PapermillExecutionError

    papermill_engines.register("labkit", engine(notebook.absolute(), told))
    path = str(source).replace("{", "{{").replace("}", "}}")  # papermill takes a path for a pattern
    how = {"engine_name": "labkit", "kernel_name": "python3", "language": "python"}
    try:
        # Without a file to write, papermill leaves the writing to the engine: it would truncate what is there.
        papermill.execute_notebook(path, None, chosen, cwd=folder, progress_bar=False, **how)
    except PapermillExecutionError as error:
        what = str(error.evalue).splitlines() or [""]
        stopped = f"{source.stem} stopped in cell [{error.exec_count}] ({error.ename}: {what[0]})."
        raise LabkitError(f"{stopped} {kept(notebook)}") from error
    except DeadKernelError as error:
        why = "most often because memory ran out: try fewer images, or a smaller model"
        raise LabkitError(f"The process that ran {source.stem} died, {why}. {kept(notebook)}") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped. {kept(notebook)}") from None
    except OSError as error:
        raise LabkitError(
            f"{notebook} cannot be written ({error.strerror}); choose another folder. {kept(notebook)}"
        ) from error


def kept(notebook: Path) -> str:
    return f"What it had done until then is in {notebook}." if notebook.is_file() else "Nothing was kept."


def engine(notebook: Path, told: Told | None) -> Any:
    """papermill's engine that tells when a cell begins, and replaces `notebook` as a whole before and after each."""
    import nbformat
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import Engine

    class Client(PapermillNotebookClient):  # type: ignore[misc]
        def start_new_kernel_client(self) -> Any:
            try:
                return super().start_new_kernel_client()
            except RuntimeError as error:
                see = f"run {sys.executable} -m ipykernel_launcher to see why"
                raise LabkitError(f"The kernel stopped before it had run anything ({error}); {see}.") from error

        def papermill_execute_cells(self) -> None:
            try:
                super().papermill_execute_cells()
            except BaseException:
                self.shutdown_kernel = "immediate"  # whoever stops it in a cell does not wait for it
                raise

    class Whole(Engine):  # type: ignore[misc]
        @classmethod
        def execute_managed_notebook(cls, manager: Any, kernel_name: str, **how: Any) -> None:
            begin = manager.cell_start

            def save(**changed: Any) -> None:
                files.replace(notebook, nbformat.writes(manager.nb))
                manager.last_save_time = manager.now()

            def start(cell: Any, cell_index: int, **more: Any) -> None:
                if told is not None:
                    told(cell_index, len(manager.nb.cells), list(cell.metadata.get("tags", [])))
                begin(cell, cell_index, **more)

            manager.save, manager.cell_start = save, start
            with private() as settings:
                client = Client(manager, kernel_name=kernel_name, config=settings, log=silent())
                # What cells say is in the notebook; a kernel may still say that it was interrupted while it ended.
                client.execute(stderr=subprocess.DEVNULL)

    return Whole


@contextlib.contextmanager
def private() -> Iterator[Any]:
    """Settings for a kernel whose talk no other program hears: it goes through files in a folder of its own.

    A port that is free when it is chosen may be another kernel's when this one begins; then it dies. Where files cannot
    be used, ports are, encrypted where that is possible.
    """
    import zmq
    from jupyter_client.manager import KernelManager
    from traitlets.config import Config

    with tempfile.TemporaryDirectory(prefix="labkit-", ignore_cleanup_errors=True) as folder:
        if os.name == "posix" and len(os.fsencode(folder)) < LONGEST:
            yield Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})
        elif zmq.has("curve") and "transport_encryption" in KernelManager.class_trait_names():
            yield Config({"KernelManager": {"transport_encryption": "auto"}})
        else:
            yield Config()


def silent() -> logging.Logger:
    """What goes wrong is raised as well, and told in one sentence."""
    log = logging.getLogger("labkit.execute")
    log.addHandler(logging.NullHandler())
    log.propagate = False
    return log
