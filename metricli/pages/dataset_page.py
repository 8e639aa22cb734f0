"""The page of a table: `metricli inspect-dataset --html`."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from metricli.data.images import DEFAULT_MAX_PIXELS
from metricli.data.table import Rows, Table, read_table
from metricli.pages.charts import columns
from metricli.pages.model import Item
from metricli.pages.parts import Card, finish, started
from metricli.pages.thumbnails import Budget, Thumbnails
from metricli.pages.views import Seen
from metricli.reports import InspectReport, SplitSummary

__all__ = ["write_dataset_page"]

_COUNTS = ("rows", "labels", "categories", "sequences", "queries", "gallery", "boxes")
_LABELS, _INSTANCES, _SPLITS = 8, 6, 3


@dataclass(frozen=True)
class Size:
    """How large the labels of one split are."""

    title: str
    chart: Markup


def write_dataset_page(
    report: InspectReport,
    target: Path,
    *,
    root: str | Path | None = None,
    max_pixels: int | None = None,
    command: Sequence[str] = (),
    budget: Budget | None = None,
) -> Path:
    """Write what `inspect-dataset` found, with some images of each split.

    Images of a table with errors are not looked at: its paths may lead anywhere.

    Raises:
        DataError: the table cannot be read any more.
        ResourceError: the page cannot be written.
    """
    thumbnails = Thumbnails(max_pixels or DEFAULT_MAX_PIXELS, budget or Budget())
    errors, warnings = report.errors, len(report.findings) - report.errors
    context = started(
        kicker="data set",
        title=Path(report.table).name,
        subtitle=report.table,
        cards=[
            Card("rows", str(report.rows)),
            Card("kinds of error", str(errors), tone="error" if errors else ""),
            Card("kinds of warning", str(warnings), tone="warning" if warnings else ""),
            *_of_images(report.images),
            *_of_sampler(report.suggested),
        ],
        commands=[("This page:", shlex.join(command))] if command else [],
    )
    context |= {
        "findings": report.findings,
        "split_names": [*_COUNTS, "fewest/label", "median/label", "most/label"],
        "splits": [(name or "(none)", _numbers(split)) for name, split in report.splits.items()],
        "sizes": [
            Size(f"{name or '(none)'}: labels by their number of images", chart)
            for name, split in report.splits.items()
            if (chart := columns(f"Sizes of labels, {name}", split.histogram)) is not None
        ],
        "samples": []
        if errors
        else _samples(read_table(report.table, root=root, need="predict"), thumbnails),
        "images_note": f"Of up to {_SPLITS} splits up to {_LABELS} labels, drawn at random.",
    }
    if errors:
        context["notes"] = ["no image of a table with errors is shown"]
    context["data"] = report.to_dict()
    return finish(target, context, thumbnails)


def _of_images(images: dict[str, Any]) -> list[Card]:
    if not images.get("width"):
        return []
    wide, high = images["width"], images["height"]
    size = f"{wide[1]:g} × {high[1]:g}"
    return [Card("median image", size, f"{wide[0]:g} to {wide[2]:g} wide, {high[0]:g} to {high[2]:g} high")]


def _of_sampler(suggested: dict[str, Any]) -> list[Card]:
    if not suggested:
        return []
    return [
        Card("suggested batch", f"{suggested['n_labels']} × {suggested['n_instances']}", "labels × instances")
    ]


def _numbers(split: SplitSummary) -> list[float]:
    counts: list[float] = [getattr(split, name) for name in _COUNTS]
    return [*counts, split.instances_min, split.instances_median, split.instances_max]


def _samples(table: Table, thumbnails: Thumbnails) -> list[tuple[str, list[tuple[str, list[Seen]]]]]:
    """Of each split some labels, and of each label some images."""
    names = list(dict.fromkeys(table.strings("split").tolist()))[:_SPLITS]
    return [(name or "(none)", _of_split(table.split(name), thumbnails)) for name in names]


def _of_split(rows: Rows, thumbnails: Thumbnails) -> list[tuple[str, list[Seen]]]:
    generator = np.random.default_rng(0)
    codes, words = rows.table.codes("label")
    labels = codes[rows.index]
    known = np.unique(labels)
    chosen = np.sort(generator.choice(len(known), size=min(_LABELS, len(known)), replace=False))
    found = []
    for label in known[chosen].tolist():
        places = np.flatnonzero(labels == label)
        some = np.sort(generator.choice(places, size=min(_INSTANCES, len(places)), replace=False))
        found.append((str(words[label]), [_seen(rows, int(place), thumbnails) for place in some]))
    return found


def _seen(rows: Rows, place: int, thumbnails: Thumbnails) -> Seen:
    box = None if rows.boxes is None else rows.boxes[place].tolist()
    box = None if box is None or box[0] < 0 or not all(map(math.isfinite, box)) else tuple(box)
    path = str(rows.paths[place])
    item = Item(row=int(rows.index[place]) + 1, path=path, label=str(rows.labels[place]), box=box)
    return Seen(item, thumbnails.place(rows.root / path, box))
