"""Rows that repeat an earlier one, found without an array over all rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metricli.data.strings import Chunk, pieces_of

_KNOWN = 1 << 21
"""Different hashes that are kept at a time; more rows are gone over more than once."""
_COMPARED = 1 << 18
"""Hashes that are compared with them at a time."""

HashPiece = Callable[[int, Chunk], NDArray[np.uint64]]


def later_rows(column: Any, hash_piece: HashPiece) -> Iterator[NDArray[np.int64]]:
    """The rows whose hash an earlier row has too, in runs of ascending rows.

    Each turn over the column compares the hashes of another residue class, so that memory holds `_KNOWN` of
    them whatever the number of rows.

    Args:
        column: chunked array of strings.
        hash_piece: the hashes of some rows, from the number of the first and their strings.
    """
    turns = -(-len(column) // _KNOWN)
    for turn in range(turns):
        known: NDArray[np.uint64] = np.empty(0, dtype=np.uint64)
        for rows, hashes in _runs(column, hash_piece, turn, turns):
            fresh, first = np.unique(hashes, return_index=True)
            place = np.searchsorted(known, fresh)
            is_new = np.ones(len(fresh), dtype=bool)
            if len(known):
                is_new = known.take(place, mode="clip") != fresh
            later = np.ones(len(rows), dtype=bool)
            later[first[is_new]] = False
            yield rows[later]
            known = np.insert(known, place[is_new], fresh[is_new])


def _runs(
    column: Any, hash_piece: HashPiece, turn: int, turns: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint64]]]:
    """The rows of a turn and their hashes, some `_COMPARED` at a time."""
    found: list[tuple[NDArray[np.int64], NDArray[np.uint64]]] = []
    count = 0
    for start, piece in pieces_of(column):
        hashes = hash_piece(start, Chunk(piece))
        inside = np.flatnonzero(hashes % np.uint64(turns) == np.uint64(turn))
        found.append((start + inside, hashes[inside]))
        count += len(inside)
        if count >= _COMPARED:
            yield _joined(found)
            found, count = [], 0
    if found:
        yield _joined(found)


def _joined(
    found: list[tuple[NDArray[np.int64], NDArray[np.uint64]]],
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    rows, hashes = zip(*found, strict=True)
    return np.concatenate(rows), np.concatenate(hashes)
