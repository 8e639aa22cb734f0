"""What deep looks at images have found, kept between runs in a file for each root, outside the data set."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.compute as pa_compute
import pyarrow.parquet as pq
from numpy.typing import NDArray

FOLDER_VARIABLE = "METRICLI_CACHE"
MOST_IMAGES = 4_000_000
"""Images that are remembered of a root: some 400 MB on the disk."""
_MOST_BYTES = 2**30
_MOST_ROOTS = 64
_FRESH = 2 * 10**9
"""Nanoseconds in which a file may be written again without its time changing."""
_COLUMNS: dict[str, Any] = {
    "path": pa.string(),
    "size": pa.int64(),
    "mtime": pa.int64(),
    "width": pa.int32(),
    "height": pa.int32(),
    "format": pa.string(),
    "digest": pa.binary(32),
    "problem": pa.string(),
}
_SCHEMA = pa.schema(list(_COLUMNS.items()))


@dataclass(frozen=True, slots=True)
class Entry:
    """An image file as it was when it was decoded."""

    path: str
    """As a table has it, below the root."""
    size: int
    mtime: int
    """Nanoseconds."""
    width: int
    height: int
    format: str
    digest: bytes
    problem: str
    """Why it cannot be read; "" if it can."""


@dataclass(frozen=True)
class Known:
    """The images of a root that are known."""

    root: str
    """Without links."""
    file: Path | None
    """Where it is kept; None without a home."""
    table: Any
    note: str = ""
    """Why the file that is there was not used."""

    def __len__(self) -> int:
        return len(self.table)

    def at(self, paths: Sequence[str]) -> NDArray[np.int64]:
        """(P,) the place of each path among the known ones, -1 for none."""
        if not len(self):
            return np.full(len(paths), -1)
        found = pa_compute.index_in(pa.array(paths, pa.string()), value_set=self.table["path"])
        places: NDArray[np.int64] = found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        return places

    def entry(self, place: int) -> Entry:
        """The image at a place."""
        values = (column[place] for column in self._columns)
        return Entry(*(value.item() if isinstance(value, np.generic) else value.as_py() for value in values))

    @cached_property
    def _columns(self) -> list[Any]:
        columns = (self.table[name].combine_chunks() for name in _COLUMNS)
        return [column.to_numpy() if pa.types.is_integer(column.type) else column for column in columns]

    def broken(self) -> dict[str, Entry]:
        """Those that cannot be read, by path."""
        chosen = Known(self.root, None, self.table.filter(pa_compute.not_equal(self.table["problem"], "")))
        entries = map(chosen.entry, range(len(chosen)))
        return {entry.path: entry for entry in entries}

    def keep(self, fresh: Sequence[Entry]) -> str:
        """Write what is known and `fresh` together; why that is impossible, else "".

        A file that was changed just now is left out: it may change again and look the same.
        """
        latest = time.time_ns() - _FRESH
        fresh = [entry for entry in fresh if entry.mtime < latest][:MOST_IMAGES]
        if not fresh:
            return ""
        if self.file is None:
            return f"what was found is not kept: there is no home folder, and {FOLDER_VARIABLE} is not set"
        columns = {name: [getattr(entry, name) for entry in fresh] for name in _COLUMNS}
        new = pa.table(columns, schema=_SCHEMA)
        is_old = pa_compute.is_in(self.table["path"], value_set=new["path"])
        old = self.table.filter(pa_compute.invert(is_old))[: MOST_IMAGES - len(new)]
        whole = pa.concat_tables([old, new]).replace_schema_metadata(_signature(self.root))
        part = self.file.with_name(f".{self.file.name}.{os.getpid()}.part")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(whole, part)
            part.replace(self.file)
        except OSError as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            reason = (error.strerror or str(error)).lower()
            return f"what was found is not kept: cannot write {str(self.file)!r}: {reason}"
        _forget_oldest(self.file.parent)
        return ""


def cache_folder() -> Path:
    """`$METRICLI_CACHE`, else `metricli` in `$XDG_CACHE_HOME` or ~/.cache.

    Raises:
        RuntimeError: there is no home.
    """
    if named := os.environ.get(FOLDER_VARIABLE):
        return Path(named).absolute()
    common = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(common) if os.path.isabs(common) else Path.home() / ".cache") / "metricli"


def read_known(root: str | Path, *, if_broken: bool = False) -> Known:
    """What is known of the images below a root; nothing if that is damaged, foreign or of another Pillow.

    With `if_broken` also nothing where no image is broken, which is seen in no time.
    """
    real = os.path.realpath(root)
    nothing = Known(real, None, _SCHEMA.empty_table())
    try:
        name = hashlib.sha256(os.fsencode(real)).hexdigest()[:32]
        file = cache_folder() / "images" / f"{name}.parquet"
    except RuntimeError:
        return nothing
    nothing = Known(real, file, nothing.table)
    try:
        status = file.stat()
    except OSError:
        return nothing
    try:
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
            raise ValueError("no file of ours")
        table = _read(file, _signature(real), if_broken=if_broken)
    except Exception as error:  # whatever a damaged file makes of the reader, it is no reason to stop
        reason = str(error).strip().splitlines()[0][:100] if str(error).strip() else type(error).__name__
        return Known(real, file, nothing.table, f"{str(file)!r} is damaged and is not used: {reason!r}")
    return nothing if table is None else Known(real, file, table)


def _read(file: Path, signature: dict[bytes, bytes], *, if_broken: bool) -> Any:
    """The table of a file; None if it was written by another version, or tells nothing that is asked.

    Raises:
        ValueError: it is not one of ours.
    """
    with pq.ParquetFile(file) as parquet:
        found = parquet.schema_arrow
        if not set(signature) <= set(found.metadata or {}) or found.remove_metadata() != _SCHEMA:
            raise ValueError("other columns")
        if parquet.metadata.num_rows > MOST_IMAGES:
            raise ValueError("too many rows")
        if any(found.metadata[key] != value for key, value in signature.items()):
            return None
        if if_broken and not any(pa_compute.unique(parquet.read(["problem"])["problem"]).to_pylist()):
            return None
        table = parquet.read().replace_schema_metadata(None)
    table.validate(full=True)
    if any(column.null_count for column in table.columns):
        raise ValueError("empty cells")
    problems = pa_compute.unique(table["problem"]).to_pylist()
    if not all(problem.isprintable() for problem in problems):
        raise ValueError("an odd problem")
    return table


def _signature(root: str) -> dict[bytes, bytes]:
    """By what a file is ours; another Pillow may read other images."""
    return {b"metricli": b"1", b"root": os.fsencode(root), b"pillow": PIL.__version__.encode()}


def _forget_oldest(folder: Path) -> None:
    with suppress(OSError):
        files = sorted(folder.glob("*.parquet"), key=lambda file: file.stat().st_mtime)
        for file in files[:-_MOST_ROOTS]:
            file.unlink(missing_ok=True)
