"""How far a run is, what was best, and what is saved of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from metricli.errors import CheckpointError, UsageError
from metricli.reports import OVERALL, Intervals, Metrics, TrainReport
from metricli.runs.checkpoints import Saved, save_last
from metricli.runs.directory import RunDirectory
from metricli.runs.learner import Learner
from metricli.runs.trainset import TrainSet
from metricli.specs.plugin import PluginSpec
from metricli.specs.train import TrainSpec
from metricli.specs.validate import LOSS, lower_is_better

_FREE = (
    "compute.",
    "data.",
    "loggers",
    "prediction.",
    "training.log_every_steps",
    "training.num_workers",
    "training.on_collapse",
    "validation.bootstrap.",
    "validation.per_query",
    "validation.search.budget_mb",
    "validation.batch_size",
    "validation.num_workers",
)
"""Keys that a resumed run may change, for they do not change what is trained."""


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


def save(run: RunDirectory, learner: Learner, progress: Progress, data: TrainSet) -> None:
    """Write last.ckpt.

    Raises:
        ResourceError: it cannot be written; the older one stays whole.
    """
    spec = learner.spec.model_dump(mode="json")
    meta = {"progress": asdict(progress), "spec": spec, "labels": data.labels, "rows": data.digest()}
    save_last(run.last, learner.state(), meta)


def restore(run: RunDirectory, saved: Saved, learner: Learner, data: TrainSet) -> Progress:
    """Load what last.ckpt held into the learner.

    Raises:
        CheckpointError: it is of other labels or train rows.
        UsageError: the spec is not the one that the run was started with.
    """
    state, meta = saved
    refuse_other_spec(meta["spec"], learner.spec, run.path)
    hint = "resume with the table that the run was started with"
    labels = data.labels
    if meta["labels"] != labels:
        gone, new = sorted(set(meta["labels"]) - set(labels)), sorted(set(labels) - set(meta["labels"]))
        changes = f"{len(new)} new {new[:3]}, {len(gone)} gone {gone[:3]}"
        what = f"the train labels are not those of the run: {changes}"
        raise CheckpointError(what, hint=hint)
    if meta["rows"] != data.digest():
        what = "the train rows (paths, labels, categories, boxes or their order) are not those of the run"
        raise CheckpointError(what, hint=hint)
    learner.load_state(state)
    return Progress(**meta["progress"])


def refuse_other_spec(was: Mapping[str, Any], now: TrainSpec, where: Path) -> None:
    """Refuse to go on with a spec that would train something else.

    Where to compute and where the data lies, how images are read and evaluated in batches, the loggers and
    the prediction may differ; that the train rows are the same is checked by their digest. A key that the
    run does not have, because the version that began it knew none, stands at its default there.

    Raises:
        UsageError: naming the keys that differ.
    """
    before, after = _flat(_completed(was, now)), _flat(now.model_dump(mode="json"))
    keys = [k for k in before | after if before.get(k) != after.get(k) and not k.startswith(_FREE)]
    if keys:
        shown = "; ".join(f"{k}: {before.get(k)!r} was, {after.get(k)!r} is" for k in sorted(keys)[:5])
        raise UsageError(
            f"the spec differs from that of the run in {str(where)!r}: {shown}",
            hint="resume with the same spec, or start another run",
        )


def _completed(was: Any, now: Any) -> Any:
    """A saved block with the defaults of the keys that it lacks, wherever the one of today has such keys."""
    if isinstance(now, list) and isinstance(was, list) and len(was) == len(now):
        return [_completed(one, other) for one, other in zip(was, now, strict=True)]
    if not isinstance(now, BaseModel) or not isinstance(was, Mapping):
        return was
    if isinstance(now, PluginSpec) and was.get("name") != getattr(now, "name", None):  # it has other keys
        return was
    fields = type(now).model_fields
    return dict(was) | {
        key: _completed(was[key], getattr(now, key))
        if key in was
        else to_jsonable_python(field.get_default(call_default_factory=True))
        for key, field in fields.items()
        if key in was or not field.is_required()
    }


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        value = dict(enumerate(value))
    if isinstance(value, Mapping) and value:
        return {
            k: v for key, item in value.items() for k, v in _flat(item, f"{path}.{key}".lstrip(".")).items()
        }
    return {path: value}


def report(run: RunDirectory, spec: TrainSpec, progress: Progress, warnings: list[str]) -> TrainReport:
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
        warnings=warnings,
        seconds=progress.seconds,
    )
