"""The table: one row an image, read as text, with the arrays that samplers, datasets and checks need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pa_compute
from numpy.typing import NDArray

from metricli.data.boxes import Boxes
from metricli.data.facts import TableFacts
from metricli.data.folders import list_images
from metricli.data.kind import named
from metricli.data.opening import IMAGE_SUFFIXES
from metricli.data.phrases import show
from metricli.data.reading import BOX_COLUMNS, COLUMNS, nearest, read_columns
from metricli.data.strings import match_words
from metricli.data.texts import Texts
from metricli.errors import DataError

Need = Literal["train", "evaluate", "predict"]

REQUIRED: dict[str, tuple[str, ...]] = {
    "train": ("label", "path", "split"),
    "evaluate": ("label", "path", "split", "is_query", "is_gallery"),
    "predict": ("path",),
}
_OF_PREDICTING = ("path", "label", "split", *BOX_COLUMNS)
"""The columns that predicting has a use for; ten million rows of others are not kept."""
_FLAGS = ("", "True", "False", "true", "false", "TRUE", "FALSE", "1", "0", "1.0", "0.0")
_FLAG_VALUES = np.array([-1, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, -2], dtype=np.int8)
FLAG_EMPTY, FLAG_BAD = -1, -2
_SHOWN = 50
"""Columns of a header that an error names, and looks for misspelt ones in."""


@dataclass(frozen=True, eq=False)
class Rows:
    """One split of a table, in table order; N rows, whose columns are made when asked for.

    Predicting asks for paths and labels a few at a time, and so takes no memory but the table's.
    """

    table: Table = field(repr=False)
    places: NDArray[np.int64] | None = None
    """(N,) 0-based rows of the table; None for all."""

    def __len__(self) -> int:
        return len(self.table) if self.places is None else len(self.places)

    @property
    def root(self) -> Path:
        """Where relative paths start."""
        return self.table.root

    @cached_property
    def index(self) -> NDArray[np.int64]:
        """(N,) 0-based rows of the table."""
        return np.arange(len(self)) if self.places is None else self.places

    @cached_property
    def paths(self) -> Texts:
        """(N,) as written."""
        return self.table.texts("path", self.places)

    @cached_property
    def labels(self) -> Texts:
        """(N,) as written, "" without a column."""
        return self.table.texts("label", self.places)

    @cached_property
    def categories(self) -> NDArray[Any]:
        """(N,) str, "" for none."""
        categories: NDArray[Any] = self._taken(self.table.strings("category"))
        return categories

    @cached_property
    def sequences(self) -> NDArray[Any]:
        """(N,) str, "" for none."""
        sequences: NDArray[Any] = self._taken(self.table.strings("sequence"))
        return sequences

    @cached_property
    def is_query(self) -> NDArray[np.bool_]:
        """(N,) false on ignored rows."""
        asked: NDArray[np.bool_] = self._taken(self.table.flags("is_query")) == 1
        return asked & ~self.ignored

    @cached_property
    def is_gallery(self) -> NDArray[np.bool_]:
        """(N,) false on ignored rows."""
        offered: NDArray[np.bool_] = self._taken(self.table.flags("is_gallery")) == 1
        return offered & ~self.ignored

    @cached_property
    def ignored(self) -> NDArray[np.bool_]:
        """(N,) junk: neither judged nor found."""
        ignored: NDArray[np.bool_] = self._taken(self.table.ignored)
        return ignored

    @cached_property
    def boxes(self) -> NDArray[np.int32] | None:
        """(N, 4) left, top, right, bottom in pixels, -1 for none; None if no row of the table has a box."""
        boxes = self.table.boxes.values
        return None if boxes is None else self._taken(boxes)

    def _taken(self, column: NDArray[Any]) -> Any:
        return column if self.places is None else column[self.places]


@dataclass(frozen=True, eq=False)
class Table:
    """A table in memory; `text` holds every known column as written, the rest is derived when asked for."""

    source: Path
    """The CSV or parquet file, or the folder."""
    root: Path
    """Where relative paths start."""
    header: tuple[str, ...]
    """Every column of the file, in its order."""
    text: dict[str, Any] = field(repr=False)
    """Known column -> chunked array of strings; a column that the file lacks is not in it."""
    rows: int
    files_are_there: bool = False
    """Every path was listed just now and is no link, so that no file has to be looked for."""

    @property
    def columns(self) -> frozenset[str]:
        """The columns that the file really had."""
        return frozenset(self.header)

    def __len__(self) -> int:
        return self.rows

    def texts(self, name: str, places: NDArray[np.int64] | None = None) -> Texts:
        """A text column at some rows, or all, with no Python string for each; "" where the file has none."""
        return Texts(self._text(name), self.rows, places, repeated=name != "path")

    def strings(self, name: str) -> NDArray[Any]:
        """A text column (N,) as Python strings, equal ones shared; "" where the file has none."""
        if name == "path":
            return np.asarray(self.texts(name))
        codes, words = self.codes(name)
        return words[codes]

    def _text(self, name: str) -> Any:
        """A column, or None where the file has none."""
        if name in self.header and name not in self.text:
            raise LookupError(f"the column {name!r} was not read, because predicting has no use for it")
        return self.text.get(name)

    def codes(self, name: str) -> tuple[NDArray[np.int32], NDArray[Any]]:
        """A text column as (N,) places in its distinct words, which stand in order of first appearance."""
        cache = self._codes
        if name not in cache:
            column = self._text(name)
            if column is not None:
                coded = column.dictionary_encode().combine_chunks()
                words = np.array(coded.dictionary.to_pylist(), dtype=object)
                cache[name] = (coded.indices.to_numpy(zero_copy_only=False), words)
            else:
                cache[name] = (np.zeros(self.rows, dtype=np.int32), np.array([""], dtype=object))
        return cache[name]

    @cached_property
    def _codes(self) -> dict[str, tuple[NDArray[np.int32], NDArray[Any]]]:
        return {}

    @cached_property
    def _flags(self) -> dict[str, NDArray[np.int8]]:
        return {}

    def flags(self, name: str) -> NDArray[np.int8]:
        """A column of flags (N,): 1 true, 0 false, `FLAG_EMPTY`, or `FLAG_BAD` for other words."""
        if name not in self._flags:
            column = self._text(name)
            if column is not None:
                self._flags[name] = _FLAG_VALUES[match_words(column, _FLAGS)]
            else:
                self._flags[name] = np.full(self.rows, FLAG_EMPTY, dtype=np.int8)
        return self._flags[name]

    @cached_property
    def ignored(self) -> NDArray[np.bool_]:
        """(N,) rows that are junk: evaluation neither asks for them nor finds them."""
        ignored: NDArray[np.bool_] = self.flags("ignore") == 1
        return ignored

    @cached_property
    def boxes(self) -> Boxes:
        """The box columns, parsed."""
        return Boxes.parse([self.text.get(name) for name in BOX_COLUMNS], self.rows)

    @cached_property
    def split_codes(self) -> NDArray[np.int8]:
        """(N,) 0 on train rows, 1 on validation rows, -1 on all others."""
        if "split" not in self.text:
            return np.full(self.rows, -1, dtype=np.int8)
        return match_words(self.text["split"], ("train", "validation"))

    def in_split(self, name: str) -> NDArray[np.bool_]:
        """(N,) whether a row is of this split; "all" is every row."""
        if name == "all":
            return np.ones(self.rows, dtype=bool)
        if name in ("train", "validation"):
            known: NDArray[np.bool_] = self.split_codes == ("train", "validation").index(name)
            return known
        if "split" not in self.text:
            return np.full(self.rows, name == "", dtype=bool)
        inside: NDArray[np.bool_] = pa_compute.equal(self.text["split"], name).to_numpy()
        return inside

    def split(self, name: str) -> Rows:
        """The rows of one split ("all" for every row), in table order; 0 rows if none."""
        return Rows(self, None if name == "all" else np.flatnonzero(self.in_split(name)))

    def facts(self, split: str = "validation") -> TableFacts:
        """What a plugin's spec check may know of this table, `split` being judged; see `TableFacts`."""
        train, judged = self.in_split("train"), self.in_split(split)
        both = (self.flags("is_query") == 1) & (self.flags("is_gallery") == 1) & judged & ~self.ignored
        labels, label_words = self.codes("label")
        categories, category_words = self.codes("category")
        labels, categories = labels[train], categories[train]
        instances = np.bincount(labels, minlength=1)
        present = np.flatnonzero(instances)
        instances = instances[present]
        sizes, of_size = np.unique(instances, return_counts=True)
        named = category_words != ""
        has_category = named[categories]
        pairs = np.unique(labels[has_category].astype(np.int64) << 32 | categories[has_category])
        of_label, how_many = np.unique(pairs >> 32, return_counts=True)
        return TableFacts(
            rows=self.rows,
            train_rows=int(train.sum()),
            train_labels=len(instances),
            validation_rows=int(judged.sum()),
            train_categories=len(np.unique(categories[has_category])),
            instances_min=int(instances.min()) if len(instances) else 0,
            instances_median=float(np.median(instances)) if len(instances) else 0.0,
            instances_max=int(instances.max()) if len(instances) else 0,
            labels_with_one_instance=int((instances == 1).sum()),
            labels_in_two_categories=[str(word) for word in label_words[of_label[how_many > 1]][:10]],
            uncategorised_labels=len(np.unique(labels[~has_category])),
            queries_in_gallery=int(both.sum()),
            labels_of_size=dict(zip(sizes.tolist(), of_size.tolist(), strict=True)),
            smallest_labels=label_words[present[instances.argsort(kind="stable")[:3]]].tolist(),
        )


