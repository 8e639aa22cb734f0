"""What a first spec needs to know of a table: batches, metrics that fit, and the size of the images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metricli.data.facts import TableFacts
from metricli.data.inspection import inspect_table
from metricli.data.table import Table, read_table
from metricli.reports import InspectReport

__all__ = ["Judging", "Start", "start_from"]

_SMALLEST, _LARGEST, _STEP = 32, 224, 32
"""Sides of an image as the model sees it, in pixels."""
_CATEGORIES = 4
"""Categories in a batch, at most."""


@dataclass(frozen=True)
class Judging:
    """What the validation rows are like."""

    queries: int
    gallery: int
    alike: bool
    """Whether every query is in the gallery too: one-versus-rest."""
    matches: float
    """Of the median query that has one."""
    shared_labels: int
    """Labels that are trained on and judged."""


@dataclass(frozen=True)
class Start:
    """A table as a first spec sees it."""

    facts: TableFacts
    report: InspectReport
    judging: Judging
    categories: int
    """For each batch; 0 where labels have no single category."""

    @property
    def size(self) -> int:
        """The side that the images are brought to: that of the median one, up to a usual 224."""
        sides = [side[1] for name in ("width", "height") if (side := self.report.images.get(name))]
        return min(_LARGEST, max(_SMALLEST, round(max(sides) / _STEP) * _STEP)) if sides else _LARGEST

    @property
    def cmc(self) -> list[int]:
        """The k of cmc@k that a gallery of this size can tell apart."""
        others = self.judging.gallery - self.judging.alike
        return [k for k in (1, 5, 10) if k == 1 or k < others]

    @property
    def depth(self) -> int:
        """The k of precision@k and map@k; beyond the matches of a query, 1 would be out of its reach."""
        return max(1, min(5, int(self.judging.matches)))


def start_from(path: Path, *, root: Path | None = None) -> Start:
    """Read and inspect a table.

    Raises:
        DataError: it cannot be read.
    """
    table = read_table(path, root=root)
    facts = table.facts()
    has_one = not facts.labels_in_two_categories and not facts.uncategorised_labels
    categories = min(_CATEGORIES, facts.train_categories) if has_one and facts.train_categories > 1 else 0
    return Start(facts, inspect_table(path, root=root), _judging(table), categories)


def _judging(table: Table) -> Judging:
    judged = table.in_split("validation") & ~table.ignored
    query, gallery = (judged & (table.flags(name) == 1) for name in ("is_query", "is_gallery"))
    labels, words = table.codes("label")
    found = np.bincount(labels[gallery], minlength=len(words))
    matches = found[labels[query]] - gallery[query]
    matches = matches[matches > 0]
    train = np.bincount(labels[table.in_split("train")], minlength=len(words))
    tested = np.bincount(labels[judged], minlength=len(words))
    return Judging(
        queries=int(query.sum()),
        gallery=int(gallery.sum()),
        alike=bool(query.any() and gallery[query].all()),
        matches=float(np.median(matches)) if len(matches) else 0.0,
        shared_labels=int(((train > 0) & (tested > 0)).sum()),
    )
