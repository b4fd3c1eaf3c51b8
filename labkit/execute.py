"""A notebook run from its first cell to its last by papermill, and kept after each of them.

Whatever happens (a cell that fails, a full disk, Ctrl-C, a kernel that dies) ends in one sentence, and the notebook
that stays is a whole one: that of the last cell for which there was room.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from labkit import files
from labkit.errors import LabkitError

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
        @contextlib.contextmanager
        def setup_kernel(self, **how: Any) -> Iterator[None]:
            with super().setup_kernel(**how):
                try:
                    yield
                except BaseException:
                    self.shutdown_kernel = "immediate"  # whoever stops it neither waits for it nor hears of it
                    raise
                farewell(self.km)

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
            Client(manager, kernel_name=kernel_name, config=encrypted(), log=silent()).execute()

    return Whole


def farewell(kernel: Any) -> None:
    """Ends a kernel that is done. nbclient would interrupt it first, and one that has answered its last cell but not
    yet put its handlers back says on our error stream that it was."""
    from nbclient.util import ensure_async, run_sync

    async def end() -> None:
        await ensure_async(kernel.request_shutdown())
        await ensure_async(kernel.finish_shutdown())

    run_sync(end)()


def encrypted() -> Any:
    """A kernel warns, in the middle of our lines, when others on the machine could overhear it: so they cannot."""
    import zmq
    from jupyter_client.manager import KernelManager
    from traitlets.config import Config

    able = zmq.has("curve") and "transport_encryption" in KernelManager.class_trait_names()
    return Config({"KernelManager": {"transport_encryption": "auto"}} if able else {})


def silent() -> logging.Logger:
    """What goes wrong is raised as well, and told in one sentence."""
    log = logging.getLogger("labkit.execute")
    log.addHandler(logging.NullHandler())
    log.propagate = False
    return log
