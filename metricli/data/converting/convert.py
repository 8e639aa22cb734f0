"""From annotations to a table: images looked for, boxes made whole, counts compared with the published."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from metricli.data.converting.annotations import Annotation
from metricli.data.converting.cars196 import read_cars196
from metricli.data.converting.cub200 import read_cub200
from metricli.data.converting.inshop import read_inshop
from metricli.data.converting.sop import read_sop
from metricli.data.images import read_header
from metricli.data.kind import named
from metricli.data.phrases import counted, show
from metricli.data.reading import nearest
from metricli.data.writing import Row, path_prefix, require_new, write_table
from metricli.errors import DataError, UsageError
from metricli.reports import Report

__all__ = ["DATA_SETS", "ConvertReport", "DataSet", "convert"]

_THREADS = 8
"""Readers of image headers; most of their time is waiting for the disk."""

Counts = dict[str, int]
"""What is counted -> how many."""


class Read(Protocol):
    """Reads the annotations of one data set."""

    def __call__(self, root: Path, split: str, *, boxes: bool) -> Iterator[Annotation]: ...


@dataclass(frozen=True)
class DataSet:
    """How one data set is read, and what is published of it."""

    read: Read
    published: Mapping[str, Counts]
    """Split -> counts."""
    has_boxes: bool = True


def _counts(train: int, train_labels: int, judged: int, judged_labels: int, **others: int) -> Counts:
    return {
        "train images": train,
        "train labels": train_labels,
        "validation images": judged,
        "validation labels": judged_labels,
        "queries": others.get("queries", judged),
        "gallery": others.get("gallery", judged),
    }


DATA_SETS: dict[str, DataSet] = {
    "cars196": DataSet(
        read_cars196, {"paper": _counts(8054, 98, 8131, 98), "oml": _counts(8144, 196, 8041, 196)}
    ),
    "cub200": DataSet(
        read_cub200, {"paper": _counts(5864, 100, 5924, 100), "oml": _counts(5994, 200, 5794, 200)}
    ),
    "sop": DataSet(read_sop, {"paper": _counts(59551, 11318, 60502, 11316)}, has_boxes=False),
    "inshop": DataSet(
        read_inshop, {"paper": _counts(25882, 3997, 26830, 3985, queries=14218, gallery=12612)}
    ),
}


@dataclass(frozen=True)
class ConvertReport(Report):
    """A table that was written."""

    data_set: str
    split: str
    table: str
    root: str | None
    """Where its paths start; None: at the table's own folder."""
    counts: Counts
    published: Counts
    differences: list[str] = field(default_factory=list)
    """Where the counts are not the published ones."""
    notes: list[str] = field(default_factory=list)


def convert(
    name: str,
    source: Path,
    table: Path,
    *,
    split: str = "paper",
    boxes: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> ConvertReport:
    """Write the table of a published data set.

    Args:
        name: one of `DATA_SETS`.
        source: the folder that its archive was unpacked to.
        table: the CSV to write; it must not exist.
        split: `paper`, the one of the metric-learning papers, or `oml`, that of OML.
        boxes: also write the boxes, to which training and validation then crop.
        on_progress: called with images whose size was read for their box, and all.

    Raises:
        UsageError: no such data set, split or boxes, or the table exists.
        DataError: annotations are missing or damaged, or an image of theirs is missing.
        ResourceError: the table cannot be written.
    """
    data_set = _known(name, split, boxes)
    require_new(table, "--out")
    if not source.is_dir():
        raise DataError(f"no folder {named(source)!r}", hint="give the folder of the unpacked archive")
    found = list(data_set.read(source, split, boxes=boxes))
    _require_images(source, found)
    notes: list[str] = []
    whole = _whole_boxes(source, found, notes, on_progress) if boxes else [None] * len(found)
    prefix = path_prefix(source, table)
    rows = [
        Row(each.label, (prefix or "") + each.path, *each[2:6], box)
        for each, box in zip(found, whole, strict=True)
    ]
    write_table(table, rows)
    counts, published = _count(rows), data_set.published[split]
    differences = [
        f"{what}: {counts[what]:,}, published {number:,}"
        for what, number in published.items()
        if counts[what] != number
    ]
    root = None if prefix is not None else str(source)
    return ConvertReport(name, split, str(table), root, counts, published, differences, notes)


def _known(name: str, split: str, boxes: bool) -> DataSet:
    if name not in DATA_SETS:
        near = nearest(name, DATA_SETS)
        hint = f"did you mean {near!r}?" if near else ""
        raise UsageError(f"no converter for {name!r}; data sets: {', '.join(DATA_SETS)}", hint=hint)
    data_set = DATA_SETS[name]
    if split not in data_set.published:
        known = ", ".join(data_set.published)
        raise UsageError(f"{name} has no split {split!r}; known: {known}")
    if boxes and not data_set.has_boxes:
        raise UsageError(f"{name} has no boxes", hint="leave --boxes away")
    return data_set


def _require_images(source: Path, found: Sequence[Annotation]) -> None:
    if not found:
        raise DataError(f"the annotations in {named(source)!r} name no image", hint="unpack them again")
    missing = [each.path for each in found if not os.path.isfile(source / each.path)]
    if missing:
        what = f"{len(missing):,} of {len(found):,} images are not there, the first {show(missing[0])}"
        raise DataError(f"{named(source)!r}: {what}", hint="unpack the images there too")


def _whole_boxes(
    source: Path,
    found: Sequence[Annotation],
    notes: list[str],
    on_progress: Callable[[int, int], None] | None,
) -> list[tuple[int, int, int, int] | None]:
    """Boxes in whole pixels that cover what is annotated, cut at the edges of their images."""
    boxes: list[tuple[int, int, int, int] | None] = []
    cut = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = pool.map(lambda each: _size(source / each.path), found)
        for each, (width, height) in zip(found, sizes, strict=True):
            left, top, right, bottom = each.box or (0.0, 0.0, float(width), float(height))
            if not all(map(math.isfinite, (left, top, right, bottom))):
                raise DataError(f"the box of {show(each.path)} is {each.box}", hint="unpack the boxes again")
            wanted = (math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom))
            box = (max(wanted[0], 0), max(wanted[1], 0), min(wanted[2], width), min(wanted[3], height))
            cut += box != wanted
            boxes.append(box if box[0] < box[2] and box[1] < box[3] else None)
            if on_progress is not None and len(boxes) % 500 == 0:
                on_progress(len(boxes), len(found))
    if cut:
        notes.append(
            f"{counted(cut, 'box')} reached outside the image and {'was' if cut == 1 else 'were'} cut"
        )
    if lost := sum(box is None for box in boxes):
        notes.append(f"{counted(lost, 'image')} without a box, for theirs lies outside or is empty")
    return boxes


def _size(path: Path) -> tuple[int, int]:
    width, height, _ = read_header(path)
    return width, height


def _count(rows: Sequence[Row]) -> Counts:
    of_split = {name: [row for row in rows if row.split == name] for name in ("train", "validation")}
    train, judged = of_split["train"], of_split["validation"]
    return _counts(
        len(train),
        len({row.label for row in train}),
        len(judged),
        len({row.label for row in judged}),
        queries=sum(row.is_query is True for row in judged),
        gallery=sum(row.is_gallery is True for row in judged),
    )
