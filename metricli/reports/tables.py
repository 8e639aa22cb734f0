"""What is found in a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from metricli.reports.base import Report


@dataclass(frozen=True)
class Finding:
    """One kind of thing wrong with a table: a stable code, how many, and the first rows it touches.

    Rows are 1-based data rows of the file (the header is not counted); `rows` holds at most the
    first `MAX_ROWS` of them, `count` all.
    """

    MAX_ROWS = 10

    code: str
    severity: Literal["error", "warning"]
    count: int
    rows: list[int]
    message: str


@dataclass(frozen=True)
class SplitSummary:
    """What one split of a table holds."""

    rows: int
    labels: int
    categories: int
    sequences: int
    queries: int
    gallery: int
    boxes: int
    instances_min: int
    instances_median: float
    instances_max: int
    histogram: list[tuple[str, int]] = field(default_factory=list)
    """Labels for each bin of instances a label: (bin such as "4-7", number of labels)."""


@dataclass(frozen=True)
class InspectReport(Report):
    """Findings and counts of a table; errors among the findings mean exit code 3."""

    table: str
    rows: int
    findings: list[Finding]
    splits: dict[str, SplitSummary]
    images: dict[str, Any]
    """`width` and `height` as [min, median, max], `formats` counts, `checked`; empty if no file was read."""
    suggested: dict[str, Any]
    """`n_labels`, `n_instances` and `why`; empty without train rows."""

    @property
    def errors(self) -> int:
        """How many kinds of error there are."""
        return sum(finding.severity == "error" for finding in self.findings)
