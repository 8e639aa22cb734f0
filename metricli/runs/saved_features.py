"""Saved features read back and matched to a table."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pa_compute
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from torch import Tensor

from metricli.data.kind import not_a_file
from metricli.data.table import Rows, Table
from metricli.errors import DataError
from metricli.runs.features import SUFFIXES, beside
from metricli.runs.processes import ALONE, World
from metricli.runs.shared_rows import BLOCK, Host, agreed, complete, share, shared_matrix
from metricli.tables import shortened

_VALUES, _VALUES_A_BYTE = 1 << 26, 100
"""A parquet file may have this many values whatever its size, and more as its size grows."""
_NAMES = {torch.float32: np.float32, torch.float64: np.float64}


def read_array(path: Path) -> np.ndarray:
    """A saved matrix (N, D) of floats, memory-mapped where the format allows it.

    Raises:
        DataError: it is missing, of another kind, or no matrix of floats.
    """
    if not path.is_file():
        what = not_a_file(path)
        raise DataError(f"the features file {str(path)!r} {f'is {what}' if what else 'does not exist'}")
    if path.suffix not in SUFFIXES:
        raise DataError(f"features {str(path)!r}: expected {', '.join(SUFFIXES)}")
    try:
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(array, np.ndarray):
                array.close()
                raise ValueError("it is an archive of arrays (.npz), not an array")
        elif path.suffix == ".parquet":
            array = _from_parquet(path)
        else:
            array = _from_safetensors(path)
    except Exception as error:  # each reader has errors of its own for a damaged file
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"cannot read the features {str(path)!r}: {shortened(what, 200)}") from None
    if array.ndim != 2 or array.dtype.kind != "f":
        raise DataError(f"{str(path)!r} holds {array.dtype} {array.shape}, expected floats (rows, dim)")
    return np.asanyarray(array)


def _from_parquet(path: Path) -> np.ndarray:
    """The column `features` (N, D).

    Raises:
        ValueError: there is none, or its rows are no lists of one length.
    """
    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if names.count("features") != 1 or not _is_list(file.schema_arrow.field("features").type):
            raise ValueError("it has no column 'features' of lists of numbers")
        facts = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        values = sum(group.column(i).num_values for group in facts for i in range(group.num_columns))
        size = path.stat().st_size
        if not 0 <= values <= max(_VALUES, _VALUES_A_BYTE * size):
            raise ValueError(f"it claims {values:,} values in {size:,} bytes")
        column = file.read(columns=["features"]).column("features").combine_chunks()
    column.validate(full=True)
    flat, lengths = column.flatten(), pa_compute.list_value_length(column)
    if len(pa_compute.unique(lengths)) > 1 or column.null_count or flat.null_count:
        raise ValueError("its rows are not all lists of one length without gaps")
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(column), -1)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _from_safetensors(path: Path) -> np.ndarray:
    with safe_open(path, framework="numpy") as file:
        if "features" not in file.keys():  # noqa: SIM118
            raise ValueError("it has no tensor 'features'")
        array: np.ndarray = file.get_tensor("features")
        return array


def read_features(path: Path, table: Table, rows: Rows, world: World = ALONE) -> tuple[Tensor, np.ndarray]:
    """The embeddings (N, D) of N rows of a table from a features file, and which rows (N,) have one.

    With an index beside the file its paths are checked against the table: the whole of it, or these rows.
    Without one, row i of the file is row i of these rows. Of several processes each reads its share.

    Raises:
        DataError: another number of rows, another path, or a NaN or infinity in a row that was not skipped.
    """
    array, places, left_out = agreed(world, lambda: _matched(path, table, rows))
    dtype = torch.float64 if array.dtype.itemsize > 4 else torch.float32
    host, own = Host.of(world), share(world, len(rows))
    features = shared_matrix(host, len(rows), array.shape[1], dtype)
    wrong: list[int] = []
    for start in range(0, len(own), BLOCK):
        block = np.asarray(own[start : start + BLOCK])
        part = torch.from_numpy(array[block if places is None else places[block]].astype(_NAMES[dtype]))
        skipped = torch.from_numpy(left_out[block])
        finite = part.isfinite().all(1)
        wrong += block[(~finite & ~skipped).numpy()].tolist()
        features[torch.from_numpy(block)] = part.masked_fill_(skipped[:, None], 0)
    wrong = sorted(row for each in world.gather(wrong) for row in each)
    if wrong:
        what = (
            f"{len(wrong)} rows of {str(path)!r} hold NaN or infinity, the first for {rows.paths[wrong[0]]!r}"
        )
        raise DataError(what, hint="make the features again")
    complete(host, features)
    return features, ~left_out


def _matched(path: Path, table: Table, rows: Rows) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """The array of a file, where `rows` (N,) stand in it if they are not its own, and which were skipped."""
    array = read_array(path)
    index = beside(path)[0]
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
    return array, rows.index if whole else None, skipped[rows.index] if whole else skipped


def _read_index(index: Path, rows: int) -> tuple[list[str], np.ndarray]:
    try:
        with index.open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        what = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read the index {str(index)!r}: {what}") from None
    if not lines or {"path", "status"} - set(lines[0]):
        raise DataError(f"the index {str(index)!r} has no columns 'path' and 'status'")
    if len(lines) != rows:
        raise DataError(f"the index {str(index)!r} has {len(lines)} rows, and its features file {rows}")
    return [line["path"] for line in lines], np.array([line["status"] == "skipped" for line in lines])
