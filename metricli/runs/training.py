"""The loop of a run: epochs of steps, each judged, logged and saved."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from metricli.components.dataset import Batch
from metricli.data.table import Rows
from metricli.errors import CollapseError, DataError
from metricli.reports import OVERALL, Intervals, Metrics
from metricli.runs.checkpoints import model_meta, save_best
from metricli.runs.context import Context, StopFlag
from metricli.runs.directory import RunDirectory
from metricli.runs.embed import refuse_bad, refuse_missing
from metricli.runs.embedding import embed_rows, images_of, row_loader, skipped_paths
from metricli.runs.evaluate import Evaluation
from metricli.runs.halting import Halt, Heeding, stopped
from metricli.runs.history import Progress, is_lower_better, monitored, save
from metricli.runs.kept import keep_step
from metricli.runs.learner import Learner
from metricli.runs.logs import Logs
from metricli.runs.parts import image_dataset
from metricli.runs.reporting import keep_pictures, log_pictures
from metricli.runs.trainset import TrainSet
from metricli.runs.watch import Watch
from metricli.specs.load import Loaded
from metricli.specs.train import TrainSpec


class Training:
    """The loop over epochs of one run."""

    def __init__(
        self,
        loaded: Loaded[TrainSpec],
        context: Context,
        data: TrainSet,
        learner: Learner,
        validation_rows: Rows,
        run: RunDirectory,
        progress: Progress,
        logs: Logs,
        evaluate: Callable[..., Evaluation],
    ) -> None:
        self.loaded, self.spec, self.context, self.data = loaded, loaded.spec, context, data
        self.learner, self.run_dir, self.progress, self.logs = learner, run, progress, logs
        self.reporter, self.warnings, self.world = context.reporter, progress.warnings, context.world
        self.watch = Watch(self.spec, learner.loss, data.labels)
        self.watch.load_state(progress.watch, progress.watch_words)
        self.eval_transform = self.spec.transforms.eval.build()
        self.validation_rows = validation_rows
        self.intervals: Intervals = {}
        self.found: Evaluation | None = None
        if self.spec.training.freeze_epochs:
            self.reporter.say(
                f"the backbone is frozen in the first {self.spec.training.freeze_epochs} epochs"
            )
        if self.spec.training.ema is not None:
            decay = self.spec.training.ema.decay
            self.reporter.say(
                f"judged and kept in best.ckpt: the average of the weights (EMA, decay {decay})"
            )
        dataset = image_dataset(validation_rows, self.eval_transform, self.spec.data)
        self.validation_loader = row_loader(context, dataset, self.spec.validation)
        self.images = partial(images_of, dataset, context.device)
        self.evaluate = evaluate
        self.saved_at = time.monotonic()

    def warn(self, message: str) -> None:
        """Say a warning and keep it for the report."""
        self.warnings.append(message)
        self.reporter.warn(message)

    def warn_once(self, message: str) -> None:
        """The same, for what every epoch finds again."""
        if message not in self.warnings:
            self.warn(message)

    def run(self, stop: StopFlag) -> None:
        """Every epoch that is left."""
        training, progress = self.spec.training, self.progress
        while progress.epoch < training.epochs and not progress.stopped:
            started = time.monotonic()
            try:
                self.train_epoch(stop)
            except DataError:  # an image that cannot be read must not cost the steps before it
                if progress.step:
                    self.save_last()
                raise
            means = self.world.once(progress.means)  # GPUs may differ in the last bit: one decides for all
            is_last = progress.epoch + 1 == training.epochs
            due = (progress.epoch + 1) % self.spec.validation.every_n_epochs == 0 or is_last
            if due and len(self.validation_rows):
                self.save_last()  # whatever stops the validation, the epoch is kept
            metrics = self.validate(stop) if due else None
            self.learner.end_epoch(progress.epoch)
            if metrics is not None:
                self.judge(metrics, means.get("loss", float("nan")))
            progress.seconds += time.monotonic() - started
            self.log_epoch(means, metrics, time.monotonic() - started)
            progress.epoch, progress.step_in_epoch, progress.sums = progress.epoch + 1, 0, {}
            if training.patience is not None and progress.stale >= training.patience:
                progress.stopped = "early stopping"
            elif is_last:
                progress.stopped = "epochs"
            self.save_last(keep=self.is_kept(epoch_over=True))
            if not progress.stopped:
                self.heed_all([], stop)
        if not progress.stopped:  # fewer epochs are asked for than it has
            self.warn(f"{progress.epoch} epochs are done and {training.epochs} asked for: none is trained")
            progress.stopped = "epochs"
            self.save_last()
        if progress.stopped == "early stopping":
            count = training.patience
            self.reporter.say(
                f"stopped early: {self.spec.validation.monitor} has not improved for {count} validations"
            )

    def train_epoch(self, stop: StopFlag) -> None:
        """The steps of one epoch that are left, each on one global batch."""
        progress, epoch = self.progress, self.progress.epoch
        self.data.batches.set_epoch(epoch, skip=progress.step_in_epoch)
        frozen = self.learner.start_epoch(epoch)
        name = f"epoch {epoch + 1}/{self.spec.training.epochs}" + (" (frozen)" if frozen else "")
        self.reporter.begin(name, self.data.steps_per_epoch - progress.step_in_epoch, "step")
        try:
            if progress.step_in_epoch < self.data.steps_per_epoch:
                for batch in self.data.loader:
                    self.heed_all(batch.bad, stop, batch.missing)
                    self.take(batch)
                self.heed_all([], stop)
        finally:
            self.reporter.end()

    def take(self, batch: Batch) -> None:
        """One step, counted and logged."""
        lr = self.learner.lr  # before the step, after which the schedule moves on
        values = {"lr": lr, **self.learner.step(batch, self.progress.step)}
        self.progress.add(values)
        due = self.progress.step % self.spec.training.log_every_steps == 0
        assert self.learner.labels is not None
        self.logs.count(len(self.learner.labels))
        if due:
            health = self.watch.look(self.progress.step, self.learner.embeddings, self.learner.labels, values)
            self.logs.row(self.progress.step, self.progress.epoch + 1, "train", values | health | values)
        self.reporter.advance(1, {**self.watch.numbers, **values, "images": len(self.learner.labels)})
        if due:
            self.heed_watch()

    def heed_watch(self) -> None:
        """Say what the watch has found; a collapse ends the run if the spec says so.

        Raises:
            CollapseError: the embeddings have collapsed, and on_collapse is stop.
        """
        stops = self.spec.training.on_collapse == "stop"
        found = self.watch.collapse, self.watch.remedies
        what, remedies = self.world.once(lambda: found) if stops else found  # one decides for all
        if what and stops:
            self.watch.forget_collapse()
            self.save_last()
            raise CollapseError(f"{what}; stopped there, saved in {self.run_dir.path}", hint=remedies)
        for message in [*self.watch.warnings, *([f"{what}; {remedies}"] if what else [])]:
            self.warn_once(message)

    def heed_all(self, bad: list[tuple[int, str]], stop: StopFlag, missing: int = 0) -> None:
        """What any process has to say before a step: a signal, or images that it could not read.

        Raises:
            Interrupted: a signal came, and the run is saved.
            DataError: an image cannot be read, and `data.on_bad_image` is "raise" or none can take its place.
        """
        told = self.world.gather((stop.signum or 0, bad, missing, self.is_save_due()))
        self.stop_if_asked(max(signum for signum, *_ in told))
        if told[0][3]:  # clocks differ: the main process's counts
            self.save_last(keep=self.is_kept())
        every = [one for _, some, *_ in told for one in some]
        self.note_bad(every)
        refuse_missing(sum(places for _, _, places, _ in told), every)

    def note_bad(self, bad: list[tuple[int, str]]) -> None:
        """Stop at, or count, images that could not be read."""
        refuse_bad(bad, self.spec.data)
        for row, reason in bad:
            path = str(self.data.rows.paths[row])
            if path not in self.progress.skipped:
                self.progress.skipped.append(path)
                self.warn(f"{reason}; another image takes its place, of its label if there is one")

    def stop_if_asked(self, signum: int) -> None:
        """After a signal: save and leave.

        Raises:
            Interrupted: a signal came.
        """
        if signum:
            self.save_last()
            raise stopped(self.run_dir.path, f"after step {self.progress.step}", signum)

    def validate(self, stop: StopFlag) -> Metrics:
        """Judge the validation rows; no metrics if there are none.

        Raises:
            Interrupted: a signal came; what precedes the validation is saved.
        """
        self.intervals = {}
        if len(self.validation_rows) == 0:
            return {}
        rows = self.validation_rows
        self.learner.agree()
        where = f"after step {self.progress.step}, in its validation"
        halt = Halt(stop, self.world, partial(stopped, self.run_dir.path, where))
        judged, skipped = embed_rows(
            self.context, self.learner.judged, rows, self.validation_loader, self.spec.data, halt=halt
        )
        found = self.evaluate(judged, images=self.images, reporter=Heeding(self.reporter, halt))
        paths = skipped_paths(rows, skipped, self.reporter)
        self.progress.skipped += [path for path in paths if path not in self.progress.skipped]
        self.warnings += [message for message in found.warnings if message not in self.warnings]
        self.intervals, self.found = found.intervals, found
        return found.metrics

    def judge(self, metrics: Metrics, loss: float) -> None:
        """Save best.ckpt if the monitor is better than ever (or nothing is judged), and tell the schedule."""
        progress, lower = self.progress, is_lower_better(self.spec)
        value = monitored(self.spec, metrics, loss)
        if math.isnan(value):  # nothing is judged: the newest is as good as any
            better = progress.best_value is None
            if better:
                progress.best_epoch, progress.best_metrics = progress.epoch + 1, metrics
                progress.keep_intervals(self.intervals, self.spec.validation.bootstrap.confidence)
            if metrics:
                name = self.spec.validation.monitor
                self.warn_once(f"{name} has no value on the validation rows: the newest is kept")
        else:
            self.learner.tell_schedule(-value if lower else value)
            better = progress.judge(value, metrics, lower=lower, min_delta=self.spec.training.min_delta)
            if better:
                progress.keep_intervals(self.intervals, self.spec.validation.bootstrap.confidence)
        if better:
            self.world.once(lambda: self.save_best(metrics))
        self.found = None  # it holds all embeddings

    def save_best(self, metrics: Metrics) -> None:
        """Write best.ckpt."""
        save_best(
            self.run_dir.best,
            extractor=self.learner.judged,
            eval_transform=self.eval_transform,
            loaded=self.loaded,
            labels=self.data.labels,
            metrics=metrics,
            epoch=self.progress.epoch + 1,
        )
        epoch = self.progress.epoch + 1
        pictures = keep_pictures(self.run_dir.path, self.found, self.spec, epoch, self.reporter)
        log_pictures(pictures, self.logs, self.progress.step)

    def log_epoch(self, means: Mapping[str, float], metrics: Metrics | None, seconds: float) -> None:
        """One row for the terminal, one line for each category in metrics.jsonl."""
        progress = self.progress
        self.logs.row(progress.step, progress.epoch + 1, "train_epoch", {**means, **self.watch.end_epoch()})
        self.heed_watch()
        for category, values in (metrics or {}).items():
            self.logs.row(progress.step, progress.epoch + 1, "validation", values, category=category)
        row: dict[str, Any] = {
            "epoch": progress.epoch + 1,
            "epochs": self.spec.training.epochs,
            "loss": means.get("loss"),
        }
        overall, monitor = (metrics or {}).get(OVERALL, {}), self.spec.validation.monitor
        row |= {"lr": means.get("lr"), "seconds": seconds}
        row |= {monitor: overall[monitor], **overall} if monitor in overall else overall
        row["best"] = int(progress.best_epoch == progress.epoch + 1)
        self.reporter.epoch(row)

    def is_save_due(self) -> bool:
        """Whether last.ckpt is to be saved before the next step of the epoch under way."""
        if not 0 < self.progress.step_in_epoch < self.data.steps_per_epoch:
            return False
        every, limit = self.spec.training.save_every_steps, self.spec.training.save_every_minutes
        by_step = every is not None and self.progress.step % every == 0
        return by_step or (limit is not None and time.monotonic() - self.saved_at > 60 * limit)

    def is_kept(self, *, epoch_over: bool = False) -> bool:
        """Whether a save made now is one of those that `training.keep` counts."""
        training = self.spec.training
        every = training.save_every_steps
        return bool(training.keep) and (epoch_over if every is None else self.progress.step % every == 0)

    def save_last(self, *, keep: bool = False) -> None:
        """Write last.ckpt; the other processes wait, and do not leave while it is being written."""
        self.world.once(lambda: self._save(keep))
        self.saved_at = time.monotonic()

    def _save(self, keep: bool) -> None:
        model = model_meta(self.learner.judged, self.eval_transform, self.loaded, self.data.labels)
        self.progress.watch, self.progress.watch_words = self.watch.state()
        save(self.run_dir, self.learner, self.progress, self.data, model)
        if keep:
            keep_step(self.run_dir, self.progress.step, self.spec.training.keep)
