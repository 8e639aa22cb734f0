"""What the verbs give back: frozen reports.

No torch here: a report holds floats, strings and paths, prints well and turns into a dict.
"""

from __future__ import annotations

from metricli.reports.base import (
    OVERALL,
    SCHEMA_VERSION,
    Intervals,
    Metrics,
    Report,
    Verdict,
    plain,
    write_text,
)
from metricli.reports.comparison import Comparison, Flips, MetricDifference
from metricli.reports.runs import DryRunReport, ParityReport, PredictReport, TrainReport
from metricli.reports.tables import Finding, InspectReport, SplitSummary
from metricli.reports.validation import PairHistogram, ValidateReport

__all__ = [
    "OVERALL",
    "SCHEMA_VERSION",
    "Comparison",
    "DryRunReport",
    "Finding",
    "Flips",
    "InspectReport",
    "Intervals",
    "MetricDifference",
    "Metrics",
    "PairHistogram",
    "ParityReport",
    "PredictReport",
    "Report",
    "SplitSummary",
    "TrainReport",
    "ValidateReport",
    "Verdict",
    "plain",
    "write_text",
]
