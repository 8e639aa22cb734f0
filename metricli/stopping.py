"""Signals that ask a command to stop, and which of them is a second one; light to import."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Literal, NoReturn

__all__ = ["STOPPING", "Came", "came", "counts_as", "leave_until_ready"]

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")
STOPPING: tuple[signal.Signals, ...] = tuple(
    getattr(signal, name) for name in _NAMES if hasattr(signal, name)
)


def counts_as(signum: int) -> signal.Signals:
    """SIGUSR1, by which schedulers warn of the end, is SIGTERM to us."""
    is_warning = signal.Signals(signum).name == "SIGUSR1"
    return signal.SIGTERM if is_warning else signal.Signals(signum)


class Came:
    """The signals that came since `begin`."""

    def __init__(self) -> None:
        self.is_of_command = False
        """Whether a command line counts here; else each run of the Python interface counts for itself."""
        self.begin()

    def begin(self, *, of_command: bool = False, hears_one: bool = False) -> None:
        """Forget what came; `hears_one` takes all that follows the first for the same."""
        self.first: int | None = None
        self.at = 0.0
        self.twice = False
        self.is_of_command, self.hears_one = of_command, hears_one

    def hear(self, signum: int) -> Literal["first", "same", "second"]:
        """What a signal is; `timeout` and some launchers send one twice in a moment, and mean it once."""
        now = time.monotonic()
        if self.first is None:
            self.first, self.at = signum, now
            return "first"
        moment = 0.1 if signum == signal.SIGINT else 0.25
        again = counts_as(signum) == counts_as(self.first) and now - self.at < moment and not self.twice
        if again or self.hears_one:
            return "same"
        self.twice = True
        return "second"


came = Came()
"""Those of this process."""


def leave_until_ready(*, silently: bool = False) -> None:
    """Until other handlers are set a signal ends this process with its code and one line."""

    def leave(signum: int, _frame: FrameType | None) -> NoReturn:
        word = b"interrupted" if signum == signal.SIGINT else b"terminated"
        if not silently:
            os.write(2, b"error: " + word + b"\n")
        os._exit(128 + counts_as(signum))

    for each in STOPPING:
        signal.signal(each, leave)
