"""`metricli train`, top to bottom: all that stands ready before the loop of training.py, and its report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from metricli.data.table import Table
from metricli.reporter import Reporter, SilentReporter
from metricli.reports import TrainReport
from metricli.runs.building import build_learner
from metricli.runs.checkpoints import read_last
from metricli.runs.context import choose_device, open_context, stop_on_signals
from metricli.runs.directory import RunDirectory
from metricli.runs.evaluate import evaluate_rows
from metricli.runs.history import Progress, report, restore
from metricli.runs.judging import built_postprocessors, require_fit
from metricli.runs.logs import Logs, Transcript
from metricli.runs.parts import check_with_table, open_table
from metricli.runs.probing import resolve_sampler
from metricli.runs.processes import World, joined
from metricli.runs.resuming import choose_run, finished_report, with_numbers_of
from metricli.runs.training import Training
from metricli.runs.trainset import build_train_set
from metricli.runs.validate import gallery_of
from metricli.specs.load import Loaded, check_spec
from metricli.specs.train import TrainSpec


def train(
    loaded: Loaded[TrainSpec], *, run_dir: str | Path | None, resume: str | Path | None, reporter: Reporter
) -> TrainReport:
    """Train, validate and save until the epochs are over, patience runs out, or a signal comes.

    Raises:
        MetricliError: see errors.py for the kinds.
    """
    compute = loaded.spec.compute
    with joined(choose_device(compute), compute.gpus) as world:
        heard = Transcript(reporter if world.is_main else SilentReporter())
        return _train(loaded, run_dir, resume, heard, world)


def _train(
    loaded: Loaded[TrainSpec],
    run_dir: str | Path | None,
    resume: str | Path | None,
    reporter: Transcript,
    world: World,
) -> TrainReport:
    run, resuming = world.once(lambda: choose_run(loaded.spec, run_dir, resume, reporter))
    saved = world.once(lambda: read_last(run.last)) if resuming else None
    if saved is not None:
        loaded = with_numbers_of(saved, loaded)
        finished = finished_report(run, saved, loaded.spec)
        if finished is not None:
            reporter.say(f"the run in {run.path} is finished; its report follows")
            return finished
    table, warnings = open_training_table(loaded, reporter)
    loaded = resolve_sampler(loaded, table, reporter, warnings, world)
    spec = loaded.spec
    postprocessors = built_postprocessors(spec.validation)
    context = open_context(spec.compute, reporter, spec.training.precision, world)
    data, rows = build_train_set(spec, table, context), table.split("validation")
    if world.size > 1:
        world.require_alike(table=(data.digest(), len(rows)))
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
    with held(run, world):
        progress = restore(run, saved, learner, data) if saved is not None else Progress()
        world.once(lambda: _open(run, spec, progress if saved is not None else None, resume, reporter))
        with Logs(run if world.is_main else None, spec.loggers, reporter) as logs, stop_on_signals() as stop:
            training = Training(loaded, context, data, learner, rows, run, progress, logs, warnings, judge)
            training.run(stop)
    return report(run, spec, progress, warnings)


@contextmanager
def held(run: RunDirectory, world: World) -> Iterator[None]:
    """The main process keeps every other run out of the directory."""
    with ExitStack() as stack:
        world.once(lambda: stack.enter_context(run.locked()))
        yield


def _open(
    run: RunDirectory,
    spec: TrainSpec,
    progress: Progress | None,
    resume: str | Path | None,
    reporter: Transcript,
) -> None:
    """Make the directory of a new run, or cut that of a resumed one off where its last.ckpt was saved."""
    if progress is not None:
        run.forget_after(progress.step, progress.epoch + 1 if progress.step_in_epoch else None)
        said = f"going on with {run.path} at epoch {progress.epoch + 1}, step {progress.step + 1}"
    else:
        run.start(spec.model_dump(mode="json"), again=resume is not None)
        said = f"run directory {run.path}"
    reporter.write_to(run.log)
    reporter.say(said)


def open_training_table(loaded: Loaded[TrainSpec], reporter: Reporter) -> tuple[Table, list[str]]:
    """Check the spec alone, read the table, check the spec against it; warnings are said and given back.

    Raises:
        SpecError: the blocks contradict each other or the table.
        DataError: the table is unreadable or has errors.
    """
    check_spec(loaded, None)
    table, warnings = open_table(loaded.spec.data, "train", reporter)
    return table, warnings + check_with_table(loaded, table, "validation", reporter)
