"""The saves of a run that stay beside last.ckpt: RUN/checkpoints/step-00000120/, the newest few of them.

Each holds `last.ckpt`, the run as it was after that step, and `best.ckpt`, its best until then. They are
further names (hard links) of the files that the run has written, which no one writes into: they cost no time.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

from metricli.data.disk import fsync
from metricli.runs.directory import RunDirectory

__all__ = ["go_back", "keep_step", "kept_steps", "run_of_step", "tidy"]

_STEP = re.compile(r"step-\d{8,}")
_HALF = (".last.ckpt.", ".best.ckpt.", ".step-", ".tmp")
"""How the names of what is being written begin; the last one is safetensors' own."""
_NO_LINKS = (errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def kept_steps(run: RunDirectory) -> list[Path]:
    """The step directories of a run, the newest first."""
    folder = run.best.parent
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found = [folder / name for name in names if _STEP.fullmatch(name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def run_of_step(folder: Path) -> RunDirectory | None:
    """The run that a step directory belongs to; None if it is no such directory."""
    is_step = _STEP.fullmatch(folder.name) is not None and folder.parent.name == "checkpoints"
    return RunDirectory(folder.parent.parent) if is_step else None


def keep_step(run: RunDirectory, step: int, count: int) -> None:
    """Keep last.ckpt and best.ckpt as they are as those of a step; of all such, the newest `count` stay.

    An older one goes only when the new one is on the disk.

    Raises:
        OSError: the disk is full, or another failure of it.
    """
    folder = run.best.parent / f"step-{step:08d}"
    if not folder.exists():
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for file in (run.last, run.best):
            if file.is_file():
                _second_name(file, part / file.name)
        fsync(part)
        part.rename(folder)
        fsync(folder.parent)
    for old in kept_steps(run)[count:]:
        _remove(old)


def go_back(run: RunDirectory, folder: Path) -> None:
    """Make the checkpoints of a step directory those of its run, and drop the steps kept after it.

    Raises:
        OSError: the disk is full, or another failure of it.
    """
    for file in (run.last, run.best):  # a kill between them leaves a best.ckpt that the run will make again
        kept = folder / file.name
        if (
            kept.is_file() and file.is_file() and kept.samefile(file)
        ):  # to rename one to the other does nothing
            continue
        if kept.is_file():
            part = file.with_name(f".{file.name}.part")
            part.unlink(missing_ok=True)
            _second_name(kept, part)
            part.replace(file)
        else:
            file.unlink(missing_ok=True)
    fsync(run.last.parent)
    steps = kept_steps(run)
    for newer in steps[: steps.index(folder)]:
        _remove(newer)


def tidy(run: RunDirectory) -> None:
    """Remove what a killed process has left half written; nobody else may be writing."""
    if not run.best.parent.is_dir():
        return
    for path in run.best.parent.iterdir():
        if path.name.startswith(_HALF):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    run.metrics.with_suffix(".part").unlink(missing_ok=True)


def _second_name(file: Path, name: Path) -> None:
    try:
        os.link(file, name)
    except OSError as error:  # a file system without hard links
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(file, name)
        fsync(name)


def _remove(folder: Path) -> None:
    """First out of sight, so that no half of it is ever seen."""
    gone = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone)
