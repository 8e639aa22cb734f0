"""Image files themselves: sizes from their headers, or all of them decoded and compared."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from metricli.data.files import distinct_paths
from metricli.data.looking import Images, Seen, look
from metricli.data.phrases import Rows0, counted, finding, say_values
from metricli.data.subject import Subject
from metricli.reports import Finding

SAMPLE = 2000
"""Without `deep`, at most so many headers are read, spread over the table."""


@dataclass(frozen=True)
class ImagesReport:
    """What was seen of them."""

    summary: dict[str, Any]
    findings: list[Finding]


def look_at_images(subject: Subject, how: Images) -> ImagesReport:
    """Sizes, formats, and the findings `unreadable-file`, `box-outside-image`, `identical-files` and
    `cache-not-used` (only deep).

    Files that are missing are left to `check_files`.
    """
    codes, words = distinct_paths(subject)
    chosen = _chosen(len(words), how.deep)
    root = subject.table.root
    there = [int(place) for place in chosen if words[place] and os.path.isfile(root / words[place])]
    looked = look(root, words, there, how)
    seen = looked.seen
    sound = {place: image for place, image in seen.items() if not image.problem}
    findings = [*_unreadable(seen, codes), *_boxes_outside(subject, sound, codes)]
    if how.deep:
        findings += _identical(subject, sound, codes)
    for note in looked.notes:
        findings.append(finding("warning", "cache-not-used", np.empty(0, dtype=np.int64), note, count=1))
    return ImagesReport(_summary(sound, len(words)), findings)


def _chosen(count: int, deep: bool) -> NDArray[np.int64]:
    if deep or count <= SAMPLE:
        return np.arange(count)
    return np.linspace(0, count - 1, SAMPLE).astype(np.int64)


def _summary(sound: dict[int, Seen], images: int) -> dict[str, Any]:
    if not sound:
        return {}
    formats: dict[str, int] = {}
    for image in sound.values():
        formats[image.format] = formats.get(image.format, 0) + 1
    return {
        "width": _spread([image.width for image in sound.values()]),
        "height": _spread([image.height for image in sound.values()]),
        "formats": dict(sorted(formats.items())),
        "checked": len(sound),
        "images": images,
    }


def _spread(values: list[int]) -> list[float]:
    return [min(values), float(np.median(values)), max(values)]


def _rows_of(places: list[int], codes: Any) -> Rows0:
    return np.flatnonzero(np.isin(codes, places))


def _unreadable(seen: dict[int, Seen], codes: Any) -> Iterator[Finding]:
    rows = _rows_of([place for place, image in seen.items() if image.problem], codes)
    if len(rows):
        reasons = [seen[int(codes[row])].problem for row in rows[: Finding.MAX_ROWS]]
        shown = ", ".join(
            f"{reason} (row {int(row) + 1})" for row, reason in zip(rows, reasons, strict=False)
        )
        more = f" and {len(rows) - len(reasons)} more" if len(rows) > len(reasons) else ""
        what = f"{counted(len(rows), 'row', ('names', 'name'))} an unreadable image"
        message = f"{what}: {shown}{more}; replace or remove"
        yield finding("error", "unreadable-file", rows, message)


def _boxes_outside(subject: Subject, sound: dict[int, Seen], codes: Any) -> Iterator[Finding]:
    boxes = subject.table.boxes.values
    if boxes is None or not sound:
        return
    sizes = np.full((int(codes.max()) + 1, 2), np.iinfo(np.int32).max, dtype=np.int64)
    sizes[list(sound)] = [(image.width, image.height) for image in sound.values()]
    rows = np.flatnonzero((boxes[:, 2:] > sizes[codes]).any(axis=1))
    if len(rows):
        shown = rows[: Finding.MAX_ROWS]
        values = [
            f"{tuple(boxes[row].tolist())} of {' x '.join(map(str, sizes[codes[row]]))}" for row in shown
        ]
        what = f"{counted(len(rows), 'box', ('reaches', 'reach'))} outside the upright image"
        message = f"{what}: {say_values(rows, values)}; expected left, top, right, bottom within it"
        yield finding("error", "box-outside-image", rows, message)


def _identical(subject: Subject, sound: dict[int, Seen], codes: Any) -> Iterator[Finding]:
    """`identical-files`: other paths with the same bytes, in another split or with another label."""
    digests = pd.Series({place: image.digest for place, image in sound.items()})
    again = digests[digests.duplicated(keep=False)]
    rows = _rows_of([int(place) for place in again.index], codes)
    if not len(rows):
        return
    table = subject.table
    frame = pd.DataFrame(
        {
            "digest": again.loc[codes[rows]].to_numpy(),
            "path": codes[rows],
            "label": table.codes("label")[0][rows],
            "split": table.codes("split")[0][rows],
        },
        index=rows,
    )
    first = frame.groupby("digest", sort=False).transform("first")
    differs = (first["path"] != frame["path"]) & (
        (first["label"] != frame["label"]) | (first["split"] != frame["split"])
    )
    rows = rows[differs.to_numpy()]
    if len(rows):
        what = f"{counted(len(rows), 'row', ('has', 'have'))} the same file content as an earlier row"
        named = say_values(rows, subject.first("path", rows))
        message = f"{what} of another split or label: {named}; remove all but one"
        yield finding("warning", "identical-files", rows, message)
