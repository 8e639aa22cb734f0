"""The outcome of a validation."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metricli.reports.base import Intervals, Metrics, Report, write_text
from metricli.reports.comparison import Comparison

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PairHistogram:
    """How many genuine and impostor pairs lie in B bins of distances."""

    edges: list[float]
    """B + 1, ascending."""
    genuine: list[int]
    impostor: list[int]
    is_exact: bool
    """Whether these are all pairs, not a sample."""


@dataclass(frozen=True)
class ValidateReport(Report):
    """Retrieval metrics of one split, overall and for each category."""

    metrics: Metrics
    split: str
    queries: int
    gallery: int
    queries_without_match: int
    distance: str
    embeddings: str
    """Where they came from: a checkpoint, a features file, or the extractor as the spec builds it."""
    skipped: list[str] = field(default_factory=list)
    """Paths of images left out because they could not be read."""
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    intervals: Intervals = field(default_factory=dict)
    """Of the means over queries, by bootstrap over labels; other metrics have none."""
    confidence: float = 0.95
    thresholds: Metrics = field(default_factory=dict)
    """The distance at each operating point of the verification metrics."""
    unmatched: list[str] = field(default_factory=list)
    """Paths of the queries without a match."""
    ignored: int = 0
    """Rows of the split that the table marks as junk."""
    search: str = "exact"
    protocol: dict[str, Any] = field(default_factory=dict)
    """What must be the same for two results to be compared."""
    comparison: Comparison | None = None
    """With `against`: this one against the other, query by query."""
    write: Callable[[Path], None] | None = field(
        default=None, repr=False, compare=False, metadata={"shown": False}
    )
    draw: Callable[[Path], None] | None = field(
        default=None, repr=False, compare=False, metadata={"shown": False}
    )
    count: Callable[[], PairHistogram] | None = field(
        default=None, repr=False, compare=False, metadata={"shown": False}
    )

    def pair_histogram(self) -> PairHistogram | None:
        """The distances of the pairs of a query and an item that it may find; None where there are none."""
        found = None if self.count is None else self.count()
        return found if found is not None and sum(found.genuine) + sum(found.impostor) else None

    def save(self, folder: str | Path) -> None:
        """Write `per_query.parquet` (or .csv), `metrics.json`, and what the pictures of its page show.

        The folder is made if need be. That there are no pictures is a warning.

        Raises:
            ResourceError: they cannot be written.
        """
        target = Path(folder) / "metrics.json"
        if self.write is not None:
            self.write(target.parent)
        write_text(target, json.dumps(self.to_dict(), indent=2) + "\n")
        if self.draw is not None:
            self.draw(target.parent)

    def to_frame(self) -> pd.DataFrame:
        """The metrics and their intervals: a row for OVERALL and each category, a column for each."""
        from metricli.notebook import frame

        return frame(self.metrics, self.intervals)

    def __str__(self) -> str:
        from metricli.tables import format_metrics

        table = format_metrics(self.metrics, self.intervals, self.confidence)
        return table if self.comparison is None else f"{table}\n\n{self.comparison}"

    def _repr_html_(self) -> str:
        from metricli.notebook import metrics_page

        facts: dict[str, Any] = {"embeddings": self.embeddings, "split": self.split, "queries": self.queries}
        facts |= {"gallery": self.gallery, "queries without a match": self.queries_without_match}
        facts |= {"warnings": self.warnings} if self.warnings else {}
        page = metrics_page("Validation", self.metrics, self.intervals, facts)
        return page + (self.comparison._repr_html_() if self.comparison else "")
