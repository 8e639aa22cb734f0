"""What a process among several owes the others: to die with who started it, and to leave in order."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from typing import NoReturn

from metricli.errors import Interrupted, WorkerError
from metricli.placement import Placement
from metricli.stopping import STOPPING

BEHIND_THE_MAIN = 1.0
"""Seconds that another process waits before it leaves: if the main one fails alike, its word is enough."""
BEHIND_THE_CAUSE = 2.5
"""Seconds that a process waits that only lost the others: whoever failed leaves first."""
_PR_SET_PDEATHSIG = 1


def become_member(parent: int | None = None) -> None:
    """Have the kernel kill this process when the one that started it dies (Linux; elsewhere nothing).

    `parent` is who that was; if it is gone already, this process leaves at once.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # `leave` skips Python's exit, and its tracker would tell the console that it tidies up
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(WorkerError.exit_code)


def patience(error: BaseException, here: Placement) -> float:
    """Seconds that this process should wait with its failure for the others."""
    if isinstance(error, Interrupted):
        return 0.0
    if getattr(error, "lost", False):
        return BEHIND_THE_CAUSE
    return 0.0 if here.is_main else BEHIND_THE_MAIN


def wait_or_leave(seconds: float, code: int) -> None:
    """Wait; a signal meanwhile ends this process silently with `code`."""
    for each in STOPPING:
        signal.signal(each, lambda *_: leave(code))
    time.sleep(seconds)


def leave(code: int) -> NoReturn:
    """End this process now: with others gone, the interpreter might wait for them at its exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            continue
    os._exit(code)
