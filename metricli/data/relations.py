"""Checks between rows: labels over splits and categories, repeated paths, queries without a match."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from metricli.data.phrases import Rows0, counted, finding, say_rows, say_values
from metricli.data.strings import EMPTY_HASH, groups, hash_text
from metricli.data.subject import Subject
from metricli.reports import Finding

_NONE = np.empty(0, dtype=np.int64)


def check_labels(subject: Subject) -> Iterator[Finding]:
    """`single-instance-label`, `label-in-two-splits`, `label-in-two-categories`."""
    if subject.need == "predict":
        return
    numbers, bound = subject.label_groups
    codes = subject.table.split_codes
    if subject.need == "train":
        train, validation = np.flatnonzero(codes == 0), np.flatnonzero(codes == 1)
        train_numbers = numbers[train]
        instances = np.bincount(train_numbers, minlength=bound)
        yield from _single_instances(subject, train[instances[train_numbers] == 1])
        rows = validation[instances[numbers[validation]] > 0]
        if len(rows):
            labels = len(np.unique(numbers[rows]))
            what = f"{counted(labels, 'label', ('is', 'are'))} in both train and validation"
            named = say_values(rows, subject.first("label", rows))
            message = f"{what}: {named}; a closed-set protocol, which does not judge unseen labels"
            yield finding("warning", "label-in-two-splits", rows, message, count=labels)
    if subject.has("category"):
        yield from _two_categories(subject)


def _single_instances(subject: Subject, rows: Rows0) -> Iterator[Finding]:
    if len(rows):
        what = f"{counted(len(rows), 'train label', ('has', 'have'))} one image and can form no positive pair"
        message = f"{what}: {say_values(rows, subject.first('label', rows))}"
        yield finding("warning", "single-instance-label", rows, message)


def _two_categories(subject: Subject) -> Iterator[Finding]:
    numbers, bound = subject.label_groups
    categories = subject.category_hashes
    rows = np.flatnonzero(categories != EMPTY_HASH)
    first = np.empty(bound, dtype=np.uint64)
    first[numbers[rows][::-1]] = categories[rows][::-1]
    other = rows[first[numbers[rows]] != categories[rows]]
    if len(other):
        labels = len(np.unique(numbers[other]))
        what = f"{counted(labels, 'label', ('is', 'are'))} in more than one category"
        named = say_values(other, subject.first("label", other))
        message = f"{what}: {named}; give every row of a label the category of its first row"
        yield finding("warning", "label-in-two-categories", other, message, count=labels)


def check_paths_repeated(subject: Subject) -> Iterator[Finding]:
    """`duplicate-row`, `path-with-two-labels`, `path-in-two-splits`; boxes tell objects of an image apart."""
    numbers, bound = groups(hash_text(subject.column("path")))
    rows = np.flatnonzero((np.bincount(numbers, minlength=bound) > 1)[numbers])
    if not len(rows):
        return
    table = subject.table
    names = [name for name in ("path", "label", "split") if subject.has(name)]
    again = pd.DataFrame({name: table.text[name].take(rows).to_pandas() for name in names}, copy=False)
    again.index = pd.Index(rows)
    boxes = table.boxes.values
    sides = [] if boxes is None else ["left", "top", "right", "bottom"]
    for i, side in enumerate(sides):
        again[side] = boxes[rows, i]  # type: ignore[index]
    repeated = _rows(again.duplicated())
    if len(repeated):
        what = f"{counted(len(repeated), 'row', ('repeats', 'repeat'))} an earlier row"
        message = f"{what} ({say_rows(repeated)}): remove"
        yield finding("warning", "duplicate-row", repeated, message)
    if subject.need == "predict":
        return
    yield from _contradictions(subject, again, ["path", *sides], "label", "path-with-two-labels")
    yield from _contradictions(subject, again, ["path"], "split", "path-in-two-splits")


def _contradictions(
    subject: Subject, again: pd.DataFrame, keys: list[str], value: str, code: str
) -> Iterator[Finding]:
    if value not in again:
        return
    first = again.groupby(keys, sort=False)[value].transform("first")
    rows = _rows(first != again[value])
    if len(rows):
        what = f"{counted(len(rows), 'row', ('gives', 'give'))} the image of an earlier row another {value}"
        message = f"{what}: {say_values(rows, subject.first('path', rows))}"
        yield finding("warning", code, rows, message)


def _rows(mask: pd.Series[bool]) -> Rows0:
    return np.sort(mask.index[mask.to_numpy()].to_numpy(dtype=np.int64))


def check_queries(subject: Subject) -> Iterator[Finding]:
    """`no-queries`, `empty-gallery`, `query-without-match` in the judged split."""
    if subject.need == "predict" or not subject.judged.any():
        return
    table, judged = subject.table, subject.judged
    queries = np.flatnonzero(judged & (table.flags("is_query") == 1))
    is_gallery = judged & (table.flags("is_gallery") == 1)
    where = "" if subject.split == "all" else f" of {subject.split}"
    if not len(queries):
        message = f"no row{where} is a query: there will be no metrics; set is_query"
        yield finding("warning", "no-queries", _NONE, message, count=1)
    if not is_gallery.any():
        message = f"no row{where} is in the gallery: there will be no metrics; set is_gallery"
        yield finding("warning", "empty-gallery", _NONE, message, count=1)
    elif len(queries):
        sequences = hash_text(subject.column("sequence")) if subject.has("sequence") else None
        rows = unmatched(*subject.label_groups, queries, is_gallery, sequences)
        if len(rows):
            what = (
                f"{counted(len(rows), 'query', ('has', 'have'))} no match in the gallery ({say_rows(rows)})"
            )
            other = "another image of the label" + ("" if sequences is None else " from another sequence")
            message = f"{what} and will be left out of the metrics: put {other} there"
            yield finding("warning", "query-without-match", rows, message)


def unmatched(
    labels: NDArray[np.int64],
    bound: int,
    queries: Rows0,
    is_gallery: NDArray[np.bool_],
    sequences: NDArray[np.uint64] | None,
) -> Rows0:
    """Queries with no gallery row of their label but themselves and those of their sequence.

    Args:
        labels: (N,) a number below `bound` for each row's label.
        bound: see `labels`.
        queries: rows that are queries.
        is_gallery: (N,) rows that are in the gallery.
        sequences: (N,) hash of each row's sequence, `EMPTY_HASH` for none (which excludes nothing), or None.
    """
    gallery = np.flatnonzero(is_gallery)
    matches = np.bincount(labels[gallery], minlength=bound)[labels[queries]]
    excluded = is_gallery[queries].astype(np.int64)
    if sequences is not None:
        excluded = np.maximum(excluded, _of_same_sequence(labels, queries, gallery, sequences, matches))
    return queries[matches <= excluded]


def _of_same_sequence(
    labels: Any, queries: Rows0, gallery: Rows0, sequences: Any, matches: Any
) -> NDArray[np.int64]:
    """For each query, gallery rows (itself too) of its label and sequence; 0 where it has no sequence."""
    counts = np.zeros(len(queries), dtype=np.int64)
    asking = np.flatnonzero((sequences[queries] != EMPTY_HASH) & (matches > 0))
    if not len(asking):
        return counts
    rows = np.concatenate([gallery, queries[asking]])
    mixed = labels[rows].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) ^ sequences[rows]
    numbers, bound = groups(mixed)
    tracks = np.bincount(numbers[: len(gallery)], minlength=bound)
    counts[asking] = tracks[numbers[len(gallery) :]]
    return counts
