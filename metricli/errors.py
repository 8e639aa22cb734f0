"""Every failure metricli reports, and the exit code each one gives the shell.

    MetricliError                 1    a fault of metricli itself (also: any other exception)
    ├── UsageError                2    a wrong command line or argument
    │   └── SpecError             2    one or more problems in a spec, all listed at once
    ├── DataError                 3    the table, an image or a features file
    ├── NonFiniteError            4    a NaN or infinite loss, gradient or embedding
    ├── CollapseError             4    all embeddings became alike, with training.on_collapse: stop
    ├── CheckpointError           5    missing, damaged or foreign checkpoint
    ├── WorkerError               6    a process of the run failed, or they lost each other
    ├── ResourceError             7    disk or memory
    ├── GateError                 8    a quality gate (`--fail-under`) was not met
    └── Interrupted         130/143    SIGINT, or SIGTERM and SIGUSR1, after saving

The codes are API; beside them, 141 says that the reader of our output closed its pipe. A message says
what is wrong and where; the hint says what to do next.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from metricli.stopping import counts_as

__all__ = [
    "CheckpointError",
    "CollapseError",
    "DataError",
    "GateError",
    "Interrupted",
    "MetricliError",
    "NonFiniteError",
    "Problem",
    "ResourceError",
    "SpecError",
    "Terminated",
    "UsageError",
    "WorkerError",
    "interruption",
]

MOST_PROBLEMS = 100
"""Problems of a spec that its error lists."""
Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Problem:
    """One thing wrong (or doubtful) with a spec: a dotted path, what is wrong, and the line if known."""

    path: str
    message: str
    severity: Severity = "error"
    line: int | None = None


class MetricliError(Exception):
    """Base of all metricli errors: `message` (what, where), `hint` (what to do), `code`, `exit_code`."""

    code: ClassVar[str] = "internal"
    exit_code: int = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        joint = "\n  " if "\n" in self.message else "; "
        return f"{self.message}{joint}{self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:  # told to other processes, whatever its `__init__` takes
        return _again, (type(self), self.args, self.__dict__)

    def to_dict(self) -> dict[str, str]:
        """The `error` part of the `--json` document of a failure."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


def _again(kind: type[MetricliError], args: tuple[Any, ...], state: dict[str, Any]) -> MetricliError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class UsageError(MetricliError):
    """A wrong command line or argument."""

    code = "usage"
    exit_code = 2


class SpecError(UsageError):
    """One or more problems in a spec; `problems` has every one of them."""

    code = "spec"

    def __init__(self, source: str, problems: Sequence[Problem], *, hint: str = "") -> None:
        self.source = source
        self.problems = list(problems)
        super().__init__(format_problems(source, self.problems), hint=hint)

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class DataError(MetricliError):
    """The table, an image or a features file is missing, unreadable or wrong."""

    code = "data"
    exit_code = 3


class NonFiniteError(MetricliError):
    """A loss, gradient or embedding is NaN or infinite."""

    code = "non-finite"
    exit_code = 4


class CollapseError(MetricliError):
    """The embeddings became alike, and the spec ends a run there; last.ckpt and best.ckpt are kept."""

    code = "collapse"
    exit_code = 4


class CheckpointError(MetricliError):
    """A checkpoint is missing, damaged, or not one of ours."""

    code = "checkpoint"
    exit_code = 5


class WorkerError(MetricliError):
    """A process of the run failed, or the processes lost each other."""

    code = "worker"
    exit_code = 6
    lost = False
    """Whether it is another process that failed, and this one only noticed."""


class ResourceError(MetricliError):
    """The disk or the memory does not suffice."""

    code = "resource"
    exit_code = 7


class GateError(MetricliError):
    """A metric is on the wrong side of its `--fail-under` limit."""

    code = "gate"
    exit_code = 8


class Interrupted(MetricliError):
    """The run was stopped by a signal, after saving; exit code 128 + the signal's number."""

    code = "interrupted"
    abrupt = False
    """Whether there was no time to save what could have been saved."""

    def __init__(self, message: str, *, signum: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.signum = int(counts_as(signum))
        self.exit_code = 128 + self.signum


class Terminated(BaseException):
    """SIGTERM or SIGUSR1 on its way up; as of KeyboardInterrupt, no `except Exception` can swallow it."""


def interruption(error: KeyboardInterrupt | Terminated) -> Interrupted:
    """What to say of a signal that was raised."""
    if isinstance(error, Terminated):
        return Interrupted("terminated", signum=signal.SIGTERM)
    return Interrupted("interrupted", signum=signal.SIGINT)


def format_problems(source: str, problems: Sequence[Problem]) -> str:
    """Lay problems out as the block that the command line prints, columns aligned, in file order.

    Of more than `MOST_PROBLEMS` the rest is counted.
    """
    count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''} in {source}"
    rows = sorted(problems, key=lambda p: (p.line is None, p.line or 0))[:MOST_PROBLEMS]
    places = [f"line {p.line}" if p.line else "" for p in rows]
    place_width = max((len(place) for place in places), default=0)
    path_width = max((len(p.path) for p in rows), default=0)
    lines = [count]
    for place, problem in zip(places, rows, strict=True):
        cells = [place.ljust(place_width)] if place_width else []
        cells += [problem.path.ljust(path_width)] if path_width else []
        lines.append("  " + "  ".join([*cells, problem.message]).rstrip())
    if more := len(problems) - len(rows):
        lines.append(f"  and {more} more")
    return "\n".join(lines)
