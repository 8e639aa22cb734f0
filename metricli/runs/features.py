"""Features on disk: written row by row as they come, read back and matched to a table."""

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
import torch
from safetensors.numpy import load_file
from torch import Tensor

from metricli.data.table import Rows, Table
from metricli.errors import DataError, NonFiniteError, ResourceError, UsageError

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


def read_array(path: Path) -> np.ndarray:
    """A saved matrix (N, D) of floats, memory-mapped where the format allows it.

    Raises:
        DataError: it is missing, of another kind, or no matrix of floats.
    """
    if not path.is_file():
        raise DataError(f"the features file {str(path)!r} does not exist")
    if path.suffix not in SUFFIXES:
        raise DataError(f"features {str(path)!r}: expected {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        elif path.suffix == ".parquet":
            column = pq.read_table(path, columns=["features"]).column("features").combine_chunks()
            flat = column.flatten().to_numpy(zero_copy_only=False)
            array = flat.reshape(len(column), -1)
        else:
            array = load_file(path)["features"]
    except Exception as error:  # each reader has errors of its own for a damaged file
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"cannot read the features {str(path)!r}: {what}") from None
    if array.ndim != 2 or array.dtype.kind != "f":
        raise DataError(f"{str(path)!r} holds {array.dtype} {array.shape}, expected floats (rows, dim)")
    return np.asanyarray(array)


def read_features(path: Path, table: Table, rows: Rows) -> tuple[Tensor, np.ndarray]:
    """The embeddings (N, D) of N rows of a table from a features file, and which rows (N,) have one.

    With an index beside the file its paths are checked against the table: the whole of it, or these rows.
    Without one, row i of the file is row i of these rows.

    Raises:
        DataError: another number of rows, another path, or a NaN or infinity in a row that was not skipped.
    """
    array = read_array(path)
    index = path.with_name(f"{path.stem}.index.csv")
    paths, skipped = _read_index(index, len(array)) if index.is_file() else (None, np.zeros(len(array), bool))
    whole = paths is not None and len(array) == len(table) != len(rows)
    expected = table.strings("path") if whole else rows.paths
    if len(array) != len(expected):
        known = f"{len(rows)} rows of this split" + (
            f" or {len(table)} of the table" if paths is not None else ""
        )
        raise DataError(f"{str(path)!r} has {len(array)} rows, and there are {known}")
    if paths is not None:
        differs = np.flatnonzero(np.asarray(paths, dtype=object) != expected)
        if len(differs):
            i = int(differs[0])
            what = f"row {i} of {str(index)!r} is {paths[i]!r}, and the table has {expected[i]!r} there"
            raise DataError(what, hint="give the table and split that the features were made from")
    pick = rows.index if whole else slice(None)
    features, left_out = np.ascontiguousarray(array[pick]), skipped[pick]
    finite = np.isfinite(features).all(1)
    wrong = np.flatnonzero(~finite & ~left_out)
    if len(wrong):
        what = (
            f"{len(wrong)} rows of {str(path)!r} hold NaN or infinity, the first for {rows.paths[wrong[0]]!r}"
        )
        raise DataError(what, hint="make the features again")
    features = features.astype(np.float32) if features.dtype == np.float16 else features
    return torch.from_numpy(np.where(left_out[:, None], 0, features)), ~left_out


def _read_index(index: Path, rows: int) -> tuple[list[str], np.ndarray]:
    with index.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    if not lines or {"path", "status"} - set(lines[0]):
        raise DataError(f"the index {str(index)!r} has no columns 'path' and 'status'")
    if len(lines) != rows:
        raise DataError(f"the index {str(index)!r} has {len(lines)} rows, and its features file {rows}")
    return [line["path"] for line in lines], np.array([line["status"] == "skipped" for line in lines])
