"""Checks between rows: labels over splits and categories, repeated paths, queries without a match."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from metricli.data.phrases import Rows0, Said, Tally, counted, finding, say_rows, say_values, show
from metricli.data.repeated import later_rows
from metricli.data.strings import EMPTY_HASH, Chunk, hash_chunk, hash_tails, hash_text, mix, repeats
from metricli.data.subject import Subject
from metricli.reports import Finding

_NONE = np.empty(0, dtype=np.int64)


def check_labels(subject: Subject) -> Iterator[Finding]:
    """`one-train-label`, `single-instance-label`, `label-in-two-splits`, `label-in-two-categories`."""
    if subject.need == "predict":
        return
    numbers, bound = subject.label_groups
    codes = subject.table.split_codes
    if subject.need == "train":
        train, validation = np.flatnonzero(codes == 0), np.flatnonzero(codes == 1)
        train_numbers = numbers[train]
        instances = np.bincount(train_numbers, minlength=bound)
        if np.count_nonzero(instances) == 1:
            message = f"all train rows have one label, {_first_label(subject, train)}: training needs two"
            yield finding("error", "one-train-label", _NONE, message, count=1)
        yield from _single_instances(subject, train[np.flatnonzero((instances == 1)[train_numbers])])
        rows = validation[np.flatnonzero((instances > 0)[numbers[validation]])]
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
    if len(rows) < len(categories):
        numbers, categories = numbers[rows], categories[rows]
    first = np.empty(bound, dtype=np.uint64)
    first[numbers[::-1]] = categories[::-1]
    places = np.flatnonzero(first[numbers] != categories)
    other = rows[places]
    if len(other):
        labels = len(np.unique(numbers[places]))
        what = f"{counted(labels, 'label', ('is', 'are'))} in more than one category"
        named = say_values(other, subject.first("label", other))
        message = f"{what}: {named}; give every row of a label the category of its first row"
        yield finding("warning", "label-in-two-categories", other, message, count=labels)


def check_paths_repeated(subject: Subject) -> Iterator[Finding]:
    """`duplicate-row`, `query-finds-itself`, `path-with-two-labels`, `path-in-two-splits`.

    Boxes tell objects of an image apart.
    """
    column = subject.column("path")
    if subject.need == "predict":
        yield from _predicted_again(subject)
        return
    rows = repeats(hash_tails(column))
    if len(rows):
        rows = rows[repeats(hash_text(column)[rows])]
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
    yield from _duplicates(_rows(again.duplicated()))
    yield from _finds_itself(subject, again, ["path", *sides])
    yield from _contradictions(subject, again, ["path", *sides], "label", "path-with-two-labels")
    yield from _contradictions(subject, again, ["path"], "split", "path-in-two-splits")


def _duplicates(repeated: Said) -> Iterator[Finding]:
    if len(repeated):
        what = f"{counted(len(repeated), 'row', ('repeats', 'repeat'))} an earlier row"
        message = f"{what} ({say_rows(repeated)}): remove"
        yield finding("warning", "duplicate-row", repeated, message)


def _predicted_again(subject: Subject) -> Iterator[Finding]:
    """`duplicate-row` by the hashes of paths and boxes alone, for tables of any length."""
    boxes = subject.table.boxes.values

    def hashes(start: int, chunk: Chunk) -> NDArray[np.uint64]:
        found = hash_chunk(chunk)
        if boxes is not None:
            sides = boxes[start : start + len(found)].astype(np.int64).view(np.uint64)
            for side in range(4):
                found = mix(found, sides[:, side].copy())
        return found

    repeated = Tally()
    for rows in later_rows(subject.column("path"), hashes):
        repeated.add(rows)
    yield from _duplicates(repeated)


def _finds_itself(subject: Subject, again: pd.DataFrame, keys: list[str]) -> Iterator[Finding]:
    rows = again.index.to_numpy()
    rows = rows[subject.judged[rows]]
    found = again.loc[rows, keys]
    query, gallery = (subject.table.flags(name)[rows] == 1 for name in ("is_query", "is_gallery"))
    found["sequence"] = hash_text(subject.column("sequence"))[rows] if subject.has("sequence") else EMPTY_HASH
    finds = np.zeros(len(rows), dtype=bool)
    # Two rows with both flags true are one too many, and a `duplicate-row`.
    for asks, offered in ((query & ~gallery, gallery), (query & gallery, gallery & ~query)):
        found["offered"] = offered
        there = found.groupby(keys)["offered"].transform("sum")
        excluded = found.groupby([*keys, "sequence"])["offered"].transform("sum")
        finds |= asks & (there > excluded.where(found["sequence"] != EMPTY_HASH, 0)).to_numpy()
    rows = rows[finds]
    if len(rows):
        what = (
            f"{counted(len(rows), 'query', ('finds its own image', 'find their own images'))} in the gallery"
        )
        message = f"{what} ({say_rows(rows)}): use one row with both flags true"
        yield finding("warning", "query-finds-itself", rows, message)


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
    """`no-queries`, `empty-gallery`, `one-label-gallery`, `query-without-match` in the judged split."""
    if subject.need == "predict" or not subject.judged.any():
        return
    table, judged = subject.table, subject.judged
    queries = np.flatnonzero(judged & (table.flags("is_query") == 1))
    is_gallery = judged & (table.flags("is_gallery") == 1)
    where = "" if subject.split == "all" else f" of {subject.split}"
    if not len(queries):
        message = f"no row{where} is a query: there would be no metrics; set is_query"
        yield finding("error", "no-queries", _NONE, message, count=1)
    if not is_gallery.any():
        message = f"no row{where} is in the gallery: there would be no metrics; set is_gallery"
        yield finding("error", "empty-gallery", _NONE, message, count=1)
    elif len(queries):
        yield from _one_label(subject, queries, np.flatnonzero(is_gallery), where)
        sequences = hash_text(subject.column("sequence")) if subject.has("sequence") else None
        rows = unmatched(*subject.label_groups, queries, is_gallery, sequences)
        if len(rows):
            what = (
                f"{counted(len(rows), 'query', ('has', 'have'))} no match in the gallery ({say_rows(rows)})"
            )
            other = "another image of the label" + ("" if sequences is None else " from another sequence")
            message = f"{what}, see validation.unmatched: put {other} there"
            yield finding("warning", "query-without-match", rows, message)


def _one_label(subject: Subject, queries: Rows0, gallery: Rows0, where: str) -> Iterator[Finding]:
    numbers, _ = subject.label_groups
    label = numbers[gallery[0]]
    if (numbers[queries] == label).any() and (numbers[gallery] == label).all():
        what = f"the whole gallery{where} has one label, {_first_label(subject, gallery)}"
        message = f"{what}, so that no ranking can be wrong: put images of other labels there"
        yield finding("warning", "one-label-gallery", _NONE, message, count=1)


def _first_label(subject: Subject, rows: Rows0) -> str:
    return show(subject.first("label", rows[:1])[0])


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
    # Indexing by row numbers is several times quicker than by a mask.
    gallery = np.flatnonzero(is_gallery)
    asked, offered = labels[queries], labels[gallery]
    matches = np.bincount(offered, minlength=bound)[asked]
    without = matches <= is_gallery[queries]
    if sequences is not None:
        # Of one sequence with all of its label's gallery, a query finds nothing.
        own, theirs = sequences[queries], sequences[gallery]
        some = np.empty(bound, dtype=np.uint64)
        some[offered] = theirs
        several = np.zeros(bound, dtype=bool)
        several[offered[np.flatnonzero(some[offered] != theirs)]] = True
        without |= (own != EMPTY_HASH) & (matches > 0) & (some[asked] == own) & ~several[asked]
    return queries[np.flatnonzero(without)]