def read_table(path: str | Path, *, root: str | Path | None = None, need: Need = "train") -> Table:
    """Read a CSV or parquet table; `root` (where relative paths start) defaults to the table's folder.

    What is wrong with its rows is for `check_table` to say.

    Raises:
        DataError: the file is missing or unreadable, has no rows, or lacks a column that `need` requires.
    """
    source = Path(path)
    header, text = read_columns(source, _OF_PREDICTING if need == "predict" else COLUMNS)
    missing = [name for name in REQUIRED[need] if name not in header]
    if missing:
        raise _missing_columns(source, header, missing)
    rows = len(text["path"])
    return Table(source, source.parent if root is None else Path(root), tuple(header), text, rows)


def _missing_columns(source: Path, header: Sequence[str], missing: Sequence[str]) -> DataError:
    unknown = [name for name in header if name not in COLUMNS][:_SHOWN]
    renames = [(nearest(name, unknown), name) for name in missing]
    hints = [f"rename {close!r} to {name!r}" for close, name in renames if close]
    names, found = ", ".join(map(repr, missing)), ", ".join(map(show, header[:_SHOWN]))
    found += f" and {len(header) - _SHOWN} more" if len(header) > _SHOWN else ""
    noun = "column" if len(missing) == 1 else "columns"
    message = f"{named(source)} has no {noun} {names}; found {found}"
    return DataError(message, hint=", ".join(hints) or f"add {'it' if len(missing) == 1 else 'them'}")


def folder_table(folder: str | Path) -> tuple[Table, dict[str, int]]:
    """Every image below a folder as a table with only `path`, and how many files of each other suffix.

    Paths are relative, with forward slashes, sorted as text. Linked folders are not entered.

    Raises:
        DataError: no such folder, no images in it, or a folder in it that cannot be read.
    """
    root = Path(folder)
    if not root.is_dir():
        what = "is a file, expected a folder of images" if root.exists() else "does not exist"
        raise DataError(f"{named(root)} {what}", hint="check the path")
    listing = list_images(root)
    column, others = listing.paths, listing.others
    if not len(column):
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"no images in {named(root)}", hint=f"expected files ending in {kinds}")
    return Table(root, root, ("path",), {"path": column}, len(column), not listing.has_links), others
