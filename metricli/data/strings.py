"""Arithmetic on columns of text, a chunk at a time in cache, without a Python object for each row.

A million strings hashed here cost less than a tenth of a dictionary of them, which is what lets the
checks keep pace with the CSV parser. Equal strings have equal hashes; that two different ones among a
million share a hash has a chance of about 3e-8, so hashes only ever select rows or count them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pa_compute
from numpy.typing import NDArray

from metricli.data.texts import taken

EMPTY_HASH = np.uint64(0)
"""The hash of the empty string, and of no other in practice."""

_PIECE = 1 << 16
"""Rows at a time, so that their arrays stay near the core."""
_TAIL = 24
"""Bytes at the end of a path that nearly always tell it from all others."""
_LITTLE_WORD = np.dtype("<u8")
_MASKS = np.array([(1 << (8 * n)) - 1 for n in range(9)], dtype=np.uint64)
_FIRST = np.uint64(0x9E3779B97F4A7C15)
_SECOND = np.uint64(0xD6E8FEB86659FD93)
_SHIFT = np.uint64(32)
_WORD = np.uint64(64)
_SPACES = np.isin(np.arange(256), np.frombuffer(b" \t\n\v\f\r", np.uint8))
_T = TypeVar("_T")


class Chunk:
    """One arrow string array as numpy: `starts` and `lengths` (N,) int64, and its bytes."""

    def __init__(self, array: Any) -> None:
        _, offsets, data = array.buffers()
        offsets = np.frombuffer(offsets, dtype=np.int32)[array.offset : array.offset + len(array) + 1]
        bounds = offsets.astype(np.int64)
        low, high = int(bounds[0]), int(bounds[-1])
        bounds -= low
        self.starts: NDArray[np.int64] = bounds[:-1]
        self.lengths: NDArray[np.int64] = np.diff(bounds)
        self.data: NDArray[np.uint8] = np.frombuffer(b"" if data is None else data, np.uint8)[low:high]

    @cached_property
    def _words(self) -> NDArray[np.uint64]:
        words = np.zeros(len(self.data) // 8 + 3, dtype=_LITTLE_WORD)
        words.view(np.uint8)[: len(self.data)] = self.data
        return words

    def words(self, at: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The 8 bytes from each place `at`, which may run on into the next string, as little-endian words."""
        # Two aligned loads: numpy gathers from an unaligned view many times slower.
        place = at >> 3
        shift = ((at & 7) << 3).astype(np.uint64)
        low: NDArray[np.uint64] = self._words.take(place, mode="clip")
        low >>= shift
        place += 1
        high = self._words.take(place, mode="clip")
        high <<= _WORD - shift  # numpy shifts by 64 to 0
        low |= high
        return low

    def heads(self) -> NDArray[np.uint64]:
        """The first 8 bytes of each string, zeros after its end."""
        return self.words(self.starts) & _MASKS.take(self.lengths, mode="clip")


def pieces_of(column: Any) -> Iterator[tuple[int, Any]]:
    """A chunked array in pieces that follow on each other, each with its first row."""
    start = 0
    for chunk in column.chunks:
        for at in range(0, len(chunk), _PIECE):
            yield start + at, chunk.slice(at, _PIECE)
        start += len(chunk)


def on_chunks(work: Callable[[Chunk], _T], column: Any) -> list[_T]:
    """`work` on a chunked array of strings, piece by piece."""
    return [work(Chunk(piece)) for _, piece in pieces_of(column)]


def hash_text(column: Any) -> NDArray[np.uint64]:
    """A 64-bit hash (N,) of each string of a chunked array; the empty string has `EMPTY_HASH`."""
    parts = on_chunks(hash_chunk, column)
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)


