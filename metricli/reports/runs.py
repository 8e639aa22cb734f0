"""The outcome of a training, of a trial, and of a prediction."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metricli.reports.base import Intervals, Metrics, Report

if TYPE_CHECKING:
    import pandas as pd


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
