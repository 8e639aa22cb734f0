"""What signals do to a command: the first ends it in order, a second one within a second."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from metricli.errors import Terminated
from metricli.stopping import STOPPING, Came, came, counts_as

__all__ = ["end_quietly", "leave_at_second", "leave_last", "raised"]

PATIENCE = 0.6
"""Seconds from a second signal to the end of this process, whatever it is at."""


@contextmanager
def raised(*, hears_one: bool = False) -> Iterator[None]:
    """Within it signals, or the first one, are raised in the main thread: KeyboardInterrupt or Terminated."""
    came.begin(of_command=True, hears_one=hears_one)
    before = {each: signal.signal(each, _raise) for each in STOPPING}
    try:
        yield
    finally:
        came.is_of_command = False
        for each, handler in before.items():
            signal.signal(each, handler)


def _raise(signum: int, _frame: FrameType | None) -> None:
    if came.hear(signum) == "same":
        return
    if came.twice:
        _fall_silent()
    raise KeyboardInterrupt if signum == signal.SIGINT else Terminated


def _fall_silent() -> None:
    """What breaks in the haste of a second signal is no news; further ones change nothing."""
    sys.unraisablehook = lambda *_: None
    threading.excepthook = lambda *_: None
    for each in STOPPING:
        signal.signal(each, signal.SIG_IGN)


def leave_at_second(say: Callable[[int], None]) -> None:
    """From now on a second signal ends this process, even if the main thread waits in a library for ever.

    `say` is called with the signal before. What the process was writing has another name until it is whole.
    """
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    threading.Thread(target=_count, args=(ours, say), daemon=True).start()


def _count(pipe: int, say: Callable[[int], None]) -> None:
    counted = Came()
    while True:
        for signum in os.read(pipe, 64):
            if signum in STOPPING and counted.hear(signum) == "second":
                _leave_soon(signum, say)


def _leave_soon(signum: int, say: Callable[[int], None]) -> NoReturn:
    time.sleep(PATIENCE)
    speaker = threading.Thread(target=say, args=(signum,), daemon=True)  # its stream may block
    speaker.start()
    speaker.join(0.2)
    os._exit(128 + counts_as(signum))


def end_quietly(code: int) -> None:
    """All is said and done: a signal now only ends this process sooner, with the code that it has."""

    def end(*_: Any) -> NoReturn:
        os._exit(code)

    for each in STOPPING:
        signal.signal(each, end)
    _Ended.code = code


class _Ended:
    code: int | None = None


def leave_last() -> None:
    """The last thing at the exit: what Python would do after it takes a while, without our handlers."""
    if _Ended.code is not None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(_Ended.code)
