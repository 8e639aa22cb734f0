"""Checks of paths and of the files behind them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pa_compute

from metricli.data.phrases import Rows0, counted, finding, say_values
from metricli.data.strings import Chunk, on_chunks
from metricli.data.subject import Subject
from metricli.reports import Finding

_LISTING_PAYS = 16
"""From this many images of one folder on, listing the folder is quicker than asking for each."""


def check_paths(subject: Subject) -> Iterator[Finding]:
    """`path-outside-root` as far as the words tell: absolute paths and `..` (no file is touched)."""
    column = subject.column("path")
    if not any(on_chunks(_has_suspects, column)):
        return
    suspects = pa_compute.or_(
        pa_compute.match_substring(column, ".."), pa_compute.starts_with(column, os.sep)
    )
    rows = np.flatnonzero(suspects.to_numpy())
    if len(rows):
        root = os.path.abspath(subject.table.root)
        paths = column.take(pa.array(rows)).to_pylist()
        outside = [not _is_inside(os.path.normpath(os.path.join(root, path)), root) for path in paths]
        yield from _outside(subject, rows[np.array(outside)], ("leaves", "leave"))


def _has_suspects(chunk: Chunk) -> bool:
    """Whether two dots or a leading slash occur at all; most tables have neither."""
    dots = chunk.data == ord(".")
    if (dots[:-1] & dots[1:]).any():
        return True
    firsts = chunk.data.take(chunk.starts, mode="clip") if len(chunk.data) else chunk.data
    return bool((firsts == ord(os.sep)).any())


def _outside(subject: Subject, rows: Rows0, leaves: tuple[str, str]) -> Iterator[Finding]:
    if len(rows):
        what = f"{counted(len(rows), 'path', leaves)} the root {str(subject.table.root)!r}"
        message = (
            f"{what}: {say_values(rows, subject.first('path', rows))}; name a root that holds all images"
        )
        yield finding("error", "path-outside-root", rows, message)


def check_files(subject: Subject, *, allow_outside_root: bool) -> Iterator[Finding]:
    """`missing-file`, and `path-outside-root` for links that lead out of the root."""
    codes, words = distinct_paths(subject)
    look = _Look(subject.table.root)
    states = look.at(words)
    missing = np.flatnonzero((states == _MISSING)[codes])
    if len(missing):
        what = f"{counted(len(missing), 'row', ('names', 'name'))} a file that does not exist"
        where = f"below {str(subject.table.root)!r}"
        named = say_values(missing, subject.first("path", missing))
        message = f"{what} {where}: {named}; check the paths and the root"
        yield finding("error", "missing-file", missing, message)
    if not allow_outside_root:
        linked = np.flatnonzero((states == _LINKED_OUT)[codes])
        yield from _outside(subject, linked, ("leads by a link out of", "lead by a link out of"))


def distinct_paths(subject: Subject) -> tuple[Any, list[str]]:
    """(N,) place of each row's path among the distinct ones, and those."""
    coded = subject.column("path").combine_chunks().dictionary_encode()
    coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
    return coded.indices.to_numpy(zero_copy_only=False), coded.dictionary.to_pylist()


_THERE, _MISSING, _LINKED_OUT, _ELSEWHERE = 0, 1, 2, 3


class _Look:
    """Looks for files below a root, a folder at a time."""

    def __init__(self, root: Path) -> None:
        self.root = os.path.abspath(root)
        self.real_root = os.path.realpath(root)

    def at(self, paths: list[str]) -> Any:
        """(P,) `_THERE`, `_MISSING`, `_LINKED_OUT`, or `_ELSEWHERE`: there, but outside by its words."""
        states = np.zeros(len(paths), dtype=np.int8)
        of_folder: dict[str, list[int]] = {}
        for i, path in enumerate(paths):
            of_folder.setdefault(os.path.dirname(path), []).append(i)
        for folder, places in of_folder.items():
            look = self._folder(os.path.join(self.root, folder), len(places))
            for i in places:
                states[i] = look(os.path.basename(paths[i]))
        return states

    def _folder(self, folder: str, count: int) -> Callable[[str], int]:
        outside_by_words = not _is_inside(os.path.normpath(folder), self.root)
        real = os.path.realpath(folder)
        there = (
            _ELSEWHERE if outside_by_words else _THERE if _is_inside(real, self.real_root) else _LINKED_OUT
        )
        plain: frozenset[str] = frozenset()
        if count >= _LISTING_PAYS:
            plain = _plain_files(real)

        def look(name: str) -> int:
            if name in plain:
                return there
            file = os.path.join(real, name)
            if not os.path.isfile(file):
                return _MISSING
            if there == _THERE and not _is_inside(os.path.realpath(file), self.real_root):
                return _LINKED_OUT
            return there

        return look


def _plain_files(folder: str) -> frozenset[str]:
    """Names in a folder that are files themselves, not links to one."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
    except OSError:
        return frozenset()


def _is_inside(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)
