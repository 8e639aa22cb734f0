"""What has to reach the disk, what to do where it cannot, and where a run keeps its checkpoints."""

from __future__ import annotations

import errno
import os
from pathlib import Path

__all__ = ["checkpoint_in", "fsync", "remedy"]


def fsync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remedy(number: int | None) -> str:
    """What to do where a write has failed with this errno."""
    if number == errno.EFBIG:
        return "raise the limit on the size of a file (ulimit -f)"
    is_full = number in (errno.ENOSPC, errno.EDQUOT)
    return "free some space" if is_full else "check the folder and its permissions"


def checkpoint_in(folder: Path) -> Path | None:
    """The checkpoint that a run directory (its best), or one of its steps, offers for inference."""
    run, step = folder / "checkpoints" / "best.ckpt", folder / "last.ckpt"
    if folder.name == run.parent.name:  # that of a run, meant as the run
        run = folder / run.name
    return next((file for file in (run, step) if file.is_file()), None)
