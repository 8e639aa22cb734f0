"""Which run a command starts, goes on with, or finds finished."""

from __future__ import annotations

from pathlib import Path

from metricli.errors import UsageError
from metricli.reporter import Reporter
from metricli.reports import TrainReport
from metricli.runs.checkpoints import Saved
from metricli.runs.directory import RUNS, RunDirectory, new_run_directory, newest_run
from metricli.runs.history import Progress, refuse_other_spec, report
from metricli.runs.probing import with_sampler
from metricli.specs.load import Loaded
from metricli.specs.train import TrainSpec


def choose_run(
    spec: TrainSpec, run_dir: str | Path | None, resume: str | Path | None, reporter: Reporter
) -> tuple[RunDirectory, bool]:
    """The directory of the run, and whether it is one to go on with.

    Raises:
        UsageError: the directory holds a run and no resume was asked for, or it cannot be resumed.
    """
    if resume is None:
        return new_run_directory(spec.name, run_dir), False
    if str(resume) != "auto":
        run = RunDirectory(Path(resume).absolute())
        if run_dir is not None and Path(run_dir).absolute() != run.path:
            what = f"--resume {str(resume)!r} and --run-dir {str(run_dir)!r} are two places"
            raise UsageError(what, hint="give one of them")
    elif run_dir is not None:
        run = RunDirectory(Path(run_dir).absolute())
    else:
        run = newest_run(Path.cwd() / RUNS, name=spec.name, file="last") or RunDirectory(Path())
    if run.last.is_file():
        return run, True
    if str(resume) != "auto":
        what = f"{str(resume)!r} holds no checkpoints/last.ckpt to resume"
        raise UsageError(what, hint="give a run directory, or --resume auto")
    reporter.say("there is no run to resume: starting a new one")
    if run_dir is not None and run.holds_a_run:  # it was stopped before its first checkpoint
        return run, False
    return new_run_directory(spec.name, run_dir), False


def with_numbers_of(saved: Saved, loaded: Loaded[TrainSpec]) -> Loaded[TrainSpec]:
    """The spec with what its sampler leaves to auto as the run began with it."""
    sampler = loaded.spec.sampler
    if sampler is None or not sampler.open_settings:
        return loaded
    was = saved[1]["spec"].get("sampler") or {}
    if was.get("name") != getattr(sampler, "name", None):
        return loaded
    numbers = {key: was[key] for key in sampler.open_settings if key in was}
    return with_sampler(loaded, sampler.model_copy(update=numbers))


def finished_report(run: RunDirectory, saved: Saved, spec: TrainSpec) -> TrainReport | None:
    """The report of a run that is finished, None of one that is not.

    Raises:
        UsageError: the run was of another spec.
    """
    _, meta = saved
    progress = Progress(**meta["progress"])
    if not progress.stopped:
        return None
    refuse_other_spec(meta["spec"], spec, run.path)
    return report(run, spec, progress, [])
