"""A CSV or parquet file as columns of text, or one sentence about why it is neither.

Reading is pyarrow's; the questions about a file that failed (which line, which byte) are asked slowly,
and only then.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from metricli.errors import DataError

COLUMNS = (
    "label",
    "path",
    "split",
    "is_query",
    "is_gallery",
    "category",
    "sequence",
    "ignore",
    "x_1",
    "x_2",
    "y_1",
    "y_2",
)
BOX_COLUMNS = ("x_1", "y_1", "x_2", "y_2")
"""Left, top, right, bottom: the order of `Rows.boxes` and of Pillow."""

_SEPARATORS = {";": "';'", "\t": "a tab", "|": "'|'"}
_BLOCK = 1 << 22
_PIECE = 1 << 18
_UNPACK = "unpack it and give the file inside"
_FOREIGN = {
    b"\x1f\x8b": ("compressed with gzip", _UNPACK),
    b"PK\x03\x04": ("a zip archive or a spreadsheet", "save the sheet as CSV (UTF-8)"),
    b"\xff\xfe": ("UTF-16 text", "save it as UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "save it as UTF-8"),
}


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `word` most likely meant, or None; case and outer spaces do not count."""
    by_lower = {name.strip().lower(): name for name in known}
    match = difflib.get_close_matches(word.strip().lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[match[0]] if match else None


def read_columns(path: Path, wanted: Sequence[str] = COLUMNS) -> tuple[list[str], dict[str, Any]]:
    """The header of a table and those of its columns that are wanted, as chunked arrays of strings.

    The file is read piece by piece, so memory holds the columns and little else.

    Raises:
        DataError: no such file, not UTF-8, not a table, ragged, a repeated column, or no rows.
    """
    try:
        with pa.OSFile(str(path)) as file:
            head = file.read(8)
    except (OSError, ValueError) as error:
        raise _cannot_open(path, error) from error
    for magic, (what, hint) in _FOREIGN.items():
        if head.startswith(magic):
            raise DataError(f"{path} is {what}, not a CSV or parquet table", hint=hint)
    is_parquet = head.startswith(b"PAR1") or path.suffix.lower() == ".parquet"
    header, columns = (_read_parquet if is_parquet else _read_csv)(path, wanted)
    if not len(next(iter(columns.values()), ())) and any(name in COLUMNS for name in header):
        raise DataError(f"{path}: the table has no rows", hint="below the header, one line for each image")
    return header, columns


def _cannot_open(path: Path, error: Exception) -> DataError:
    if path.is_dir():
        return DataError(f"{path} is a folder, expected a CSV or parquet table", hint="name the file in it")
    if path.exists() or not path.parent.is_dir():
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else str(error)
        return DataError(
            f"cannot read the table {path}: {reason.lower()}", hint="check the path and its rights"
        )
    names = sorted(item.name for item in path.parent.iterdir() if item.is_file())
    close = nearest(path.name, names)
    tables = [name for name in names if name.lower().endswith((".csv", ".parquet"))][:5]
    hint = "check the path"
    if close:
        hint = f"did you mean {close!r}?"
    elif tables:
        hint = f"tables in that folder: {', '.join(map(repr, tables))}"
    return DataError(f"no such table: {path}", hint=hint)


def _read_csv(path: Path, wanted: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    lowest, quoted = _scan(path)
    header = _csv_header(path)
    convert = pa_csv.ConvertOptions(
        column_types=dict.fromkeys(COLUMNS, pa.string()),
        include_columns=[name for name in header if name in wanted],
        strings_can_be_null=False,
        check_utf8=lowest < 0,
    )
    parse = pa_csv.ParseOptions(quote_char='"' if quoted else False, newlines_in_values=quoted)
    try:
        with pa.OSFile(str(path)) as file:  # a name would have its suffix taken for a compression
            read = pa_csv.ReadOptions(block_size=_BLOCK)
            table = pa_csv.read_csv(file, read_options=read, parse_options=parse, convert_options=convert)
    except pa.ArrowInvalid as error:
        raise _csv_problem(path, path.read_bytes(), header, error) from error
    return header, {name: table.column(name) for name in table.column_names if name in COLUMNS}


def _scan(path: Path) -> tuple[int, bool]:
    """The lowest byte, negative beyond ASCII, and whether there is a quote; a piece at a time in cache.

    Raises:
        DataError: there is nothing in the file, or a NUL byte.
    """
    lowest, quoted, size = 127, False, 0
    buffer = np.empty(_PIECE, dtype=np.int8)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer.data):
            piece = buffer[:count]
            lowest = min(lowest, int(piece.min()))
            quoted = quoted or bool((piece == ord('"')).any())
            if lowest <= 0 and not piece.all():
                at = size + int(np.flatnonzero(piece == 0)[0])
                line = _line_of(path.read_bytes(), at)
                message = f"{path} has a NUL byte at byte {at}, {line}: it is not a text file"
                raise DataError(message, hint="save the table as CSV (UTF-8) or parquet")
            size += count
    if size == 0 or (size < 4096 and not path.read_bytes().removeprefix(b"\xef\xbb\xbf").strip()):
        raise DataError(
            f"{path} is empty", hint="expected a header such as label,path,split and a line for each image"
        )
    return lowest, quoted


def _csv_header(path: Path) -> list[str]:
    with path.open("rb") as file:
        first = file.read(1 << 20)
        is_all = not file.read(1)
    try:
        lines = first.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="strict" if is_all else "ignore")
    except UnicodeDecodeError:
        raise _not_utf8(path, first) from None
    header = next((row for row in csv.reader(io.StringIO(lines, newline="")) if row), [])
    if len(header) == 1:
        for separator, name in _SEPARATORS.items():
            parts = [part.strip().strip('"') for part in header[0].split(separator)]
            if len(parts) > 1 and any(part in COLUMNS for part in parts):
                raise DataError(
                    f"{path} is separated by {name}, expected commas", hint="save it as comma-separated CSV"
                )
    _refuse_repeated(path, header)
    return header


