"""Features on disk: a file, its index and its manifest, and their formats; saved_features.py reads them."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from metricli.data.table import Rows
from metricli.errors import ResourceError, UsageError
from metricli.runs.blocks import Blocks

SUFFIXES = (".npy", ".parquet", ".safetensors")
CHUNK = 4096
"""Rows that are written at a time."""
INDEX_COLUMNS = ("row", "path", "label", "status")
_SAFETENSORS_TYPE = {"float32": "F32", "float16": "F16"}


@dataclass(frozen=True)
class Layout:
    """Where the rows of a matrix lie in its file; of a parquet file, in the raw file that it is made from."""

    suffix: str
    rows: int
    dim: int
    dtype: str

    @property
    def head(self) -> bytes:
        """What stands before the first row."""
        if self.suffix == ".npy":
            file = BytesIO()
            descr = np.lib.format.dtype_to_descr(np.dtype(self.dtype))
            facts = {"descr": descr, "fortran_order": False, "shape": (self.rows, self.dim)}
            np.lib.format.write_array_header_1_0(file, facts)
            return file.getvalue()
        if self.suffix == ".safetensors":
            offsets = [0, self.rows * self.row_bytes]
            kind = _SAFETENSORS_TYPE[self.dtype]
            entry = {"dtype": kind, "shape": [self.rows, self.dim], "data_offsets": offsets}
            text = json.dumps({"features": entry}).encode()
            text += b" " * (-len(text) % 8)
            return len(text).to_bytes(8, "little") + text
        return b""

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.dim * np.dtype(self.dtype).itemsize

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.head) + self.rows * self.row_bytes


def index_lines(rows: Rows, span: Blocks, skipped: frozenset[int]) -> Iterator[list[list[Any]]]:
    """The index of some rows of a table, `CHUNK` lines at a time: row, path, label, status."""
    for start in range(span.start, span.stop, CHUNK):
        stop = min(start + CHUNK, span.stop)
        paths, labels = rows.paths[start:stop].tolist(), rows.labels[start:stop].tolist()
        yield [
            [row, path, label, "skipped" if row in skipped else "ok"]
            for row, path, label in zip(range(start, stop), paths, labels, strict=True)
        ]


def write_index(path: Path, chunks: Iterator[list[list[Any]]]) -> None:
    """A CSV file of index lines."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(INDEX_COLUMNS)
        for lines in chunks:
            writer.writerows(lines)


def write_manifest(path: Path, out: Path, layout: Layout, skipped: int, facts: Mapping[str, Any]) -> None:
    """What the file is, as JSON."""
    shape = {"rows": layout.rows, "dim": layout.dim, "dtype": layout.dtype}
    document = {"out": out.name, **shape, "skipped": skipped, **facts}
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def write_parquet(path: Path, raw: Path, layout: Layout, chunks: Iterator[list[list[Any]]]) -> None:
    """A .parquet file with `row`, `path`, `label` and a fixed-size list `features`, from the raw rows."""
    kind = pa.list_(pa.from_numpy_dtype(np.dtype(layout.dtype)), layout.dim)
    fields = [("row", pa.int64()), ("path", pa.string()), ("label", pa.string()), ("features", kind)]
    with raw.open("rb") as file, pq.ParquetWriter(path, pa.schema(fields)) as writer:
        for lines in chunks:
            numbers, paths, labels, _ = zip(*lines, strict=True)
            values = np.frombuffer(file.read(len(lines) * layout.row_bytes), layout.dtype)
            columns = [
                pa.array(numbers, pa.int64()),
                pa.array(paths, pa.string()),
                pa.array(labels, pa.string()),
                pa.FixedSizeListArray.from_arrays(pa.array(values), type=kind),
            ]
            writer.write_table(pa.table(columns, schema=writer.schema))


def check_out(out: Path) -> None:
    """Refuse a place that cannot be written before any work is done.

    Raises:
        UsageError: another suffix, a folder, or no folder to write in.
        ResourceError: the folder is not writable.
    """
    if out.is_dir():
        raise UsageError(f"--out {str(out)!r} is a folder", hint="give a file name in it")
    if out.suffix not in SUFFIXES:
        ending = f"ends in {out.suffix!r}" if out.suffix else "has no suffix"
        raise UsageError(f"--out {str(out)!r} {ending}, expected one of {', '.join(SUFFIXES)}")
    if not out.parent.is_dir():
        raise UsageError(
            f"--out {str(out)!r}: the folder {str(out.parent)!r} does not exist", hint="make it first"
        )
    probe = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise ResourceError(f"cannot write in {str(out.parent)!r}: {error.strerror}") from None


def beside(out: Path) -> tuple[Path, Path]:
    """The index and the manifest of a features file."""
    return out.with_name(f"{out.stem}.index.csv"), out.with_name(f"{out.stem}.json")


def read_manifest(out: Path) -> dict[str, Any] | None:
    """The manifest beside a features file, if it was written for it."""
    try:
        known = json.loads(beside(out)[1].read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ours = isinstance(known, dict) and "ckpt_sha256" in known and known.get("out") == out.name
    return known if ours else None


def refuse_foreign(out: Path) -> None:
    """Refuse to replace an index or manifest that was not written for `out`.

    Raises:
        UsageError: naming the file.
    """
    if read_manifest(out) is not None:
        return
    for path in beside(out):
        if path.exists():
            what = f"--out {str(out)!r} would replace {str(path)!r}, which was not written for it"
            raise UsageError(what, hint="give another name, or remove that file")
