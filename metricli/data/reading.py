"""A CSV or parquet file as columns of text, or one sentence about why it is neither.

Reading is pyarrow's; the questions about a file that failed (which line, which byte) are asked slowly,
and only then.
"""

from __future__ import annotations

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

from metricli.data.kind import named, not_a_file
from metricli.data.parquet import parquet_columns, parquet_header
from metricli.errors import DataError
from metricli.tables import printable, shortened

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
_HEADER = 1 << 20
"""Bytes in which the header must end."""
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
    what = not_a_file(path)
    if what is not None:
        hint = "name the file in it" if what == "a folder" else "write the table into a file"
        raise DataError(f"{named(path)} is {what}, expected a CSV or parquet table", hint=hint)
    try:
        with pa.OSFile(str(path)) as file:
            head = file.read(8)
    except (OSError, ValueError) as error:
        raise _cannot_open(path, error) from error
    for magic, (what, hint) in _FOREIGN.items():
        if head.startswith(magic):
            raise DataError(f"{named(path)} is {what}, not a CSV or parquet table", hint=hint)
    if path.suffix.lower() in (".yaml", ".yml"):
        raise DataError(f"{named(path)} is a spec, not a table", hint="give the table of its data block")
    is_parquet = head.startswith(b"PAR1") or path.suffix.lower() == ".parquet"
    header, columns = (_read_parquet if is_parquet else _read_csv)(path, wanted)
    if not len(next(iter(columns.values()), ())) and any(name in COLUMNS for name in header):
        raise DataError(
            f"{named(path)}: the table has no rows", hint="below the header, one line for each image"
        )
    return header, columns


def _cannot_open(path: Path, error: Exception) -> DataError:
    try:
        lost = not path.exists() and path.parent.is_dir()
        names = sorted(item.name for item in path.parent.iterdir() if item.is_file()) if lost else []
    except OSError:  # a name that is too long to ask for, or a folder that may not be listed
        lost = False
    if not lost:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else printable(str(error))
        return DataError(
            f"cannot read the table {named(path)}: {reason.lower()}", hint="check the path and its rights"
        )
    close = nearest(path.name, names)
    tables = [name for name in names if name.lower().endswith((".csv", ".parquet"))][:5]
    hint = "check the path"
    if close:
        hint = f"did you mean {close!r}?"
    elif tables:
        hint = f"tables in that folder: {', '.join(map(repr, tables))}"
    return DataError(f"no such table: {named(path)}", hint=hint)


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
    except pa.ArrowException as error:
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
                message = f"{named(path)} has a NUL byte at byte {at}, {line}: it is not a text file"
                raise DataError(message, hint="save the table as CSV (UTF-8) or parquet")
            size += count
    if size == 0 or (size < 4096 and not path.read_bytes().removeprefix(b"\xef\xbb\xbf").strip()):
        raise DataError(
            f"{named(path)} is empty",
            hint="expected a header such as label,path,split and a line for each image",
        )
    return lowest, quoted


def _csv_header(path: Path) -> list[str]:
    with path.open("rb") as file:
        first = file.read(_HEADER)
        is_all = not file.read(1)
    try:
        lines = first.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="strict" if is_all else "ignore")
    except UnicodeDecodeError:
        raise _not_utf8(path, first) from None
    text = io.StringIO(lines, newline="")
    try:
        header = next((row for row in csv.reader(text) if row), [])
    except csv.Error as error:
        what = f"the header of {named(path)} cannot be read: {error}"
        raise DataError(what, hint="check its quotes") from None
    if not is_all and text.tell() == len(lines):
        what = f"the header of {named(path)} is longer than {_HEADER:,} bytes"
        raise DataError(what, hint="check its quotes, and keep fewer columns")
    if len(header) == 1:
        for separator, name in _SEPARATORS.items():
            parts = [part.strip().strip('"') for part in header[0].split(separator)]
            if len(parts) > 1 and any(part in COLUMNS for part in parts):
                raise DataError(
                    f"{named(path)} is separated by {name}, expected commas",
                    hint="save it as comma-separated CSV",
                )
    _refuse_repeated(path, header)
    return header


def _refuse_repeated(path: Path, header: Sequence[str]) -> None:
    repeated = [name for name in dict.fromkeys(header) if name in COLUMNS and list(header).count(name) > 1]
    if repeated:
        names = ", ".join(map(repr, repeated))
        raise DataError(f"{named(path)} has more than one column {names}", hint="keep one of them")


def _line_of(data: Any, at: int) -> str:
    return f"line {int(np.count_nonzero(np.frombuffer(data, dtype=np.uint8)[:at] == 10)) + 1}"


def _not_utf8(path: Path, data: bytes) -> DataError:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        at, line = error.start, _line_of(data, error.start)
        message = f"{named(path)} is not UTF-8: byte {at} ({line}) is {data[at : at + 1]!r}"
        return DataError(message, hint="save the table as UTF-8")
    return DataError(f"{named(path)} is not UTF-8", hint="save the table as UTF-8")


def _csv_problem(path: Path, data: bytes, header: list[str], error: Exception) -> DataError:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return _not_utf8(path, data)
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            if row and len(row) != len(header):
                there = (
                    f"{named(path)} line {reader.line_num} has {len(row)} field{'s' if len(row) != 1 else ''}"
                )
                expected = f"expected {len(header)} ({_short(','.join(header))})"
                return DataError(f"{there}, {expected}", hint="quote a value that has a comma in it")
    except csv.Error as csv_error:
        return DataError(
            f"{named(path)} line {reader.line_num} cannot be read: {csv_error}", hint="check its quotes"
        )
    reason = str(error).splitlines()[0]
    return DataError(
        f"{named(path)} cannot be read as CSV: {_short(reason)}", hint="check its quotes and commas"
    )


def _short(text: str) -> str:
    return shortened(printable(text), 120)


def _read_parquet(path: Path, wanted: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    header = parquet_header(path)
    _refuse_repeated(path, header)
    return header, parquet_columns(path, [name for name in header if name in wanted])
