"""Input that nobody should give: images, weights, names, tables, parameters, rights, full disks, Ctrl-C.

Most cases are generated from seeds. Each is a call that has to end in a result or in one clear sentence, never in a
traceback, a hang or a half-written file. `python -m tests.hostile` runs all of them and prints how they ended.
"""

from __future__ import annotations

import contextlib
import io
import signal
from collections.abc import Callable, Generator

from labkit import cli
from labkit.errors import LabkitError

Case = Callable[[], object]
Cases = Generator[Case, None, None]
SECONDS = 120  # that a case may take before it counts as a hang, on a machine that does much else
BAR = ("[#", "[-")  # how the lines begin that say how far a report is


class Hang(BaseException):
    """No `except Exception` on the way takes it for a file that cannot be read."""


class Impossible(Exception):
    """What a family needs cannot be had here: the text says what."""


def ending(case: Case, seconds: int = SECONDS) -> str:
    """ "result" or "sentence"; whatever else it ends in goes through."""

    def late(*_: object) -> None:
        raise Hang(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        case()
    except LabkitError as error:
        check_sentence(str(error))
        return "sentence"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return "result"


def check_sentence(said: str) -> None:
    assert 10 < len(said) < 6000 and "Traceback" not in said and "\n" not in said.strip(), repr(said)


def command(*words: object) -> str:
    """What `labkit` prints; a sentence on the error stream becomes a LabkitError again, anything else fails."""
    with contextlib.redirect_stderr(io.StringIO()) as error, contextlib.redirect_stdout(io.StringIO()) as out:
        code = cli.main([str(word) for word in words])
    lines = [line for line in error.getvalue().splitlines() if not line.startswith(BAR)]
    if code == 2:
        assert len(lines) == 1 and lines[0].startswith("labkit: "), lines
        raise LabkitError(lines[0])
    assert code == 0 and lines == [], (code, lines)
    return out.getvalue()