def hash_tails(column: Any) -> NDArray[np.uint64]:
    """A hash (N,) of the end of each string, several times quicker than `hash_text`.

    It sees as many last bytes as the shortest string has, at most `_TAIL`, in whole words.
    """
    shortest = pa_compute.min(pa_compute.binary_length(column)).as_py() or 0
    width = min(_TAIL, shortest) // 8 * 8
    if width == 0:
        return hash_text(column)
    tails = pa_compute.binary_slice(column.cast(pa.binary()), -width)
    parts = []
    for chunk in tails.chunks:
        words = Chunk(chunk).data.view(_LITTLE_WORD).reshape(-1, width // 8)
        hashes = np.zeros(len(chunk), dtype=np.uint64)
        for i in range(width // 8):
            hashes = mix(hashes, words[:, i].copy())
        parts.append(hashes)
    return np.concatenate(parts)


def mix(hashes: NDArray[np.uint64], words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hashes (N,) that take in another word each; `words` are overwritten."""
    words ^= hashes
    words *= _FIRST
    words ^= words >> _SHIFT
    words *= _SECOND
    words ^= words >> _SHIFT
    return words


def hash_chunk(chunk: Chunk) -> NDArray[np.uint64]:
    """A hash (N,) of each string of a piece, as `hash_text` has it."""
    starts, lengths = chunk.starts, chunk.lengths
    longest, shortest = int(lengths.max()), int(lengths.min())
    hashes = mix(lengths.astype(np.uint64) + _FIRST, chunk.heads())  # not 0, which is the hash of ""
    # Further words; the last 8 bytes may overlap the word before, so that there is nothing to mask.
    for done in range(8, longest, 8):
        if done < shortest:
            hashes = mix(hashes, chunk.words(starts + np.minimum(done, lengths - 8)))
        else:
            rows = np.flatnonzero(lengths > done)
            at = starts[rows] + np.minimum(done, lengths[rows] - 8)
            hashes[rows] = mix(hashes[rows], chunk.words(at))
    hashes[lengths == 0] = EMPTY_HASH
    return hashes


def match_words(column: Any, words: Sequence[str]) -> NDArray[np.int8]:
    """For each string of a chunked array, its place in `words` (each at most 16 bytes), or -1."""
    wanted = [word.encode() for word in words]
    parts = on_chunks(lambda chunk: _match_chunk(chunk, wanted), column)
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int8)


def _match_chunk(chunk: Chunk, words: Sequence[bytes]) -> NDArray[np.int8]:
    lengths = chunk.lengths
    places = np.full(len(lengths), -1, dtype=np.int8)
    heads = chunk.heads()
    left = len(places)
    for place, word in enumerate(words):
        if not left:
            break
        same = heads == _as_word(word[:8])
        same &= lengths == len(word)
        if len(word) > 8 and same.any():
            same &= chunk.words(chunk.starts + (len(word) - 8)) == _as_word(word[-8:])
        places += same.view(np.int8) * np.int8(place + 1)
        left -= int(np.count_nonzero(same))
    return places


def _as_word(text: bytes) -> np.uint64:
    return np.uint64(int.from_bytes(text, "little"))


def empty_rows(column: Any) -> NDArray[np.int64]:
    """0-based rows whose string is empty."""
    return _rows_of(lambda chunk: chunk.lengths == 0, column)


def spaced_rows(column: Any) -> NDArray[np.int64]:
    """0-based rows whose string begins or ends with a space, a tab or a line break."""
    return _rows_of(_is_spaced, column)


def _rows_of(is_one: Callable[[Chunk], NDArray[np.bool_]], column: Any) -> NDArray[np.int64]:
    parts = [start + np.flatnonzero(is_one(Chunk(piece))) for start, piece in pieces_of(column)]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _is_spaced(chunk: Chunk) -> NDArray[np.bool_]:
    spaced = np.zeros(len(chunk.lengths), dtype=bool)
    filled = np.flatnonzero(chunk.lengths)
    first = chunk.starts[filled]
    last = first + chunk.lengths[filled] - 1
    spaced[filled] = _SPACES[chunk.data[first]] | _SPACES[chunk.data[last]]
    return spaced


def values_at(column: Any, rows: NDArray[Any] | Sequence[int]) -> list[str]:
    """The strings of a chunked array at these few 0-based rows."""
    found: list[str] = taken(column, np.asarray(rows, dtype=np.int64)).tolist()
    return found


def groups(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], int]:
    """A number for each hash (N,), equal exactly where hashes are equal, and a bound above all numbers.

    The numbers have gaps. This is a hash table of scatters: every hash writes itself to its bucket, the
    losers of a bucket go on to the next, smaller table. There are fewer buckets than rows, because the
    rows share hashes (several images a label), and what is done with the numbers is quicker for it.
    """
    numbers = np.empty(len(hashes), dtype=np.int64)
    rows: NDArray[Any] | slice = slice(None)
    left, base = hashes, 0
    while len(left):
        buckets, bits = _buckets(left, -1)
        table = np.empty(1 << bits, dtype=np.uint64)
        table[buckets] = left
        lost = np.flatnonzero(table[buckets] != left)
        buckets += base
        numbers[rows] = buckets
        rows = lost if isinstance(rows, slice) else rows[lost]
        left = _rehashed(left[lost])
        base += 1 << bits
    return numbers, base


def repeats(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The rows whose hash another row has too, ascending; quickest where there are none."""
    found = np.zeros(len(hashes), dtype=bool)
    rows, left = np.arange(len(hashes)), hashes
    while len(left):
        buckets, bits = _buckets(left, 1)
        places = np.arange(len(left), dtype=np.int32)
        table = np.empty(1 << bits, dtype=np.int32)
        table[buckets] = places
        winners = table[buckets]
        lost = np.flatnonzero(winners != places)
        winners = winners[lost]
        same = left[lost] == left[winners]
        found[rows[lost[same]]] = True
        found[rows[winners[same]]] = True
        lost = lost[~same]
        rows, left = rows[lost], _rehashed(left[lost])
    return np.flatnonzero(found)


def _buckets(hashes: NDArray[np.uint64], more: int) -> tuple[NDArray[np.int64], int]:
    """The upper bits of each hash, as many as it takes to number the hashes and `more`, and that many."""
    bits = max(8, len(hashes).bit_length() + more)
    return (hashes >> np.uint64(64 - bits)).astype(np.int64), bits


def _rehashed(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    hashes = hashes * _SECOND
    hashes ^= hashes >> _SHIFT
    return hashes