def _refuse_repeated(path: Path, header: Sequence[str]) -> None:
    repeated = [name for name in dict.fromkeys(header) if name in COLUMNS and list(header).count(name) > 1]
    if repeated:
        names = ", ".join(map(repr, repeated))
        raise DataError(f"{path} has more than one column {names}", hint="keep one of them")


def _line_of(data: Any, at: int) -> str:
    return f"line {int(np.count_nonzero(np.frombuffer(data, dtype=np.uint8)[:at] == 10)) + 1}"


def _not_utf8(path: Path, data: bytes) -> DataError:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        at, line = error.start, _line_of(data, error.start)
        message = f"{path} is not UTF-8: byte {at} ({line}) is {data[at : at + 1]!r}"
        return DataError(message, hint="save the table as UTF-8")
    return DataError(f"{path} is not UTF-8", hint="save the table as UTF-8")


def _csv_problem(path: Path, data: bytes, header: list[str], error: Exception) -> DataError:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return _not_utf8(path, data)
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            if row and len(row) != len(header):
                there = f"{path} line {reader.line_num} has {len(row)} field{'s' if len(row) != 1 else ''}"
                expected = f"expected {len(header)} ({_short(','.join(header))})"
                return DataError(f"{there}, {expected}", hint="quote a value that has a comma in it")
    except csv.Error as csv_error:
        return DataError(
            f"{path} line {reader.line_num} cannot be read: {csv_error}", hint="check its quotes"
        )
    reason = str(error).splitlines()[0]
    return DataError(f"{path} cannot be read as CSV: {_short(reason)}", hint="check its quotes and commas")


def _short(text: str, length: int = 120) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _read_parquet(path: Path, wanted: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    try:
        with pa_parquet.ParquetFile(path) as file:
            header = list(file.schema_arrow.names)
            _refuse_repeated(path, header)
            table = file.read(columns=[name for name in header if name in wanted])
    except (pa.ArrowException, OSError) as error:
        reason = _short(str(error).splitlines()[0])
        raise DataError(
            f"{path} cannot be read as parquet: {reason}", hint="write it again, or use CSV"
        ) from error
    known = [name for name in table.column_names if name in COLUMNS]
    return header, {name: _as_text(path, name, table.column(name)) for name in known}


def _as_text(path: Path, name: str, column: Any) -> Any:
    """A parquet column as text: null is empty, a whole float loses its '.0' (pandas' integers with gaps)."""
    try:
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_floating(column.type):
            with contextlib.suppress(pa.ArrowInvalid):
                column = column.cast(pa.int64())
        return column.cast(pa.string()).fill_null("")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        hint = "store it as text or as a number"
        raise DataError(
            f"{path}: column {name!r} is of type {column.type}, expected text", hint=hint
        ) from error
