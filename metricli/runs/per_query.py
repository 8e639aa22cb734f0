"""The values of every query on disk, `per_query.parquet` or `per_query.csv`, written and read back."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import Tensor

from metricli.core.catalogue import metric_of
from metricli.core.results import SearchResult
from metricli.data.table import Rows
from metricli.errors import DataError, ResourceError
from metricli.reports import OVERALL

STEM = "per_query"
KINDS = ("parquet", "csv")
_WORDS = ("path", "label", "category")


@dataclass(frozen=True, eq=False)
class PerQuery:
    """The values of Q queries, in the order of the table."""

    rows: NDArray[np.int64]
    """(Q,) data rows of the table, from 1, ascending."""
    paths: NDArray[Any]
    """(Q,) str."""
    labels: NDArray[Any]
    """(Q,) str."""
    categories: NDArray[Any]
    """(Q,) str, "" for none."""
    values: dict[str, NDArray[np.float64]]
    """(Q,) by metric; NaN for a query that is not judged."""
    protocol: dict[str, Any] | None
    """What `metrics.json` says of how they were judged; None where it is not known."""


def per_query_of(
    rows: Rows, queries: NDArray[np.int64], values: Mapping[str, Tensor], protocol: dict[str, Any] | None
) -> PerQuery:
    """The values (Q,) of an evaluation in memory; `queries` (Q,) are ascending places in `rows`."""
    return PerQuery(
        rows=rows.index[queries] + 1,
        paths=rows.paths[queries],
        labels=rows.labels[queries],
        categories=rows.categories[queries],
        values={metric: tensor.cpu().double().numpy() for metric, tensor in values.items()},
        protocol=protocol,
    )


def write_per_query(
    folder: Path,
    kind: Literal["parquet", "csv"],
    *,
    rows: Rows,
    queries: NDArray[np.int64],
    gallery: NDArray[np.int64],
    values: Mapping[str, Tensor],
    num_relevant: Tensor,
    result: SearchResult,
    gallery_rows: Rows | None = None,
) -> Path:
    """Write `folder/per_query.<kind>`, a line a query, and remove one of the other kind from before.

    Columns: row (from 1), path, label, category, relevant (items to find), the metrics by name, and
    nearest_row, _path, _label, _distance, _is_match of the first item. A query that is not judged has empty
    values, one that can find nothing an empty nearest.

    Args:
        folder: made if need be.
        kind: the format.
        rows: the judged rows.
        queries: (Q,) ascending places in `rows`.
        gallery: (G,) places in `gallery_rows`, at least one.
        values: (Q,) by metric.
        num_relevant: (Q,).
        result: whose first column is the nearest place in `gallery`.
        gallery_rows: where the gallery comes from, if not from `rows`.

    Raises:
        ResourceError: it cannot be written; what was there before stays.
    """
    judged = per_query_of(rows, queries, values, None)
    first, source = result.indices[:, 0].cpu().numpy(), rows if gallery_rows is None else gallery_rows
    nothing, nearest = first < 0, gallery[first.clip(min=0)]
    columns = {
        "row": pa.array(judged.rows),
        "path": pa.array(judged.paths, pa.string()),
        "label": pa.array(judged.labels, pa.string()),
        "category": pa.array(judged.categories, pa.string()),
        "relevant": pa.array(num_relevant.cpu().numpy()),
        **{metric: pa.array(column, mask=np.isnan(column)) for metric, column in judged.values.items()},
        "nearest_row": pa.array(source.index[nearest] + 1, mask=nothing),
        "nearest_path": pa.array(source.paths[nearest], pa.string(), mask=nothing),
        "nearest_label": pa.array(source.labels[nearest], pa.string(), mask=nothing),
        "nearest_distance": pa.array(result.distances[:, 0].cpu().numpy(), mask=nothing),
        "nearest_is_match": pa.array((source.labels[nearest] == judged.labels).astype(bool), mask=nothing),
    }
    target = folder / f"{STEM}.{kind}"
    _put(pa.table(columns), target)
    for other in KINDS:
        if other != kind:
            remove_per_query(folder, other)
    return target


def remove_per_query(folder: Path, *kinds: str) -> None:
    """Remove the files of an evaluation before, of all kinds or these: a new `metrics.json` is not theirs.

    Raises:
        ResourceError: one cannot be removed.
    """
    for kind in kinds or KINDS:
        old = folder / f"{STEM}.{kind}"
        try:
            old.unlink(missing_ok=True)
        except OSError as error:
            raise ResourceError(f"cannot remove the old {str(old)!r}: {error.strerror}") from None


def _put(table: pa.Table, target: Path) -> None:
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        (pq.write_table if target.suffix == ".parquet" else pa_csv.write_csv)(table, part)
        with part.open("rb+") as handle:
            os.fsync(handle.fileno())
        part.replace(target)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise ResourceError(f"cannot write {str(target)!r}: {error.strerror or error}") from None


def read_per_query(path: Path) -> PerQuery:
    """Read the file, or that of a folder that `validate --out` wrote, and the protocol of `metrics.json`.

    Raises:
        DataError: it is missing, damaged or of another kind, or does not belong to the metrics beside it.
    """
    path = _file_of(path)
    table = _read_table(path)
    missing = [name for name in ("row", *_WORDS) if name not in table.column_names]
    metrics = [name for name in table.column_names if metric_of(name) is not None]
    if missing:
        what = f"no column {missing[0]!r}"
        raise DataError(f"{str(path)!r} has {what}", hint="give what `metricli validate --out` wrote")
    if not metrics:
        raise DataError(
            f"{str(path)!r} has no column of a metric: none that was asked for has a value for each query",
            hint="judge it again with a ranking metric, such as cmc",
        )
    try:
        rows = table.column("row").cast(pa.int64()).to_numpy()
        words = [table.column(name).cast(pa.string()).fill_null("").to_numpy() for name in _WORDS]
        values = {
            name: table.column(name).cast(pa.float64()).fill_null(math.nan).to_numpy() for name in metrics
        }
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"cannot read {str(path)!r}: {_line(error)}") from None
    order = np.argsort(rows, kind="stable")
    repeated = np.flatnonzero(np.diff(rows[order]) == 0)
    if table.column("row").null_count or len(repeated):
        what = f"row {rows[order][repeated[0]]} twice" if len(repeated) else "a line without its row"
        raise DataError(f"{str(path)!r} has {what}", hint="make it again")
    values = {name: column[order] for name, column in values.items()}
    protocol = _protocol(path, values)
    paths, labels, categories = (column[order] for column in words)
    return PerQuery(rows[order], paths, labels, categories, values, protocol)


def _file_of(path: Path) -> Path:
    if not path.is_dir():
        if not path.exists():
            raise DataError(f"{str(path)!r} does not exist")
        if path.suffix.removeprefix(".") not in KINDS:
            raise DataError(f"{str(path)!r} is neither .parquet nor .csv, nor a folder")
        return path
    files = [file for kind in KINDS if (file := path / f"{STEM}.{kind}").is_file()]
    if len(files) != 1:
        what = "holds both" if files else "holds neither"
        raise DataError(
            f"the folder {str(path)!r} {what} {STEM}.parquet {'and' if files else 'nor'} {STEM}.csv",
            hint="give the file itself" if files else "`metricli validate --out FOLDER` writes one",
        )
    return files[0]


def _read_table(path: Path) -> pa.Table:
    try:
        if path.suffix == ".parquet":
            return pq.read_table(path)
        texts = pa_csv.ConvertOptions(column_types=dict.fromkeys(_WORDS, pa.string()))
        lines = pa_csv.ParseOptions(newlines_in_values=True)
        return pa_csv.read_csv(path, parse_options=lines, convert_options=texts)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise DataError(f"cannot read {str(path)!r}: {_line(error)}") from None


def _line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _protocol(path: Path, values: Mapping[str, NDArray[np.float64]]) -> dict[str, Any] | None:
    """The protocol of the `metrics.json` beside `path`, which must have the means of these values."""
    beside = path.with_name("metrics.json")
    if not beside.is_file():
        return None
    try:
        document = json.loads(beside.read_text(encoding="utf-8"))
        means = dict(document["metrics"][OVERALL])
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(
            f"{str(beside)!r} is damaged, or not of `metricli validate`", hint="make it again"
        ) from None
    for metric, column in values.items():
        judged = column[~np.isnan(column)]
        mean = float(judged.mean()) if len(judged) else None
        known = means.get(metric)
        if (mean is None) != (known is None) or not math.isclose(mean or 0, known or 0, abs_tol=1e-9):
            what = f"{metric} is {known} there and {mean} by its queries"
            raise DataError(
                f"{str(path)!r} does not belong to the metrics.json beside it: {what}",
                hint="make both again with `metricli validate --out`",
            )
    protocol = document.get("protocol")
    return protocol if isinstance(protocol, dict) and protocol else None


def rows_digest(
    rows: Rows,
    queries: NDArray[np.int64],
    gallery: NDArray[np.int64],
    gallery_rows: Rows | None = None,
    *,
    ids: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
) -> str:
    """sha256 over what is judged, in order: paths, labels, categories, sequences and boxes of both sides.

    `queries` are places in `rows`, `gallery` in `gallery_rows`, or in `rows` without it: the same rows have
    the same digest either way. `ids` are codes (Q,) and (G,) of which equal ones are one image: which pairs
    that takes out counts, not the codes. Rows that are neither query nor gallery do not count, nor does where
    the judged ones stand in the table.
    """
    source = rows if gallery_rows is None else gallery_rows
    first = _side(rows, queries)
    one = source is rows and np.array_equal(queries, gallery)
    digest = hashlib.sha256(first + (first if one else _side(source, gallery)))
    if ids is not None:
        digest.update(_shared(*ids))
    return digest.hexdigest()


def _side(rows: Rows, judged: NDArray[np.int64]) -> bytes:
    digest = hashlib.sha256(len(judged).to_bytes(8, "little"))
    for column in (rows.paths, rows.labels, rows.categories, rows.sequences):
        digest.update("\0".join(column[judged].tolist()).encode("utf-8", "surrogatepass") + b"\1")
    if rows.boxes is not None and (rows.boxes[judged] >= 0).any():
        digest.update(rows.boxes[judged].tobytes())
    return digest.digest()


def _shared(queries: NDArray[np.int64], gallery: NDArray[np.int64]) -> bytes:
    """Equal bytes for codes with the same pairs of equal ones: -1 for a code that the other side lacks."""
    both = np.concatenate([queries, gallery])
    shared = np.concatenate([np.isin(queries, gallery), np.isin(gallery, queries)])
    codes = np.full(len(both), -1, dtype=np.int64)
    codes[shared] = pd.factorize(both[shared])[0]
    return codes.astype("<i8").tobytes()
