"""What stands at a path where a file is expected, and how a path is written in a message."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from metricli.tables import printable

__all__ = ["named", "not_a_file"]

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def not_a_file(path: str | Path) -> str | None:
    """`a folder`, `a named pipe`, `a socket` or `a device`; None for a file, and for nothing at all.

    It is asked before a file is opened: a pipe that nobody writes to would be waited for, and a device read
    without end.
    """
    try:
        return _KINDS.get(stat.S_IFMT(os.stat(path).st_mode))
    except (OSError, ValueError):
        return None


def named(path: str | Path) -> str:
    """A path in a message, with its control characters made visible."""
    return printable(str(path))
