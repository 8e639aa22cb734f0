"""Features on disk, written row by row as they come; saved_features.py reads them back."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from metricli.data.table import Rows
from metricli.errors import NonFiniteError, ResourceError, UsageError

SUFFIXES = (".npy", ".parquet", ".safetensors")
BLOCK = 4096
_SAFETENSORS_TYPE = {"float32": "F32", "float16": "F16"}


class Writer(Protocol):
    """Takes blocks of rows in order."""

    def write(self, start: int, features: np.ndarray) -> None:
        """Rows from `start` on."""

    def close(self) -> None:
        """No more rows."""


class _NpyWriter:
    """A .npy file, a header and then rows; not mapped, because a full disk kills whoever writes to a map."""

    def __init__(self, path: Path, shape: tuple[int, int], dtype: str) -> None:
        self.file = path.open("wb")
        self.begin(shape, dtype)

    def begin(self, shape: tuple[int, int], dtype: str) -> None:
        """Write the header."""
        descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
        head = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, head)

    def write(self, _start: int, features: np.ndarray) -> None:
        self.file.write(features.data)

    def close(self) -> None:
        self.file.close()


class _SafetensorsWriter(_NpyWriter):
    def begin(self, shape: tuple[int, int], dtype: str) -> None:
        """Write the header."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        entry = {"dtype": _SAFETENSORS_TYPE[dtype], "shape": list(shape), "data_offsets": [0, size]}
        head = json.dumps({"features": entry}).encode()
        head += b" " * (-len(head) % 8)
        self.file.write(len(head).to_bytes(8, "little") + head)


class _ParquetWriter:
    """A .parquet file with `row`, `path`, `label` and a fixed-size list `features`."""

    def __init__(self, path: Path, shape: tuple[int, int], dtype: str, rows: Rows) -> None:
        self.rows = rows
        self.kind = pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), shape[1])
        fields = [("row", pa.int64()), ("path", pa.string()), ("label", pa.string()), ("features", self.kind)]
        self.file = pq.ParquetWriter(path, pa.schema(fields))

    def write(self, start: int, features: np.ndarray) -> None:
        stop = start + len(features)
        values = pa.array(features.reshape(-1))
        columns = [
            pa.array(range(start, stop)),
            pa.array(self.rows.paths[start:stop].tolist(), pa.string()),
            pa.array(self.rows.labels[start:stop].tolist(), pa.string()),
            pa.FixedSizeListArray.from_arrays(values, type=self.kind),
        ]
        self.file.write_table(pa.table(columns, schema=self.file.schema))

    def close(self) -> None:
        self.file.close()


class FeatureFile:
    """`OUT`, its index and its manifest, written beside themselves and put in place together at the end.

    Rows come in order, in blocks of any size. A row that is never written is NaN with status "skipped".
    """

    def __init__(self, out: Path, rows: Rows, dtype: str) -> None:
        self.out = out
        self.rows = rows
        self.dtype = dtype
        self.index, self.manifest = beside(out)
        self.dim = 0
        self._writer: Writer | None = None
        self._block: np.ndarray = np.empty((0, 0))
        self._start = 0
        self._filled = 0
        check_out(out)

    def _part(self, path: Path) -> Path:
        return path.with_name(path.name + ".part")

    def begin(self, dim: int) -> None:
        """Open the file for embeddings of `dim` dimensions, at the first of them."""
        self.dim = dim
        part, shape = self._part(self.out), (len(self.rows), dim)
        suffix = self.out.suffix
        if suffix == ".parquet":
            self._writer = _ParquetWriter(part, shape, self.dtype, self.rows)
        else:
            self._writer = (_NpyWriter if suffix == ".npy" else _SafetensorsWriter)(part, shape, self.dtype)
        self._block = np.full((min(BLOCK, len(self.rows)), dim), np.nan, dtype=self.dtype)

    def write(self, at: np.ndarray, features: np.ndarray) -> None:
        """Take finite features (B, D) of the rows `at` (B,), rising; rows passed over stay NaN.

        Raises:
            NonFiniteError: a value is too large for the type of the file.
        """
        with np.errstate(over="ignore"):  # said below, with the path
            features = features.astype(self.dtype, copy=False)
        wrong = np.flatnonzero(~np.isfinite(features).all(1))
        if len(wrong):
            what = f"the embedding of {str(self.rows.paths[at[wrong[0]]])!r} does not fit {self.dtype}"
            raise NonFiniteError(what, hint="use --dtype float32" if self.dtype == "float16" else "")
        while len(at):
            inside = int(np.searchsorted(at, self._start + len(self._block)))
            self._block[at[:inside] - self._start] = features[:inside]
            at, features = at[inside:], features[inside:]
            if len(at):
                self._flush()

    def _flush(self) -> None:
        assert self._writer is not None
        stop = min(self._start + len(self._block), len(self.rows))
        self._writer.write(self._start, self._block[: stop - self._start])
        self._start = stop
        self._block = np.full_like(self._block, np.nan)

    def finish(self, skipped: Sequence[int], facts: Mapping[str, Any]) -> None:
        """Write what is left, the index and the manifest, and rename all three into place.

        Raises:
            ResourceError: the disk is full or the folder went away; nothing of ours stays there.
        """
        assert self._writer is not None
        while self._start < len(self.rows):
            self._flush()
        self._writer.close()
        bad = set(skipped)
        with self._part(self.index).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["row", "path", "label", "status"])
            for row, (path, label) in enumerate(zip(self.rows.paths, self.rows.labels, strict=True)):
                writer.writerow([row, path, label, "skipped" if row in bad else "ok"])
        document = {
            "out": self.out.name,
            "rows": len(self.rows),
            "dim": self.dim,
            "dtype": self.dtype,
            "skipped": len(bad),
            **facts,
        }
        self._part(self.manifest).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        for path in (self.out, self.index, self.manifest):
            with self._part(path).open("rb+") as handle:
                os.fsync(handle.fileno())
        for path in (self.index, self.manifest, self.out):
            self._part(path).replace(path)

    def discard(self) -> None:
        """Remove what was begun."""
        if self._writer is not None:
            with suppress(OSError, pa.ArrowException):  # what it cannot write is not wanted any more
                self._writer.close()
        for path in (self.out, self.index, self.manifest):
            self._part(path).unlink(missing_ok=True)


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
        probe.unlink()
    except OSError as error:
        raise ResourceError(f"cannot write in {str(out.parent)!r}: {error.strerror}") from None


def beside(out: Path) -> tuple[Path, Path]:
    """The index and the manifest of a features file."""
    return out.with_name(f"{out.stem}.index.csv"), out.with_name(f"{out.stem}.json")


def refuse_foreign(out: Path) -> None:
    """Refuse to replace an index or manifest that was not written for `out`.

    Raises:
        UsageError: naming the file.
    """
    index, manifest = beside(out)
    try:
        known = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = None
    if isinstance(known, dict) and "ckpt_sha256" in known and known.get("out") == out.name:
        return
    for path in (index, manifest):
        if path.exists():
            what = f"--out {str(out)!r} would replace {str(path)!r}, which was not written for it"
            raise UsageError(what, hint="give another name, or remove that file")
