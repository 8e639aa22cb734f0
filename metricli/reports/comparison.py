"""Two evaluations against each other."""

from __future__ import annotations

from dataclasses import dataclass, field

from metricli.reports.base import Report, Verdict


@dataclass(frozen=True)
class MetricDifference:
    """One mean of both, and the interval of their difference."""

    theirs: float
    ours: float
    difference: float
    """ours - theirs."""
    low: float
    high: float
    """NaN with fewer than two labels."""
    p: float
    """Two-sided bootstrap p-value of no difference."""
    verdict: Verdict
    """Ours is better or worse if the interval leaves 0 out, equal if no label differs; else it is unclear."""


@dataclass(frozen=True)
class Flips:
    """The queries whose value of one metric changed from theirs to ours."""

    metric: str
    gained: int
    """Queries that are better in ours; for cmc@k: found now."""
    lost: int
    unchanged: int
    labels: list[tuple[str, int, int]]
    """(label, gained, lost) of all labels with a change, the most changes first."""


@dataclass(frozen=True)
class Comparison(Report):
    """Ours against theirs, over the queries that both judged."""

    theirs: str
    ours: str
    queries: int
    labels: int
    confidence: float
    samples: int
    differences: dict[str, dict[str, MetricDifference]]
    """OVERALL or a category -> metric -> difference."""
    flips: Flips
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        from metricli.tables import format_comparison

        return format_comparison(self)

    def _repr_html_(self) -> str:
        from metricli.notebook import comparison_page

        return comparison_page(self)
