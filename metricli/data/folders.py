"""The images below a folder, listed into one buffer of text."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pa_compute

from metricli.data.kind import named
from metricli.data.opening import IMAGE_SUFFIXES
from metricli.errors import DataError

_SUFFIXES = frozenset(suffix.encode() for suffix in IMAGE_SUFFIXES)
_PIECE = 1 << 18
"""Paths that are put in order at a time; as many of the longest that systems know stay below 2 GB."""


@dataclass(frozen=True)
class Listing:
    """The images below a folder."""

    paths: Any
    """A sorted column of relative paths with forward slashes."""
    others: dict[str, int]
    """How many files of each other suffix."""
    has_links: bool
    """Whether any of the images is a link."""


def list_images(root: Path) -> Listing:
    """Every image below a folder.

    Linked folders are not entered. While paths are sorted there are two copies of their text.

    Raises:
        DataError: a folder cannot be read, or a name is not UTF-8.
    """
    text, ends = bytearray(), array("q", [0])
    others: Counter[bytes] = Counter()
    has_links = False
    for path, is_link in _files(os.fsencode(root)):
        suffix = os.path.splitext(path)[1].lower()
        if suffix in _SUFFIXES:
            text += path
            ends.append(len(text))
            has_links = has_links or is_link
        else:
            others[suffix] += 1
    counts = {suffix.decode(errors="backslashreplace"): count for suffix, count in others.items()}
    return Listing(_sorted(root, text, ends), dict(sorted(counts.items())), has_links)


def _files(root: bytes) -> Iterator[tuple[bytes, bool]]:
    """Relative paths in no order, and whether they are links; entry by entry, so of a folder of any size."""
    waiting = [b""]
    while waiting:
        inside = waiting.pop()
        folder = os.path.join(root, inside)
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not entry.is_dir():
                        yield inside + entry.name, entry.is_symlink()
                    elif not entry.is_symlink():
                        waiting.append(inside + entry.name + b"/")
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise DataError(
                f"cannot read the folder {os.fsdecode(folder)!r}: {reason}", hint="check its rights"
            ) from None


def _sorted(root: Path, text: bytearray, ends: array[int]) -> Any:
    """The paths as a column; bytes of UTF-8 are in the order of its code points, as Python sorts text."""
    listed = pa.LargeStringArray.from_buffers(len(ends) - 1, pa.py_buffer(ends), pa.py_buffer(text))
    try:
        listed.validate(full=True)
    except pa.ArrowInvalid:
        paths = (bytes(text[start:end]) for start, end in pairwise(ends))
        odd = next(os.fsdecode(path) for path in paths if not _is_utf8(path))
        raise DataError(
            f"the name of {odd!r} in {named(root)} is not UTF-8", hint="rename the file"
        ) from None
    order = pa_compute.sort_indices(listed)
    pieces = (listed.take(order.slice(start, _PIECE)) for start in range(0, len(order), _PIECE))
    return pa.chunked_array([piece.cast(pa.string()) for piece in pieces], pa.string())


def _is_utf8(path: bytes) -> bool:
    try:
        path.decode()
    except UnicodeDecodeError:
        return False
    return True
