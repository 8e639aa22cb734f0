"""A parquet file as columns of text, in memory that its size bounds.

A few bytes can stand for billions of rows, or for a long text in each of them: text is read as a dictionary
and only then written out, if there is room for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pa_compute
import pyarrow.parquet as pa_parquet

from metricli.data.kind import named
from metricli.errors import DataError
from metricli.tables import printable, shortened

__all__ = ["parquet_columns", "parquet_header"]

_ROWS, _ROWS_A_BYTE = 1_000_000, 50
"""A file may have this many rows whatever its size, and more as its size grows: paths take room."""
_TEXT, _TEXT_A_BYTE = 1 << 28, 100
"""The same of the bytes of a column of text."""
_BLOCK = 1 << 16
_READ_ERRORS = (pa.ArrowException, OSError, ValueError, KeyError)


def parquet_header(path: Path) -> list[str]:
    """The names of the columns.

    Raises:
        DataError: it is no parquet file.
    """
    try:
        with pa_parquet.ParquetFile(path) as file:
            return list(file.schema_arrow.names)
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error


def parquet_columns(path: Path, names: Sequence[str]) -> dict[str, Any]:
    """Some columns as chunked arrays of strings.

    Raises:
        DataError: it is damaged, larger than its bytes allow, or a column is no text and no number.
    """
    try:
        with pa_parquet.ParquetFile(path) as file:
            _refuse_many(path, file.metadata.num_rows)
            for name in names:
                _refuse_nested(path, name, file.schema_arrow.field(name).type)
        with pa_parquet.ParquetFile(path, read_dictionary=list(names)) as file:
            table = file.read(columns=list(names))
        return {name: _as_text(path, name, table.column(name)) for name in names}
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = shortened(printable((str(error).splitlines() or [type(error).__name__])[0]), 120)
    return DataError(f"{named(path)} cannot be read as parquet: {reason}", hint="write it again, or use CSV")


def _refuse_many(path: Path, rows: int) -> None:
    size = path.stat().st_size
    if not 0 <= rows <= max(_ROWS, _ROWS_A_BYTE * size):
        what = f"{named(path)} claims {rows:,} rows in {size:,} bytes, more than there is room for"
        raise DataError(what, hint="write it again, or use CSV")


def _refuse_nested(path: Path, name: str, kind: Any) -> None:
    if pa.types.is_nested(kind):
        raise _not_text(path, name, kind)


def _not_text(path: Path, name: str, kind: Any) -> DataError:
    what = f"{named(path)}: column {name!r} is of type {shortened(printable(str(kind)), 120)}, expected text"
    return DataError(what, hint="store it as text or as a number")


def _as_text(path: Path, name: str, column: Any) -> Any:
    """A column as text: null is empty, a whole float loses its '.0' (pandas' integers with gaps)."""
    column.validate(full=True)
    kind = column.type
    if pa.types.is_dictionary(kind):
        _refuse_nested(path, name, kind.value_type)
        _refuse_long(path, name, column)
        column = column.cast(kind.value_type)
    try:
        if pa.types.is_floating(column.type):
            with contextlib.suppress(pa.ArrowInvalid):
                column = column.cast(pa.int64())
        text = column.cast(pa.string()).fill_null("")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise _not_text(path, name, column.type) from error
    text.validate(full=True)
    return text


def _refuse_long(path: Path, name: str, column: Any) -> None:
    """Refuse a column whose words, written out for each row, take more than the file can have meant."""
    limit = max(_TEXT, _TEXT_A_BYTE * path.stat().st_size)
    total = 0
    for chunk in column.chunks:
        words = chunk.dictionary
        if not (pa.types.is_string(words.type) or pa.types.is_binary(words.type)):
            continue
        lengths = pa_compute.binary_length(words)
        for start in range(0, len(chunk), _BLOCK):
            indices = chunk.indices.slice(start, _BLOCK)
            total += pa_compute.sum(lengths.take(indices).cast(pa.int64())).as_py() or 0
        if total > limit:
            what = f"{named(path)}: column {name!r} has more than {limit:,} bytes of text"
            raise DataError(f"{what}, from a file of {path.stat().st_size:,}", hint="shorten its values")
