"""`metricli train`, top to bottom: all that stands ready before the loop of training.py, and its report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from metricli.data.table import Table
from metricli.errors import MetricliError, UsageError
from metricli.reporter import Reporter, SilentReporter
from metricli.reports import TrainReport
from metricli.runs.building import build_learner
from metricli.runs.changes import Change
from metricli.runs.checkpoints import damage_of
from metricli.runs.context import choose_device, open_context, stop_on_signals
from metricli.runs.directory import RunDirectory
from metricli.runs.evaluate import evaluate_rows
from metricli.runs.history import Progress, report, restore
from metricli.runs.images import check_images
from metricli.runs.judging import built_postprocessors, require_fit
from metricli.runs.kept import go_back, tidy
from metricli.runs.logs import Logs, Transcript
from metricli.runs.parts import check_with_table, open_table
from metricli.runs.probing import resolve_sampler
from metricli.runs.processes import World, joined
from metricli.runs.reporting import mend_report, reported
from metricli.runs.resuming import (
    Resumed,
    changes_since,
    choose_run,
    finished_report,
    mend_finished,
    with_numbers_of,
)
from metricli.runs.room import require_room
from metricli.runs.training import Training
from metricli.runs.trainset import build_train_set
from metricli.runs.validate import gallery_of
from metricli.specs.load import Loaded, check_spec
from metricli.specs.train import TrainSpec


@dataclass(frozen=True)
class Asked:
    """Where to train, and what to go on with: the words of the command."""

    run_dir: str | Path | None = None
    resume: str | Path | None = None
    allow_change: Sequence[str] = ()


def train(loaded: Loaded[TrainSpec], asked: Asked, *, reporter: Reporter) -> TrainReport:
    """Train, validate and save until the epochs are over, patience runs out, or a signal comes.

    Raises:
        MetricliError: see errors.py for the kinds.
    """
    compute = loaded.spec.compute
    with joined(choose_device(compute), compute.gpus) as world:
        heard = Transcript(reporter if world.is_main else SilentReporter())
        try:
            return _train(loaded, asked, heard, world)
        except Exception as error:
            ours = isinstance(error, MetricliError)
            with suppress(Exception):  # a full disk may be what has ended it
                heard.end_with(str(error) if ours else f"{type(error).__name__}: {error}")
            raise


def _train(loaded: Loaded[TrainSpec], asked: Asked, reporter: Transcript, world: World) -> TrainReport:
    if asked.allow_change and asked.resume is None:
        raise UsageError("--allow-change is for a run that goes on", hint="give --resume auto, or its DIR")
    run, resumed = world.once(lambda: choose_run(loaded.spec, asked.run_dir, asked.resume, reporter))
    changes: list[Change] = []
    if resumed is not None:
        loaded = with_numbers_of(resumed.saved, loaded)
        changes = changes_since(run, resumed.saved, loaded.spec, asked.allow_change, reporter)
        finished = finished_report(run, resumed.saved, loaded.spec, changes)
        if finished is not None:
            with held(run, world):
                world.once(lambda: tidy(run))
            world.once(lambda: mend_finished(run, resumed, finished, reporter))
            world.once(lambda: mend_report(finished, reporter))
            reporter.say(f"the run in {run.path} is finished; its report follows")
            return finished
    table, warnings = open_training_table(loaded, reporter)
    used = table.split("train"), table.split("validation")
    skipped = check_images(table, used, loaded.spec.data, reporter, warnings, world)
    loaded = resolve_sampler(loaded, table, reporter, warnings, world)
    spec = loaded.spec
    postprocessors = built_postprocessors(spec.validation)
    context = open_context(spec.compute, reporter, spec.training.precision, world)
    data, rows = build_train_set(spec, table, context), table.split("validation")
    if world.size > 1:
        world.require_alike(table=(data.digest, len(rows)))
    learner = build_learner(
        spec,
        context,
        num_labels=len(data.labels),
        label_to_category=data.label_to_category,
        steps_per_epoch=data.steps_per_epoch,
        paths=data.rows.paths,
    )
    gallery = gallery_of(spec.validation, table, rows, "validation", reporter, world)
    require_fit(spec.validation, int(learner.extractor.dim), gallery)  # type: ignore[arg-type]
    judge = partial(
        evaluate_rows,
        validation=spec.validation,
        reporter=reporter,
        postprocessors=postprocessors,
        other=gallery,
        world=world,
    )
    progress = restore(resumed.saved, changes, learner, data) if resumed is not None else Progress()
    progress.warnings += [message for message in warnings if message not in progress.warnings]
    progress.skipped += [path for path in skipped if path not in progress.skipped]
    world.once(lambda: require_room(run, learner))
    with held(run, world):
        world.once(lambda: _open(run, spec, progress, resumed, asked.resume, reporter))
        if progress.best_epoch and (lost := world.once(lambda: damage_of(run.best))):
            progress.best_epoch, progress.best_value = 0, None
            reporter.warn(f"{lost}: the best is looked for anew, from here on")
        kept, resolved = run if world.is_main else None, spec.model_dump(mode="json")
        opened = Logs(kept, spec.loggers, reporter, step=progress.step, resolved=resolved)
        with opened as logs, stop_on_signals() as stop:
            training = Training(loaded, context, data, learner, rows, run, progress, logs, judge)
            with reported(lambda: report(run, spec, progress), reporter, is_main=world.is_main):
                training.run(stop)
    return report(run, spec, progress)


@contextmanager
def held(run: RunDirectory, world: World) -> Iterator[None]:
    """The main process keeps every other run out of the directory."""
    with ExitStack() as stack:
        world.once(lambda: stack.enter_context(run.locked()))
        yield


def _open(
    run: RunDirectory,
    spec: TrainSpec,
    progress: Progress,
    resumed: Resumed | None,
    resume: str | Path | None,
    reporter: Transcript,
) -> None:
    """Make the directory of a new run, or cut that of a resumed one off where it was saved."""
    resolved = spec.model_dump(mode="json")
    if resumed is None:
        run.start(resolved, again=resume is not None)
        tidy(run)
        reporter.write_to(run.log)
        reporter.say(f"run directory {run.path}")
        return
    resumed.require_unchanged(run)
    tidy(run)
    if resumed.back_to is not None:
        go_back(run, resumed.back_to)
    run.forget_after(progress.step, progress.epoch + 1 if progress.step_in_epoch else None)
    run.write_spec(resolved)
    reporter.write_to(run.log)
    reporter.say(f"going on with {run.path} at epoch {progress.epoch + 1}, step {progress.step + 1}")


def open_training_table(loaded: Loaded[TrainSpec], reporter: Reporter) -> tuple[Table, list[str]]:
    """Check the spec alone, read the table, check the spec against it; warnings are said and given back.

    Raises:
        SpecError: the blocks contradict each other or the table.
        DataError: the table is unreadable or has errors.
    """
    check_spec(loaded, None)
    own = loaded.spec.validation.gallery_table is None
    table, warnings = open_table(loaded.spec.data, "train", reporter, own_gallery=own)
    return table, warnings + check_with_table(loaded, table, "validation", reporter)
