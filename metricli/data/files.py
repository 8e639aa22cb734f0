"""Checks of paths and of the files behind them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pa_compute

from metricli.data.phrases import Said, Tally, counted, finding, say_values
from metricli.data.strings import Chunk, pieces_of
from metricli.data.subject import Subject
from metricli.reports import Finding

_LISTING_PAYS = 16
"""From this many images of one folder on, listing the folder is quicker than asking for each."""
_KEPT = 1 << 18
"""Names of listed files that are kept, some 30 MB; beyond them files are asked for one by one."""
_FOLDERS = 1 << 17
"""Folders that are remembered."""


def check_paths(subject: Subject) -> Iterator[Finding]:
    """`path-outside-root` as far as the words tell: absolute paths and `..` (no file is touched)."""
    root = os.path.abspath(subject.table.root)
    outside = Tally()
    for start, piece in pieces_of(subject.column("path")):
        if not _has_suspects(Chunk(piece)):
            continue
        suspects = pa_compute.or_(
            pa_compute.match_substring(piece, ".."), pa_compute.starts_with(piece, os.sep)
        )
        rows = np.flatnonzero(suspects.to_numpy(zero_copy_only=False))
        paths = piece.take(pa.array(rows)).to_pylist()
        leaves = [not _is_inside(os.path.normpath(os.path.join(root, path)), root) for path in paths]
        outside.add(start + rows[np.array(leaves, dtype=bool)])
    yield from _outside(subject, outside, ("leaves", "leave"))


def _has_suspects(chunk: Chunk) -> bool:
    """Whether two dots or a leading slash occur at all; most tables have neither."""
    dots = chunk.data == ord(".")
    if (dots[:-1] & dots[1:]).any():
        return True
    firsts = chunk.data.take(chunk.starts, mode="clip") if len(chunk.data) else chunk.data
    return bool((firsts == ord(os.sep)).any())


def _outside(subject: Subject, rows: Said, leaves: tuple[str, str]) -> Iterator[Finding]:
    if len(rows):
        what = f"{counted(len(rows), 'path', leaves)} the root {str(subject.table.root)!r}"
        message = (
            f"{what}: {say_values(rows, subject.first('path', rows))}; name a root that holds all images"
        )
        yield finding("error", "path-outside-root", rows, message)


def check_files(
    subject: Subject, *, allow_outside_root: bool, on_progress: Callable[[int], None] | None = None
) -> Iterator[Finding]:
    """`missing-file`, and `path-outside-root` for links that lead out of the root.

    A piece of the table at a time; `on_progress` is called with the rows of each.
    """
    look = _Look(subject.table.root)
    missing, linked = Tally(), Tally()
    for start, piece in pieces_of(subject.column("path")):
        coded = piece.dictionary_encode()
        states = look.at(coded.dictionary.to_pylist())[coded.indices.to_numpy()]
        missing.add(start + np.flatnonzero(states == _MISSING))
        linked.add(start + np.flatnonzero(states == _LINKED_OUT))
        if on_progress is not None:
            on_progress(len(piece))
    if len(missing):
        what = f"{counted(len(missing), 'row', ('names', 'name'))} a file that does not exist"
        where = f"below {str(subject.table.root)!r}"
        named = say_values(missing, subject.first("path", missing))
        message = f"{what} {where}: {named}; check the paths and the root"
        yield finding("error", "missing-file", missing, message)
    if not allow_outside_root:
        yield from _outside(subject, linked, ("leads by a link out of", "lead by a link out of"))


def distinct_paths(subject: Subject) -> tuple[Any, list[str]]:
    """(N,) place of each row's path among the distinct ones, and those."""
    coded = subject.column("path").combine_chunks().dictionary_encode()
    coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
    return coded.indices.to_numpy(zero_copy_only=False), coded.dictionary.to_pylist()


_THERE, _MISSING, _LINKED_OUT, _ELSEWHERE = 0, 1, 2, 3


@dataclass
class _Folder:
    """A folder where files are looked for."""

    real: str
    there: int
    """The state of a plain file in it."""
    asked: int = 0
    plain: frozenset[str] | None = None
    is_large: bool = False


class _Look:
    """Looks for files below a root, some paths at a time; what it keeps of folders is bounded."""

    def __init__(self, root: Path) -> None:
        self.root = os.path.abspath(root)
        self.real_root = os.path.realpath(root)
        self._folders: dict[str, _Folder] = {}
        self._kept = 0

    def at(self, paths: list[str]) -> Any:
        """(P,) `_THERE`, `_MISSING`, `_LINKED_OUT`, or `_ELSEWHERE`: there, but outside by its words."""
        states = np.zeros(len(paths), dtype=np.int8)
        of_folder: dict[str, list[int]] = {}
        for i, path in enumerate(paths):
            of_folder.setdefault(os.path.dirname(path), []).append(i)
        for name, places in of_folder.items():
            folder = self._folder(name)
            plain = self._plain(folder, len(places))
            for i in places:
                file = os.path.basename(paths[i])
                states[i] = folder.there if file in plain else self._file(folder, file)
        return states

    def _folder(self, name: str) -> _Folder:
        if name not in self._folders:
            if len(self._folders) == _FOLDERS:
                self._folders, self._kept = {}, 0
            path = os.path.join(self.root, name)
            outside_by_words = not _is_inside(os.path.normpath(path), self.root)
            try:
                real = os.path.realpath(path)
            except ValueError:  # a NUL in it: no file can be there
                real = path
            inside = _THERE if _is_inside(real, self.real_root) else _LINKED_OUT
            self._folders[name] = _Folder(real, _ELSEWHERE if outside_by_words else inside)
        return self._folders[name]

    def _plain(self, folder: _Folder, count: int) -> frozenset[str]:
        """Names of plain files in a folder that is worth listing; no other is sure to be missing."""
        folder.asked += count
        has_room = self._kept < _KEPT
        pays = (folder.asked if has_room else count) >= _LISTING_PAYS
        if folder.plain is not None or not pays or folder.is_large:
            return folder.plain or frozenset()
        names = _plain_files(folder.real)
        folder.is_large = len(names) == _KEPT
        if has_room:
            folder.plain = names
            self._kept += len(names)
        return names

    def _file(self, folder: _Folder, name: str) -> int:
        file = os.path.join(folder.real, name)
        try:
            mode = os.lstat(file).st_mode
        except (OSError, ValueError):
            return _MISSING
        if stat.S_ISREG(mode):
            return folder.there
        if not os.path.isfile(file):
            return _MISSING
        if folder.there == _THERE and not _is_inside(os.path.realpath(file), self.real_root):
            return _LINKED_OUT
        return folder.there


def _plain_files(folder: str) -> frozenset[str]:
    """Names in a folder that are files themselves, not links to one; `_KEPT` of a larger folder."""
    try:
        with os.scandir(folder) as entries:
            plain = (entry.name for entry in entries if entry.is_file(follow_symlinks=False))
            return frozenset(islice(plain, _KEPT))
    except (OSError, ValueError):
        return frozenset()


def _is_inside(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)
