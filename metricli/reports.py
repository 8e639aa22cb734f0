"""What the verbs say while they work (`Reporter`) and what they give back (frozen reports).

No torch here: a report holds floats, strings and paths, prints well and turns into a dict.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

SCHEMA_VERSION = 1
OVERALL = "OVERALL"

Metrics = dict[str, dict[str, float]]
"""category (or OVERALL) -> metric name -> value; NaN where no query could be judged."""


class Reporter(Protocol):
    """Where a verb's live words go: the terminal, a log, or nowhere. Only rank 0 is given a real one."""

    def say(self, message: str) -> None:
        """One line a person wants to know."""

    def warn(self, message: str) -> None:
        """One line about something dropped, clipped, replaced or doubtful."""

    def begin(self, name: str, total: int | None, unit: str) -> None:
        """A countable piece of work starts; `total` None if its length is unknown."""

    def advance(self, amount: int, values: Mapping[str, float] | None = None) -> None:
        """`amount` units of the current work are done; `values` are its live numbers."""

    def end(self) -> None:
        """The current work is over."""

    def epoch(self, row: Mapping[str, float | int | str]) -> None:
        """One finished epoch, as a flat row."""


class SilentReporter:
    """Says nothing; the default of the Python verbs."""

    def say(self, message: str) -> None:
        """Nothing."""

    def warn(self, message: str) -> None:
        """Nothing."""

    def begin(self, name: str, total: int | None, unit: str) -> None:
        """Nothing."""

    def advance(self, amount: int, values: Mapping[str, float] | None = None) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""

    def epoch(self, row: Mapping[str, float | int | str]) -> None:
        """Nothing."""


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


@dataclass(frozen=True)
class Report:
    """Base of all reports; `to_dict` is the `--json` document."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; NaN and infinities as None, paths as strings."""
        plain: dict[str, Any] = _plain({"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)})
        return plain


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

    def __str__(self) -> str:
        return format_metrics(self.metrics)


@dataclass(frozen=True)
class TrainReport(Report):
    """The outcome of a training run; `metrics` are those of the best epoch."""

    metrics: Metrics
    run_dir: Path
    best_ckpt: Path
    last_ckpt: Path
    best_epoch: int
    epochs: int
    steps: int
    monitor: str
    monitor_value: float
    stopped: str
    """Why training ended: "epochs", or "early stopping"."""
    skipped: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"best epoch {self.best_epoch} of {self.epochs}: {self.best_ckpt}\n{format_metrics(self.metrics)}"
        )


@dataclass(frozen=True)
class DryRunReport(Report):
    """What `train --dry-run` tried: one batch of each kind, with nothing written."""

    train_batch: dict[str, Any]
    eval_batch: dict[str, Any]
    parameters: int
    trainable: int
    memory_mb: float
    steps_per_epoch: int
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class PredictReport(Report):
    """Where the features went and what they are."""

    out: Path
    index: Path
    manifest: Path
    rows: int
    dim: int
    dtype: str
    ckpt: str
    skipped: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0


def format_metrics(metrics: Metrics) -> str:
    """Metrics as plain aligned text: a line for OVERALL and each category, four decimals."""
    names = list(dict.fromkeys(name for row in metrics.values() for name in row))
    head = ["", *names]
    body = [
        [_printable(category), *(_cell(row.get(name, math.nan)) for name in names)]
        for category, row in metrics.items()
    ]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    lines = []
    for line in [head, *body]:
        cells = [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
