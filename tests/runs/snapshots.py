"""What `kill -9` would leave of a run at each moment: copies of its directory before each file operation."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_WATCHING: list[Camera] = []
_UNREAD = ("log.txt", "env.json")
"""Files that no resume reads: a state that differs in them alone is the same one."""


class Camera:
    """Copies `run` to `into/0`, `into/1`, ... whenever Python is about to touch a file and it has changed."""

    def __init__(self, run: Path, into: Path) -> None:
        self.run, self.into = run, into
        self.shots: list[Path] = []
        self._seen: set[str] = set()

    def look(self) -> None:
        """Copy the directory if it is in a state that was not seen yet."""
        state = state_of(self.run)
        if state not in self._seen:
            self._seen.add(state)
            self.shots.append(self.into / str(len(self.shots)))
            if self.run.exists():
                shutil.copytree(self.run, self.shots[-1])
            else:
                self.shots[-1].mkdir(parents=True)


def _notice(event: str, arguments: tuple[Any, ...]) -> None:
    if not _WATCHING or event.partition(".")[0] not in ("open", "os", "shutil"):
        return
    camera = _WATCHING.pop()  # its own work on files is not to be seen
    try:
        within = str(camera.run)
        if any(isinstance(part, (str, Path)) and str(part).startswith(within) for part in arguments):
            camera.look()
    finally:
        _WATCHING.append(camera)


@contextmanager
def filmed(run: Path, into: Path) -> Iterator[Camera]:
    """Within this, every file operation in `run` is preceded by a shot, and one is taken at the end."""
    if not getattr(sys, "_metricli_filmed", False):
        sys.addaudithook(_notice)  # there is no way to remove one
        sys._metricli_filmed = True  # type: ignore[attr-defined]
    camera = Camera(run, into)
    _WATCHING.append(camera)
    try:
        yield camera
    finally:
        _WATCHING.remove(camera)
        camera.look()


def state_of(run: Path) -> str:
    """A digest of all names below a folder, and of what stands in the files."""
    found = hashlib.sha256()
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run)).replace(str(os.getpid()), "PID")
        found.update(f"\0{name}\0".encode())
        if path.is_file() and path.name not in _UNREAD:
            found.update(path.read_bytes())
    return found.hexdigest()


def names_in(run: Path) -> list[str]:
    """Everything that lies in a run directory."""
    return sorted(str(path.relative_to(run)) for path in run.rglob("*"))
