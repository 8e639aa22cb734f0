"""`--requeue-exit-code`: the exit code by which a scheduler starts a run again that it has stopped."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from metricli.errors import Interrupted, Terminated, interruption
from metricli.stopping import came

__all__ = ["OPTION", "requeued", "with_default_code"]

OPTION = "--requeue-exit-code"
DEFAULT = 75
"""EX_TEMPFAIL of sysexits.h: try again."""


def with_default_code(words: Sequence[str]) -> list[str]:
    """The words of a command, with the number for an option that stands without one."""
    end = words.index("--") if "--" in words else len(words)
    found = list(words)
    for place in range(end):
        follows = words[place + 1] if place + 1 < end else ""
        if words[place] == OPTION and not re.fullmatch(r"[+-]?\d+", follows):
            found[place] = f"{OPTION}={DEFAULT}"
    return found


@contextmanager
def requeued(code: int | None) -> Iterator[None]:
    """Have a run that SIGTERM or SIGUSR1 stopped leave with `code`.

    Not where the user's Ctrl-C or a second signal did, or where processes had no time to save. A run that was
    stopped before its first step has lost nothing, and is started again too.

    Raises:
        Interrupted: a signal came.
    """
    try:
        yield
    except (Interrupted, Terminated) as error:
        stopped = error if isinstance(error, Interrupted) else interruption(error)
        if code is not None and stopped.signum == signal.SIGTERM and not (stopped.abrupt or came.twice):
            stopped.exit_code = code
        raise stopped from None
