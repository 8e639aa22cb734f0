"""Calls of a logger, someone else's code: in a thread of its own, for a limited time, nothing on stdout."""

from __future__ import annotations

import contextlib
import io
import os
import queue
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["CallFailed", "Caller"]

_STDOUT = 1


class CallFailed(Exception):
    """What the call raised, or that it did not come back, in one line."""


class Caller:
    """Makes all calls of one logger, one after another, in one thread; each is waited for.

    Trackers keep things by thread, and may hang, leave with `sys.exit`, ask a question, print, or take over
    `sys.excepthook`: none of it reaches the run. `printed` is what they printed to stdout.
    """

    def __init__(self, name: str) -> None:
        self.printed: list[str] = []
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[Any]] | None]
        self._jobs = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"logger-{name}", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            function, answer = job
            try:
                found = (True, function())
            except BaseException as error:  # SystemExit as well
                found = (False, f"{type(error).__name__}: {error}")
            answer.put(found)

    def __call__(self, function: Callable[[], Any], *, seconds: float) -> Any:
        """The function's result.

        Raises:
            CallFailed: it raised, or has not come back after so many seconds.
        """
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with _apart(self.printed):
            self._jobs.put((function, answer))
            try:
                worked, found = answer.get(timeout=seconds)
            except queue.Empty:
                worked, found = False, f"it has not come back after {seconds:g} seconds"
        if not worked:
            raise CallFailed(" ".join(str(found).split()))
        return found

    def end(self) -> None:
        """Let the thread end after its last call."""
        self._jobs.put(None)


@contextlib.contextmanager
def _apart(printed: list[str]) -> Iterator[None]:
    """Keep what is written to stdout and warned of in the meantime, give no input, put hooks back.

    The filters of warnings stay: to change them would have Python repeat what it says once.
    """
    text, hook, stdin, show = io.StringIO(), sys.excepthook, sys.stdin, warnings.showwarning

    def hear(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        text.write(f"{category.__name__}: {message}\n")

    with tempfile.TemporaryFile() as sink, contextlib.ExitStack() as stack:
        stack.enter_context(_moved(sink.fileno()))
        stack.enter_context(contextlib.redirect_stdout(text))
        warnings.showwarning = hear
        sys.stdin = stack.enter_context(open(os.devnull, encoding="utf-8"))
        try:
            yield
        finally:
            sys.excepthook, sys.stdin, warnings.showwarning = hook, stdin, show
            sink.seek(0)
            lines = sink.read().decode(errors="replace") + text.getvalue()
            printed += [line for line in lines.splitlines() if line.strip()]


@contextlib.contextmanager
def _moved(target: int) -> Iterator[None]:
    """Let the file descriptor of stdout be another one's."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
        before = os.dup(_STDOUT)
    except (OSError, ValueError):  # there is none
        yield
        return
    try:
        os.dup2(target, _STDOUT)
        yield
    finally:
        os.dup2(before, _STDOUT)
        os.close(before)
