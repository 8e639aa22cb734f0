"""How far a run is, what was best, and what is saved of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from metricli.errors import CheckpointError
from metricli.reports import OVERALL, Intervals, Metrics, TrainReport
from metricli.runs.changes import Change, touches
from metricli.runs.checkpoints import Saved, save_last
from metricli.runs.directory import RunDirectory
from metricli.runs.learner import Learner
from metricli.runs.learner_state import load_state
from metricli.runs.trainset import TrainSet
from metricli.specs.train import TrainSpec
from metricli.specs.validate import LOSS, lower_is_better

RATES = ("optimizer", "scheduler", "training.epochs", "training.batch_size", "sampler")
"""Keys that say what the learning rate is at a step."""


@dataclass
class Progress:
    """The position of a run and its best so far; plain values, saved in last.ckpt."""

    epoch: int = 0
    """Epochs finished, their validation included."""
    step_in_epoch: int = 0
    """Steps taken in the epoch under way."""
    step: int = 0
    """Steps taken in all."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sums over the steps of the epoch under way."""
    best_epoch: int = 0
    best_value: float | None = None
    best_metrics: Metrics = field(default_factory=dict)
    best_intervals: Intervals = field(default_factory=dict)
    best_confidence: float = 0.95
    """That of these intervals; a resumed run may ask for another one in the epochs that it adds."""
    stale: int = 0
    """Validations since the best."""
    stopped: str = ""
    seconds: float = 0.0
    skipped: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    watch: dict[str, float] = field(default_factory=dict)
    """What the watch over the embeddings has seen."""
    watch_words: dict[str, str] = field(default_factory=dict)

    def add(self, values: Mapping[str, float]) -> None:
        """Count one step with its values."""
        self.step += 1
        self.step_in_epoch += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """Means over the steps of the epoch under way."""
        return {name: total / max(1, self.step_in_epoch) for name, total in self.sums.items()}

    def judge(self, value: float, metrics: Metrics, *, lower: bool, min_delta: float) -> bool:
        """Whether the epoch under way is the best so far; if so it is noted, else the patience shrinks."""
        gain = (
            math.inf
            if self.best_value is None
            else (self.best_value - value if lower else value - self.best_value)
        )
        if gain <= min_delta:
            self.stale += 1
            return False
        self.best_epoch, self.best_value, self.best_metrics, self.stale = self.epoch + 1, value, metrics, 0
        return True

    def keep_intervals(self, intervals: Intervals, confidence: float) -> None:
        """Keep the intervals of the best epoch, and what share of the draws they hold."""
        self.best_intervals, self.best_confidence = intervals, confidence


def monitored(spec: TrainSpec, metrics: Metrics, loss: float) -> float:
    """The value of `validation.monitor` after an epoch."""
    name = spec.validation.monitor
    return loss if name == LOSS else metrics.get(OVERALL, {}).get(name, math.nan)


def is_lower_better(spec: TrainSpec) -> bool:
    """The direction of `validation.monitor`."""
    return lower_is_better(spec.validation.monitor)


def save(
    run: RunDirectory, learner: Learner, progress: Progress, data: TrainSet, model: Mapping[str, Any]
) -> None:
    """Write last.ckpt, after the lines that tell of what it holds have reached the disk.

    `model` is `checkpoints.model_meta`, by which the file serves inference too.

    Raises:
        ResourceError: it cannot be written; the older one stays whole.
    """
    run.sync()
    spec = learner.spec.model_dump(mode="json")
    meta = {
        "progress": asdict(progress),
        "spec": spec,
        "labels": data.labels,
        "rows": data.digest,
        "model": {key: value for key, value in model.items() if key != "labels"},  # they may be a million
    }
    save_last(run.last, learner.state(), meta)


def restore(saved: Saved, changes: Sequence[Change], learner: Learner, data: TrainSet) -> Progress:
    """Load what last.ckpt held into the learner; `changes` of the spec since then are accepted.

    Raises:
        CheckpointError: it is of other labels or train rows, or does not fit the changed spec.
    """
    state, meta = saved
    hint = "resume with the table that the run was started with"
    labels = data.labels
    if meta["labels"] != labels:
        gone, new = sorted(set(meta["labels"]) - set(labels)), sorted(set(labels) - set(meta["labels"]))
        differ = f"{len(new)} new {new[:3]}, {len(gone)} gone {gone[:3]}"
        what = f"the train labels are not those of the run: {differ}"
        raise CheckpointError(what, hint=hint)
    if meta["rows"] != data.digest:
        what = "the train rows (paths, labels, categories, boxes or their order) are not those of the run"
        raise CheckpointError(what, hint=hint)
    progress = Progress(**meta["progress"])
    progress.step_in_epoch = min(progress.step_in_epoch, data.steps_per_epoch)
    keys = [change.key for change in changes]
    load_state(
        learner,
        state,
        new_optimizer="optimizer.name" in keys,
        new_rates=any(touches(key, RATES) for key in keys),
        epochs=progress.epoch,
        steps=progress.step,
    )
    return progress


def report(run: RunDirectory, spec: TrainSpec, progress: Progress) -> TrainReport:
    """The report of a run that is over."""
    return TrainReport(
        metrics=progress.best_metrics,
        intervals=progress.best_intervals,
        confidence=progress.best_confidence,
        run_dir=run.path,
        best_ckpt=run.best,
        last_ckpt=run.last,
        best_epoch=progress.best_epoch,
        epochs=progress.epoch,
        steps=progress.step,
        monitor=spec.validation.monitor,
        monitor_value=math.nan if progress.best_value is None else progress.best_value,
        stopped=progress.stopped,
        skipped=progress.skipped,
        warnings=progress.warnings,
        seconds=progress.seconds,
    )
