"""A process's rows written into the data file of `OUT.part`, and the blocks that are done noted."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from metricli.errors import NonFiniteError, UsageError
from metricli.runs.unfinished import Unfinished, journal_line


class BlockWriter:
    """Takes features of rows that come in the order of this process's blocks, each written where it belongs.

    Rows passed over are NaN, and stand in the journal as skipped. Several processes may write one file: each
    has its own blocks, and a journal of its own.
    """

    def __init__(
        self, work: Unfinished, journal: Path, numbers: NDArray[np.int64], paths: Sequence[str]
    ) -> None:
        self.layout, self.blocks = work.layout, work.blocks
        self.pending = iter(numbers.tolist())
        self.paths = paths
        self.done: list[int] = []
        self.skipped: list[int] = []
        """Rows of all blocks."""
        self._head = len(self.layout.head)
        self._data = os.open(work.data, os.O_WRONLY)
        self._journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._next_block()

    def _next_block(self) -> None:
        self.block: int | None = next(self.pending, None)
        span = range(0) if self.block is None else self.blocks.span(self.block)
        self._row, self._stop = span.start, span.stop
        self._digest = hashlib.sha256()
        self._skipped: list[int] = []

    def write(self, at: NDArray[np.int64], features: np.ndarray) -> None:
        """Take features (B, D) of the rows `at` (B,), which follow those before.

        Raises:
            NonFiniteError: a value is too large for the type of the file.
            UsageError: the extractor gives another number of dimensions than it says.
        """
        if features.shape[1] != self.layout.dim:
            what = f"the extractor gives {features.shape[1]} dimensions, and its 'dim' is {self.layout.dim}"
            raise UsageError(what, hint="tell the plugin's author")
        with np.errstate(over="ignore"):  # said below, with the path
            features = np.ascontiguousarray(features.astype(self.layout.dtype, copy=False))
        wrong = np.flatnonzero(~np.isfinite(features).all(1))
        if len(wrong):
            what = f"the embedding of {str(self.paths[int(at[wrong[0]])])!r} does not fit {self.layout.dtype}"
            hint = "use --dtype float32" if self.layout.dtype == "float16" else ""
            raise NonFiniteError(what, hint=hint)
        while len(at):
            while self.blocks.number(int(at[0])) != self.block:
                self._end_block()
            inside = int(np.searchsorted(at, self._stop))
            self._write_rows(at[:inside], features[:inside])
            at, features = at[inside:], features[inside:]

    def _write_rows(self, at: NDArray[np.int64], features: np.ndarray) -> None:
        """Rows of the present block, with NaN in those passed over."""
        stop = int(at[-1]) + 1
        if stop - self._row == len(at):
            self._put(features)
        else:
            filled = np.full((stop - self._row, self.layout.dim), np.nan, self.layout.dtype)
            filled[at - self._row] = features
            self._skipped += sorted(set(range(self._row, stop)) - set(at.tolist()))
            self._put(filled)
        if self._row == self._stop:
            self._end_block()

    def _put(self, rows: np.ndarray) -> None:
        view = memoryview(rows.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        self._digest.update(view)
        place = self._head + (self._row - self.blocks.start) * self.layout.row_bytes
        while view:
            written = os.pwrite(self._data, view, place)
            view, place = view[written:], place + written
        self._row += len(rows)

    def _end_block(self) -> None:
        """Note the present block as done, its last rows skipped if they were not written; go to the next."""
        assert self.block is not None, "rows that this process was not given"
        if missing := self._stop - self._row:
            self._skipped += range(self._row, self._stop)
            self._put(np.full((missing, self.layout.dim), np.nan, self.layout.dtype))
        line = journal_line(self.block, self._digest.hexdigest(), self._skipped)
        os.write(self._journal, line.encode())
        self.done.append(self.block)
        self.skipped += self._skipped
        self._next_block()

    def finish(self) -> None:
        """No more rows: those still missing were skipped. The data is on the disk then."""
        while self.block is not None:
            self._end_block()
        os.fsync(self._data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._data)
        os.close(self._journal)
