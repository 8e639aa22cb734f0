"""Some rows of a column of text, read off its Arrow buffer: no Python string until one is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_PIECE = 1 << 16
"""Rows that become Python strings at a time."""


class Texts(Sequence[str]):
    """The strings of a column at some of its rows; N strings.

    An integer gives a string; a slice, a mask or an array of places gives an object array, as does
    `np.asarray`. Ten million paths take their text and four bytes each.
    """

    def __init__(
        self, column: Any, rows: int, places: NDArray[np.int64] | None = None, *, repeated: bool = False
    ) -> None:
        """
        Args:
            column: chunked array of strings, or None for empty ones.
            rows: its length.
            places: (N,) the rows to take, or None for all.
            repeated: few different words, so that equal ones are to be one object.
        """
        self.column = column
        self.rows = rows
        self.places = places
        self.repeated = repeated

    def __len__(self) -> int:
        return self.rows if self.places is None else len(self.places)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, int | np.integer):
            return self._word(int(key))
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step == 1 and self.places is None:
                return self._run(start, max(start, stop))
            wanted = np.arange(start, stop, step)
        else:
            wanted = np.asarray(key)
            if wanted.dtype == bool:
                if len(wanted) != len(self):
                    raise IndexError(f"a mask of {len(wanted)} for {len(self)} strings")
                wanted = np.flatnonzero(wanted)
        return self._taken(self._rows(wanted.astype(np.int64, copy=False)))

    def _word(self, place: int) -> str:
        if not -len(self) <= place < len(self):
            raise IndexError(f"string {place} of {len(self)}")
        if self.column is None:
            return ""
        row = place % len(self) if self.places is None else int(self.places[place])
        word: str = self.column[row].as_py()
        return word

    def _rows(self, wanted: NDArray[np.int64]) -> NDArray[np.int64]:
        if self.places is not None:
            return self.places[wanted]
        if len(wanted) and not -self.rows <= int(wanted.min()) <= int(wanted.max()) < self.rows:
            raise IndexError(f"strings up to {int(wanted.max())} of {self.rows}")
        return np.where(wanted < 0, wanted + self.rows, wanted)

    def _run(self, start: int, stop: int) -> NDArray[Any]:
        if self.column is None:
            return np.full(stop - start, "", dtype=object)
        found: NDArray[Any] = np.empty(stop - start, dtype=object)
        at = 0
        for chunk in self.column.slice(start, stop - start).chunks:
            found[at : at + len(chunk)] = self._objects(chunk)
            at += len(chunk)
        return found

    def _taken(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        if self.column is None:
            return np.full(len(rows), "", dtype=object)
        return taken(self.column, rows, self._objects)

    def _objects(self, chunk: Any) -> NDArray[Any]:
        if not self.repeated:
            words: NDArray[Any] = chunk.to_numpy(zero_copy_only=False)
            return words
        coded = chunk.dictionary_encode()
        words = np.array(coded.dictionary.to_pylist(), dtype=object)[coded.indices.to_numpy()]
        return words

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _PIECE):
            yield from self[start : start + _PIECE]

    def tolist(self) -> list[str]:
        """All of them as a list, as an array has it."""
        every: list[str] = self[:].tolist()
        return every

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("strings become an array by a copy only")
        every: NDArray[Any] = self[:]
        return every if dtype is None else every.astype(dtype)


def taken(column: Any, rows: NDArray[np.int64], objects: Any = None) -> NDArray[Any]:
    """The strings (n,) of a chunked array at some rows, in their order, as an object array.

    Arrow's own `take` would first make one piece of the whole column, a copy that cannot be above 2 GB.
    """
    found: NDArray[Any] = np.empty(len(rows), dtype=object)
    ends = np.cumsum([len(chunk) for chunk in column.chunks])
    of_row = np.searchsorted(ends, rows, side="right")
    for number in np.unique(of_row).tolist():
        chunk = column.chunk(number)
        at = np.flatnonzero(of_row == number)
        piece = chunk.take(pa.array(rows[at] - (ends[number] - len(chunk))))
        found[at] = piece.to_numpy(zero_copy_only=False) if objects is None else objects(piece)
    return found
