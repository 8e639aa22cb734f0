"""`metricli merge`: the shards of a predict put together, once it is proven that they are all there."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from metricli.errors import DataError, UsageError
from metricli.reporter import Reporter
from metricli.reports import PredictReport
from metricli.runs.blocks import Blocks, shard_of
from metricli.runs.features import (
    CHUNK,
    INDEX_COLUMNS,
    Layout,
    beside,
    check_out,
    read_manifest,
    refuse_foreign,
)
from metricli.runs.unfinished import Unfinished
from metricli.specs.predict import parse_shard

_ALIKE = {
    "ckpt_sha256": "other checkpoints",
    "settings_sha256": "other settings of the model or the eval transform",
    "rows_sha256": "other rows",
    "rows_of_all_shards": "other rows",
    "split": "other splits",
    "dim": "other dimensions",
    "dtype": "other types",
}


@dataclass(frozen=True)
class _Part:
    """A shard on disk: its file, its manifest, its place i of n, and its rows among all."""

    path: Path
    manifest: dict[str, Any]
    place: tuple[int, int]

    @property
    def span(self) -> Blocks:
        return shard_of(int(self.manifest["rows_of_all_shards"]), self.place)

    @property
    def layout(self) -> Layout:
        known = self.manifest
        return Layout(self.path.suffix, int(known["rows"]), int(known["dim"]), str(known["dtype"]))


def merge(paths: Sequence[Path], out: Path, reporter: Reporter) -> PredictReport:
    """Prove that the files are every shard of one predict, and write file, index and manifest of the whole.

    Raises:
        DataError: they are not, or a file is damaged; nothing of ours stays then.
        UsageError: `out` cannot be written, or would replace one of them.
        ResourceError: there is no room for the whole file.
    """
    started = time.monotonic()
    check_out(out)
    refuse_foreign(out)
    _refuse_replacing(out, paths)
    parts = sorted(map(_read_part, paths), key=lambda part: part.place)
    _refuse_contradiction(parts)
    first = parts[0].manifest
    rows = int(first["rows_of_all_shards"])
    layout = Layout(out.suffix, rows, parts[0].layout.dim, parts[0].layout.dtype)
    work = Unfinished(out, layout, Blocks(0, rows))
    with work.locked():
        if work.request.exists():
            what = f"{str(work.folder)!r} holds an unfinished predict"
            raise UsageError(what, hint="finish it, remove it, or give another --out")
        with work.kept(is_main=True), work.writing():
            skipped = _stream(parts, work, reporter)
            if len(skipped) == rows:
                raise DataError(f"none of the {rows} images could be read")
            kept = ("ckpt", "ckpt_sha256", "split", "rows_sha256", "settings_sha256")
            facts = {key: first[key] for key in kept}
            work.put_in_place(lambda: _index(parts), len(skipped), facts)
    index, manifest = beside(out)
    return PredictReport(
        out=out,
        index=index,
        manifest=manifest,
        rows=rows,
        dim=layout.dim,
        dtype=layout.dtype,
        ckpt=str(first["ckpt"]),
        skipped=skipped,
        seconds=time.monotonic() - started,
    )


def _refuse_replacing(out: Path, paths: Sequence[Path]) -> None:
    if not paths:
        raise UsageError("no shards are given", hint="give the files of every --shard")
    for path in paths:
        taken = [place for place in (path, *beside(path)) if place.exists()]
        for place in (out, *beside(out)):
            if place.exists() and any(place.samefile(other) for other in taken):
                what = f"--out {str(out)!r} would replace {str(place)!r} of the shard {str(path)!r}"
                raise UsageError(what, hint="give another name")


def _read_part(path: Path) -> _Part:
    """The manifest of a shard.

    Raises:
        DataError: the file is not there, or was not written by `predict --shard`.
    """
    if not path.is_file():
        raise DataError(f"the shard {str(path)!r} does not exist")
    manifest = read_manifest(path) or {}
    needed = {"shard", "rows", "ckpt", "ckpt_sha256", *_ALIKE}
    if needed - set(manifest):
        what = f"{str(path)!r} is no shard: {str(beside(path)[1])!r} does not tell it as one"
        raise DataError(
            what, hint="give what `metricli predict --shard I/N` wrote, manifests and indexes beside it"
        )
    try:
        place = parse_shard(str(manifest["shard"]))
    except UsageError as error:
        raise DataError(f"{str(beside(path)[1])!r}: {error.message}") from None
    assert place is not None
    return _Part(path, manifest, place)


def _refuse_contradiction(parts: Sequence[_Part]) -> None:
    """Every shard once, and all of one predict.

    Raises:
        DataError: naming two that contradict each other, or what is missing.
    """
    first = parts[0]
    for other in parts[1:]:
        names = f"{str(first.path)!r} and {str(other.path)!r}"
        for key, what in _ALIKE.items():
            if other.manifest[key] != first.manifest[key]:
                raise DataError(f"{names} were made of {what}", hint="make them by the same command")
        if other.place[1] != first.place[1]:
            what = f"{names} are shards {_named(first)} and {_named(other)}, of different numbers"
            raise DataError(what, hint="make them by the same command")
    for one, other in pairwise(parts):
        if one.place == other.place:
            raise DataError(f"{str(one.path)!r} and {str(other.path)!r} are both shard {_named(one)}")
    count = first.place[1]
    there = {part.place[0] for part in parts}
    missing = [i for i in range(1, count + 1) if i not in there] if len(there) < count else []
    if missing:
        shown = ", ".join(f"{i}/{count}" for i in missing[:5]) + (", ..." if len(missing) > 5 else "")
        what = f"{len(missing)} of {count} shards are missing: {shown}"
        raise DataError(what, hint="predict them, or give their files too")
    for part in parts:
        if part.layout.rows != part.span.rows:
            known = f"{part.layout.rows} rows, and shard {_named(part)} has {part.span.rows}"
            what = f"{str(part.path)!r} has {known}"
            raise DataError(what, hint="predict it again")


def _named(part: _Part) -> str:
    return f"{part.place[0]}/{part.place[1]}"


def _stream(parts: Sequence[_Part], work: Unfinished, reporter: Reporter) -> list[str]:
    """Copy the rows, each checked against its line of the index; the paths of skipped ones."""
    work.begin()
    skipped: list[str] = []
    reporter.begin("merge", work.layout.rows, "row")
    try:
        with work.data.open("rb+") as file:
            file.seek(len(work.layout.head))
            for part in parts:
                for lines, values in zip(_index_of(part), _values_of(part), strict=True):
                    left_out = np.array([line[3] == "skipped" for line in lines])
                    wrong = np.flatnonzero(np.isfinite(values).all(1) == left_out)
                    if len(wrong):
                        row = lines[int(wrong[0])]
                        what = f"row {row[0]} of {str(part.path)!r} is {row[3]} by its index and is not so"
                        raise DataError(what, hint="predict the shard again")
                    skipped += [line[1] for line in lines if line[3] == "skipped"]
                    file.write(np.ascontiguousarray(values).data)
                    reporter.advance(len(lines))
    finally:
        reporter.end()
    return skipped


def _index(parts: Sequence[_Part]) -> Iterator[list[list[Any]]]:
    for part in parts:
        yield from _index_of(part)


def _index_of(part: _Part) -> Iterator[list[list[Any]]]:
    """The lines of a shard's index, `CHUNK` at a time.

    Raises:
        DataError: a line is not of the row that stands there among all rows.
    """
    index = beside(part.path)[0]
    again = f"predict shard {_named(part)} again"
    row = part.span.start
    try:
        with index.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            if tuple(next(reader, ())) != INDEX_COLUMNS:
                raise DataError(f"{str(index)!r} is no index of features", hint=again)
            while lines := list[list[Any]](islice(reader, CHUNK)):
                for line in lines:
                    if len(line) != 4 or line[0] != str(row) or line[3] not in ("ok", "skipped"):
                        what = f"{str(index)!r}: expected row {row}, found {','.join(line)!r}"
                        raise DataError(what, hint=again)
                    line[0] = row
                    row += 1
                yield lines
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {str(index)!r}: {error}", hint=again) from None
    if row != part.span.stop:
        what = f"{str(index)!r} ends before row {row}, expected rows up to {part.span.stop - 1}"
        raise DataError(what, hint=again)


def _values_of(part: _Part) -> Iterator[np.ndarray]:
    """The rows of a shard, `CHUNK` at a time.

    Raises:
        DataError: the file is not as its manifest says.
    """
    layout = part.layout
    wrong = DataError(
        f"{str(part.path)!r} is not the file of {layout.rows} rows of {layout.dim} {layout.dtype} that its "
        "manifest tells of",
        hint=f"predict shard {_named(part)} again",
    )
    if layout.suffix == ".parquet":
        yield from _values_of_parquet(part, wrong)
        return
    head = layout.head
    with part.path.open("rb") as file:
        if part.path.stat().st_size != layout.size or file.read(len(head)) != head:
            raise wrong
        for start in range(0, layout.rows, CHUNK):
            count = min(CHUNK, layout.rows - start)
            yield np.frombuffer(file.read(count * layout.row_bytes), layout.dtype).reshape(count, layout.dim)


def _values_of_parquet(part: _Part, wrong: DataError) -> Iterator[np.ndarray]:
    layout = part.layout
    try:
        with pq.ParquetFile(part.path) as file:
            if file.metadata.num_rows != layout.rows:
                raise wrong
            for batch in file.iter_batches(CHUNK, columns=["features"]):
                column = batch.column(0)
                values = column.flatten().to_numpy(zero_copy_only=False)
                if values.dtype != layout.dtype or len(values) != len(column) * layout.dim:
                    raise wrong
                yield values.reshape(-1, layout.dim)
    except (OSError, ValueError, KeyError):  # pyarrow's own errors are of these kinds
        raise wrong from None
