"""Writing a file so that there is all of the new one or all of the old one, whenever the power goes.

And a sentence for one that cannot be read.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from labkit.errors import LabkitError


def replace(path: Path, content: str | bytes) -> Path:
    """`path` with `content` in it; its folder is there already."""
    told = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(told)
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def check_readable(path: Path, what: str, expected: str) -> None:
    """One sentence, unless `path` is a file that may be read; a pipe is none, and would wait for ever."""
    try:
        if not path.is_file():
            raise LabkitError(f"There is no {what} {path}; {expected}.")
        path.open("rb").close()
    except OSError as error:
        raise LabkitError(f"The {what} {path} cannot be read ({error.strerror}); {expected}.") from None
