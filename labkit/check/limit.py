"""Stops a call that takes too long, wherever it is: an endless loop, a sleep, a row of slow products.

In the main thread of Linux and macOS an alarm interrupts even a sleep. Elsewhere the exception is set from a second
thread, and is raised as soon as Python runs its next step.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


class TooSlow(BaseException):
    """No `except Exception` of the stopped code may catch it."""


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """What `call()` returns; `TooSlow` when it is not done by then."""
    alarm = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    return by_alarm(seconds, call) if alarm else by_thread(seconds, call)


def by_alarm(seconds: float, call: Callable[[], Any]) -> Any:
    def ring(_: int, frame: FrameType | None) -> None:
        if frame is not None and frame.f_code is not by_alarm.__code__:  # there the call is over
            raise TooSlow

    before = signal.signal(signal.SIGALRM, ring)
    # Again and again: code that catches everything is stopped at its next turn.
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)
    try:
        return call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def by_thread(seconds: float, call: Callable[[], Any]) -> Any:
    caller, lock, done, fired = ctypes.c_ulong(threading.get_ident()), threading.Lock(), False, False

    def fire() -> None:
        nonlocal fired
        with lock:
            if not done:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(caller, ctypes.py_object(TooSlow))
                fired = True

    timer = threading.Timer(seconds, fire)
    timer.daemon = True
    timer.start()
    try:
        return call()
    finally:
        with lock:
            done = True
        timer.cancel()
        if fired:  # set, but perhaps not yet raised: nobody else may meet it
            ctypes.pythonapi.PyThreadState_SetAsyncExc(caller, None)
