"""Box columns as integers, and which rows have them wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

_LARGEST = 2**31 - 1
_PIECE = 1 << 18
"""Rows that are parsed at a time."""


@dataclass(frozen=True, eq=False)
class Boxes:
    """The boxes of all rows, as left, top, right, bottom."""

    values: NDArray[np.int32] | None
    """(N, 4), -1 where a row has no box or a wrong one; None if no row has any box value."""
    partial: NDArray[np.int64]
    """Rows with some of the four, not all."""
    wrong: NDArray[np.int64]
    """Rows with four values that are no box: not whole, negative, or without area."""

    @classmethod
    def parse(cls, columns: Sequence[Any], rows: int) -> Boxes:
        """From four columns of text (None: the file lacks it); `10.0` is the whole number 10."""
        none: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        if all(column is None for column in columns):
            return cls(None, none, none)
        values, partial, wrong = None, [none], [none]
        for start in range(0, rows, _PIECE):
            found = _parse([None if column is None else column.slice(start, _PIECE) for column in columns])
            if found is None:
                continue
            if values is None:
                values = np.full((rows, 4), -1, dtype=np.int32)
            values[start : start + _PIECE] = found[0]
            partial.append(start + found[1])
            wrong.append(start + found[2])
        return cls(values, np.concatenate(partial), np.concatenate(wrong))


def _parse(
    columns: Sequence[Any],
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]] | None:
    """The boxes of a piece, and its partial and wrong rows; None if it has no box value."""
    rows = max(len(column) for column in columns if column is not None)
    numbers = np.full((rows, 4), -1.0)
    given = np.zeros((rows, 4), dtype=bool)
    for i, column in enumerate(columns):
        if column is not None:
            numbers[:, i], given[:, i] = _numbers(column)
    if not given.any():
        return None
    whole = given.all(axis=1)
    partial = np.flatnonzero(given.any(axis=1) & ~whole)
    left, top, right, bottom = numbers.T
    sound = (numbers >= 0).all(axis=1) & (left < right) & (top < bottom) & (numbers <= _LARGEST).all(axis=1)
    sound &= (numbers == np.floor(numbers)).all(axis=1)
    values = np.where((whole & sound)[:, None], numbers, -1).astype(np.int32)
    return values, partial, np.flatnonzero(whole & ~sound)


def _numbers(column: Any) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Values (NaN for what is no number) and whether each cell holds anything."""
    text = pa.compute.utf8_trim_whitespace(column)
    given = pa.compute.not_equal(text, "").to_numpy()
    plain = pa.compute.match_substring_regex(text, r"^[+-]?[0-9]{1,15}([.][0-9]*)?$")
    parsed = pa.compute.if_else(plain, text, None).cast(pa.float64())
    numbers: NDArray[np.float64] = parsed.to_numpy()
    return numbers, given
