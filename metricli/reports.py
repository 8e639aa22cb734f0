"""What the verbs give back: frozen reports.

No torch here: a report holds floats, strings and paths, prints well and turns into a dict.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from metricli.errors import ResourceError

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
OVERALL = "OVERALL"

Metrics = dict[str, dict[str, float]]
"""category (or OVERALL) -> metric name -> value; NaN where no query could be judged."""


Intervals = dict[str, dict[str, tuple[float, float]]]
"""The same with a confidence interval (low, high) in place of a value; NaN where there is none."""

Verdict = Literal["better", "worse", "equal", "unclear"]


def plain(value: Any) -> Any:
    """Plain JSON types; NaN and infinities as None, paths as strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            item.name: plain(getattr(value, item.name))
            for item in dataclasses.fields(value)
            if item.metadata.get("shown", True)
        }
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def write_text(target: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        ResourceError: it cannot be written.
    """
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise ResourceError(f"cannot write {str(target)!r}: {error.strerror}") from None


@dataclass(frozen=True)
class Report:
    """Base of all reports; `to_dict` is the `--json` document."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; NaN and infinities as None, paths as strings."""
        return {"schema_version": SCHEMA_VERSION, **plain(self)}

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        from metricli.notebook import facts_page

        facts = {name: value for name, value in plain(self).items() if value not in (None, "", [], {})}
        return facts_page(type(self).__name__, facts)


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
    count: Callable[[], PairHistogram] | None = field(
        default=None, repr=False, compare=False, metadata={"shown": False}
    )

    def pair_histogram(self) -> PairHistogram | None:
        """The distances of the pairs of a query and an item that it may find; None where there are none."""
        found = None if self.count is None else self.count()
        return found if found is not None and sum(found.genuine) + sum(found.impostor) else None

    def save(self, folder: str | Path) -> None:
        """Write `per_query.parquet` (or .csv) and then `metrics.json` to a folder, which is made if need be.

        Raises:
            ResourceError: they cannot be written.
        """
        target = Path(folder) / "metrics.json"
        if self.write is not None:
            self.write(target.parent)
        write_text(target, json.dumps(self.to_dict(), indent=2) + "\n")

    def to_frame(self) -> pd.DataFrame:
        """The metrics and their intervals: a row for OVERALL and each category, a column for each."""
        from metricli.notebook import frame

        return frame(self.metrics, self.intervals)

    def __str__(self) -> str:
        from metricli.tables import format_metrics

        return format_metrics(self.metrics, self.intervals, self.confidence)

    def _repr_html_(self) -> str:
        from metricli.notebook import metrics_page

        facts: dict[str, Any] = {"embeddings": self.embeddings, "split": self.split, "queries": self.queries}
        facts |= {"gallery": self.gallery, "queries without a match": self.queries_without_match}
        facts |= {"warnings": self.warnings} if self.warnings else {}
        page = metrics_page("Validation", self.metrics, self.intervals, facts)
        return page + (self.comparison._repr_html_() if self.comparison else "")


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
    intervals: Intervals = field(default_factory=dict)
    """Of the best epoch's means over queries, by bootstrap over labels."""
    confidence: float = 0.95

    def to_frame(self) -> pd.DataFrame:
        """The metrics and their intervals: a row for OVERALL and each category, a column for each."""
        from metricli.notebook import frame

        return frame(self.metrics, self.intervals)

    def _repr_html_(self) -> str:
        from metricli.notebook import metrics_page

        facts: dict[str, Any] = {"best checkpoint": self.best_ckpt, "stopped by": self.stopped}
        facts |= {"steps": self.steps, self.monitor: self.monitor_value}
        facts |= {"warnings": self.warnings} if self.warnings else {}
        title = f"Training: best epoch {self.best_epoch} of {self.epochs}"
        return metrics_page(title, self.metrics, self.intervals, facts)

    def __str__(self) -> str:
        from metricli.tables import format_metrics

        table = format_metrics(self.metrics, self.intervals, self.confidence)
        return f"best epoch {self.best_epoch} of {self.epochs}: {self.best_ckpt}\n{table}"


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
class ParityReport(Report):
    """Whether one step of several processes is that of one: `metricli env --distributed`."""

    processes: int
    images: int
    loss: float
    """Of one process."""
    differences: dict[str, float]
    """Of `images` how many; of `embeddings`, `loss` and `gradients` the largest, relative to their size."""
    tolerance: float
    worst: dict[str, float]
    """The parameters whose gradients differ most."""
    same: bool
    same_without_noise: bool = False
    """Whether dropout alone makes the difference, which is no mistake."""
    causes: list[str] = field(default_factory=list)


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
    resumed: int = 0
    """Rows that an earlier, unfinished command had done."""
    shard: str | None = None
    """Which part of the rows, as `2/8`; None for all."""
