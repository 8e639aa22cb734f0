"""The folder through which the agent of `launch` and its processes speak, and what they say there."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from metricli.errors import Interrupted, MetricliError, ResourceError

__all__ = ["Told", "Wire", "portable", "wire_folder"]


@dataclass(frozen=True)
class Told:
    """The last word of a process: what it made, or what stopped it."""

    rank: int
    at: float
    report: Any = None
    error: BaseException | None = None

    @property
    def is_cause(self) -> bool:
        """Whether it stopped of itself, not because of a signal or of another process."""
        other = isinstance(self.error, Interrupted) or getattr(self.error, "lost", False)
        return self.error is not None and not other


@dataclass(frozen=True)
class Wire:
    """The folder through which the agent and its processes speak; every file is there whole or not at all."""

    folder: Path
    REQUEST: ClassVar[str] = "request.json"

    def pid(self, rank: int) -> int | None:
        """The process of a rank, once it has begun."""
        with suppress(OSError, ValueError):
            return int((self.folder / f"rank{rank}.pid").read_text())
        return None

    def log(self, rank: int) -> Path:
        """Where a process that is not the main one prints."""
        return self.folder / f"log.rank{rank}.txt"

    def begin(self, rank: int) -> dict[str, Any]:
        """Note that this process is the one of a rank; what it has to do."""
        self._put(f"rank{rank}.pid", str(os.getpid()).encode())
        asked: dict[str, Any] = json.loads((self.folder / self.REQUEST).read_text(encoding="utf-8"))
        return asked

    def ask(self, request: Mapping[str, Any]) -> None:
        """Write down what the processes have to do."""
        self._put(self.REQUEST, json.dumps(request).encode())

    def tell(self, told: Told) -> None:
        """Leave a last word; what cannot travel goes as text."""
        try:
            word = pickle.dumps(told)
            pickle.loads(word)
        except Exception as problem:
            error = told.error or problem
            said = MetricliError(f"{type(error).__name__}: {error}")
            said.__notes__ = [*getattr(error, "__notes__", [])]
            word = pickle.dumps(replace(told, report=None, error=said))
        self._put(f"rank{told.rank}.told", word)

    def told(self, rank: int) -> Told | None:
        """The last word of a process, None if it has left none."""
        with suppress(OSError):
            word: Told = pickle.loads((self.folder / f"rank{rank}.told").read_bytes())
            return word
        return None

    def _put(self, name: str, content: bytes) -> None:
        part = self.folder / f"{name}.part"
        part.write_bytes(content)
        part.replace(self.folder / name)


def portable(report: Any, folder: Path) -> Any:
    """A report that can go to another process: what it would write is written, and taken along as bytes."""
    if getattr(report, "write", None) is None:
        return report
    folder.mkdir()
    report.write(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return replace(report, write=partial(_write_files, files))


def _write_files(files: Mapping[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        part = folder / f"{name}.part"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            part.write_bytes(content)
            part.replace(folder / name)
        except OSError as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise ResourceError(f"cannot write {str(folder / name)!r}: {error.strerror}") from None


_SWEEP = (
    'trap "" INT TERM HUP USR1; read -r _; for _ in 1 2 3 4 5; do rm -rf -- "$1" && exit; sleep 0.2; done'
)


@contextmanager
def wire_folder() -> Iterator[Wire]:
    """A folder for the time of the processes, kept if an error names it.

    A shell beside them waits for the end of this process, and removes it where it was killed.
    """
    wire = Wire(Path(tempfile.mkdtemp(prefix="metricli-")))
    keep, sweeper = False, None
    try:
        sweeper = subprocess.Popen(
            ["/bin/sh", "-c", _SWEEP, "sh", str(wire.folder)],
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        yield wire
    except BaseException as error:
        keep = str(wire.folder) in str(error)  # its log is named there
        raise
    finally:
        if not keep:
            shutil.rmtree(wire.folder, ignore_errors=True)
        if sweeper is not None:
            sweeper.kill()
            sweeper.communicate()
