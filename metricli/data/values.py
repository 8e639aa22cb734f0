"""Checks of single cells: splits, flags, boxes, categories, empty text, unknown columns."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from metricli.data.phrases import counted, finding, say_rows, say_values, show
from metricli.data.reading import BOX_COLUMNS, COLUMNS, nearest
from metricli.data.strings import EMPTY_HASH, empty_rows, hash_text, spaced_rows, values_at
from metricli.data.subject import Subject
from metricli.data.table import FLAG_BAD, FLAG_EMPTY
from metricli.reports import OVERALL, Finding

_HAVE = ("has", "have")
_TRAIN_SPLITS = ("train", "validation")
_NONE = np.empty(0, dtype=np.int64)


def check_columns(subject: Subject) -> Iterator[Finding]:
    """`unknown-column`, with the known one it may be meant to be."""
    header = subject.table.header
    unknown = [name for name in dict.fromkeys(header) if name not in COLUMNS]
    if not unknown:
        return
    missing = [name for name in COLUMNS if name not in header]
    said = []
    for name in unknown[: Finding.MAX_ROWS]:
        close = nearest(name, missing)
        said.append(show(name) + (f" (did you mean {close!r}?)" if close else ""))
    more = f" and {len(unknown) - len(said)} more" if len(unknown) > len(said) else ""
    message = f"{counted(len(unknown), 'column', ('is', 'are'))} not used: {', '.join(said)}{more}"
    yield finding("warning", "unknown-column", _NONE, message, count=len(unknown))


def check_texts(subject: Subject) -> Iterator[Finding]:
    """`empty-path` and, unless only predicting, `empty-label` and `outer-space`."""
    names = ("path",) if subject.need == "predict" else ("path", "label")
    for name in names:
        rows = empty_rows(subject.column(name))
        if len(rows):
            message = f"{counted(len(rows), 'row', _HAVE)} no {name} ({say_rows(rows)}): fill in or remove"
            yield finding("error", f"empty-{name}", rows, message)
    if subject.need != "predict":
        yield from _outer_spaces(subject)


def _outer_spaces(subject: Subject) -> Iterator[Finding]:
    of_name = {name: spaced_rows(subject.column(name)) for name in ("label", "category") if subject.has(name)}
    rows = np.unique(np.concatenate(list(of_name.values())))
    if len(rows):
        said = [
            f"{name} {say_values(at, subject.first(name, at))}" for name, at in of_name.items() if len(at)
        ]
        what = f"{counted(len(rows), 'row', _HAVE)} a label or category with outer spaces: {'; '.join(said)}"
        message = f"{what}; with and without them are two names: remove them"
        yield finding("warning", "outer-space", rows, message)


def check_splits(subject: Subject) -> Iterator[Finding]:
    """`bad-split`, `no-train-rows`, `no-validation-rows` for training; `no-such-split` for evaluating."""
    if subject.need == "train":
        yield from _training_splits(subject)
    elif subject.need == "evaluate":
        rows = empty_rows(subject.column("split"))
        if len(rows):
            message = f"{counted(len(rows), 'row', _HAVE)} no split ({say_rows(rows)}): fill in or remove"
            yield finding("error", "bad-split", rows, message)
        if not subject.judged.any():
            found = [str(word) for word in subject.table.codes("split")[1]]
            message = f"no row has the split {subject.split!r}; found {', '.join(map(show, found[:10]))}"
            yield finding("error", "no-such-split", _NONE, message, count=1)


def _training_splits(subject: Subject) -> Iterator[Finding]:
    codes = subject.table.split_codes
    rows = np.flatnonzero(codes < 0)
    if len(rows):
        values = subject.first("split", rows)
        hints = [
            f"{show(word)} may be meant as {close!r}"
            for word in dict.fromkeys(values)
            if (close := _meant(word))
        ]
        hint = ", ".join(hints) or "rename them, or leave these rows out"
        neither = "a split that is neither 'train' nor 'validation'"
        message = f"{counted(len(rows), 'row', _HAVE)} {neither}: {say_values(rows, values)}; {hint}"
        yield finding("error", "bad-split", rows, message)
    if not (codes == 0).any():
        yield finding(
            "error", "no-train-rows", _NONE, "no row has the split 'train': nothing to train on", count=1
        )
    if not (codes == 1).any():
        message = "no row has the split 'validation': the last epoch will be taken as the best, unjudged"
        yield finding("warning", "no-validation-rows", _NONE, message, count=1)


def _meant(word: str) -> str | None:
    if word.strip().lower() in ("val", "valid", "dev"):
        return "validation"
    return nearest(word, _TRAIN_SPLITS)


def check_flags(subject: Subject) -> Iterator[Finding]:
    """`bad-flag`, `flags-missing`, `flags-on-train`, `ignored-row`, `unused-row`."""
    if subject.need == "predict":
        return
    table = subject.table
    query, gallery = table.flags("is_query"), table.flags("is_gallery")
    for name in ("is_query", "is_gallery", "ignore"):
        rows = np.flatnonzero(table.flags(name) == FLAG_BAD)
        if len(rows):
            what = f"{counted(len(rows), 'row', _HAVE)} an {name} that is neither true nor false"
            message = (
                f"{what}: {say_values(rows, subject.first(name, rows))}; write true, false, 1, 0 or nothing"
            )
            yield finding("error", "bad-flag", rows, message)
    judged = subject.judged
    rows = np.flatnonzero(judged & (query == FLAG_EMPTY) & (gallery == FLAG_EMPTY))
    if len(rows):
        what = f"{counted(len(rows), f'{_adjective(subject)}row', _HAVE)} neither is_query nor is_gallery"
        message = f"{what} ({say_rows(rows)}): set both true for one-versus-rest"
        yield finding("error", "flags-missing", rows, message)
    rows = np.flatnonzero(judged & (query <= 0) & (gallery <= 0) & (query + gallery > -2))
    if len(rows):
        what = f"{counted(len(rows), f'{_adjective(subject)}row', ('is', 'are'))} neither query nor gallery"
        yield finding(
            "warning", "unused-row", rows, f"{what} ({say_rows(rows)}): nothing will be asked of them"
        )
    if subject.has("ignore"):
        yield from _ignored(subject)
    if subject.need == "train":
        rows = np.flatnonzero((table.split_codes == 0) & ((query > FLAG_EMPTY) | (gallery > FLAG_EMPTY)))
        if len(rows):
            what = f"{counted(len(rows), 'train row', _HAVE)} is_query or is_gallery set"
            yield finding(
                "warning", "flags-on-train", rows, f"{what} ({say_rows(rows)}): they are not used there"
            )


def _ignored(subject: Subject) -> Iterator[Finding]:
    ignored = subject.table.ignored
    rows = np.flatnonzero(ignored & subject.table.in_split(subject.split))
    if len(rows):
        what = f"{counted(len(rows), f'{_adjective(subject)}row', ('is', 'are'))} ignored ({say_rows(rows)})"
        yield finding("warning", "ignored-row", rows, f"{what}: neither asked for nor found")
    rows = np.flatnonzero(ignored & (subject.table.split_codes == 0))
    if len(rows) and subject.need == "train":
        what = f"{counted(len(rows), 'train row', _HAVE)} ignore set ({say_rows(rows)})"
        does = "it concerns evaluation alone, and they are trained on; take them out if they are bad"
        message = f"{what}: {does}"
        yield finding("warning", "flags-on-train", rows, message)


def _adjective(subject: Subject) -> str:
    return "" if subject.split == "all" else f"{subject.split} "


def check_categories(subject: Subject) -> Iterator[Finding]:
    """`reserved-category` and `no-category` (a row without, where others have one)."""
    if subject.need == "predict" or not subject.has("category"):
        return
    hashes = subject.category_hashes
    empty = hashes == EMPTY_HASH
    if empty.any() and not empty.all():
        rows = np.flatnonzero(empty)
        message = f"{counted(len(rows), 'row', _HAVE)} no category ({say_rows(rows)}), others have"
        yield finding("warning", "no-category", rows, message)
    rows = np.flatnonzero(hashes == hash_text(pa.chunked_array([[OVERALL]]))[0])
    if len(rows):
        taken = f"the category {OVERALL!r}, which is the name of the whole"
        message = f"{counted(len(rows), 'row', _HAVE)} {taken} ({say_rows(rows)}): rename it"
        yield finding("error", "reserved-category", rows, message)


def check_boxes(subject: Subject) -> Iterator[Finding]:
    """`partial-box` and `bad-box`."""
    boxes = subject.table.boxes
    if len(boxes.partial):
        what = f"{counted(len(boxes.partial), 'row', _HAVE)} a part of a box ({say_rows(boxes.partial)})"
        message = f"{what}: give x_1, x_2, y_1 and y_2, or none of them"
        yield finding("error", "partial-box", boxes.partial, message)
    if len(boxes.wrong):
        shown = boxes.wrong[: Finding.MAX_ROWS]
        sides = [values_at(subject.column(name), shown) for name in BOX_COLUMNS]
        values = [", ".join(box) for box in zip(*sides, strict=True)]
        what = (
            f"{counted(len(boxes.wrong), 'row', _HAVE)} a box that is none: {say_values(boxes.wrong, values)}"
        )
        message = f"{what}; expected whole pixels x_1, y_1, x_2, y_2 with 0 <= x_1 < x_2 and 0 <= y_1 < y_2"
        yield finding("error", "bad-box", boxes.wrong, message)
