"""Which run a command starts, goes on with, or finds finished."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from metricli.errors import CheckpointError, UsageError
from metricli.reporter import Reporter
from metricli.reports import TrainReport
from metricli.runs.changes import Change, accepted_changes, touches
from metricli.runs.checkpoints import Saved, damage_of, identity, read_last
from metricli.runs.directory import RUNS, RunDirectory, new_run_directory, newest_run
from metricli.runs.history import Progress, report
from metricli.runs.kept import go_back, kept_steps, run_of_step
from metricli.runs.probing import with_sampler
from metricli.specs.load import Loaded
from metricli.specs.train import TrainSpec

_EPOCHS, _PATIENCE = "epochs", "early stopping"


@dataclass(frozen=True)
class Resumed:
    """What a run goes on with."""

    saved: Saved
    back_to: Path | None = None
    """The step directory, if it is not the run's last.ckpt."""
    newest: tuple[int, int] | None = None
    """Which file last.ckpt was when this was read."""

    @staticmethod
    def read(run: RunDirectory, back_to: Path | None = None) -> Resumed:
        """What the last.ckpt of a run, or of one of its steps, holds.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        newest = identity(run.last)
        return Resumed(read_last((back_to or run.last.parent) / run.last.name), back_to, newest)

    def require_unchanged(self, run: RunDirectory) -> None:
        """Refuse to go on from what another process has meanwhile gone on from, too.

        Raises:
            UsageError: last.ckpt is another file by now.
        """
        if identity(run.last) != self.newest:
            what = f"another process has gone on with the run in {str(run.path)!r} meanwhile"
            raise UsageError(what, hint="resume again, if it has ended")


def choose_run(
    spec: TrainSpec, run_dir: str | Path | None, resume: str | Path | None, reporter: Reporter
) -> tuple[RunDirectory, Resumed | None]:
    """The directory of the run, and what it goes on with if it is not a new one.

    Raises:
        UsageError: the directory holds a run and no resume was asked for, or it cannot be resumed.
        CheckpointError: what it should go on with is damaged.
    """
    if resume is None:
        return new_run_directory(spec.name, run_dir), None
    run, step = _asked_run(spec, run_dir, resume)
    if step is not None:
        return run, Resumed.read(run, step)
    if run.last.is_file() or kept_steps(run):
        return run, _newest_sound(run, reporter, fall_back=str(resume) == "auto")
    if str(resume) != "auto":
        what = f"{str(resume)!r} holds no checkpoints/last.ckpt to resume"
        raise UsageError(what, hint=_what_to_resume(run, resume))
    reporter.say("there is no run to resume: starting a new one")
    if run_dir is not None and run.holds_a_run:  # it was stopped before its first checkpoint
        return run, None
    return new_run_directory(spec.name, run_dir), None


def _what_to_resume(run: RunDirectory, resume: str | Path) -> str:
    if run.holds_a_run:
        return f"it was stopped before its first save: --run-dir {resume} --resume auto starts it again"
    for folder in (run.path.parent, run.path.parent.parent):  # a last.ckpt, or checkpoints
        if RunDirectory(folder).last.is_file() or (run_of_step(folder) and run.path.is_file()):
            return f"did you mean --resume {folder}?"
    return "give a run directory, one of its step directories, or --resume auto"


def _asked_run(
    spec: TrainSpec, run_dir: str | Path | None, resume: str | Path
) -> tuple[RunDirectory, Path | None]:
    """The run that is meant, and its step directory if one is given."""
    step = None
    if str(resume) != "auto":
        run = RunDirectory(Path(resume).absolute())
        of_step = run_of_step(run.path)
        if of_step is not None:
            run, step = of_step, run.path
        if run_dir is not None and Path(run_dir).absolute() != run.path:
            what = f"--resume {str(resume)!r} and --run-dir {str(run_dir)!r} are two places"
            raise UsageError(what, hint="give one of them")
        return run, step
    if run_dir is not None:
        return RunDirectory(Path(run_dir).absolute()), None
    return newest_run(Path.cwd() / RUNS, name=spec.name, file="last") or RunDirectory(Path()), None


def _newest_sound(run: RunDirectory, reporter: Reporter, *, fall_back: bool) -> Resumed:
    """What last.ckpt holds, or, with `fall_back`, the newest step that is kept and sound.

    Raises:
        CheckpointError: it is damaged, and there is nothing to fall back to.
    """
    steps = kept_steps(run)
    try:
        return Resumed.read(run)
    except CheckpointError as error:
        if steps:
            error.hint = f"go back to a save that was kept: --resume {steps[0]}"
        if not fall_back:
            raise
        damage = error
    for step in steps:
        try:
            found = Resumed.read(run, step)
        except CheckpointError:
            continue
        reporter.warn(f"{damage.message}: going back to {step}")
        return found
    raise damage


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


def changes_since(
    run: RunDirectory, saved: Saved, spec: TrainSpec, allowed: Sequence[str], reporter: Reporter
) -> list[Change]:
    """How the spec differs from that of the run; each change is accepted, and said.

    Raises:
        UsageError: a key differs that `allowed` does not name.
    """
    changes = accepted_changes(saved[1]["spec"], spec, run.path, allowed)
    for change in changes:
        reporter.say(f"the spec has changed, {change}")
    for key in allowed:
        if not any(touches(change.key, [key]) for change in changes):
            reporter.warn(f"--allow-change {key}: nothing has changed there")
    return changes


def finished_report(
    run: RunDirectory, saved: Saved, spec: TrainSpec, changes: Sequence[Change]
) -> TrainReport | None:
    """The report of a run that is finished; None of one that is not, or that a change lets go on."""
    progress = Progress(**saved[1]["progress"])
    if not progress.stopped:
        return None
    changed = {change.key for change in changes}
    patience, left = spec.training.patience, progress.epoch < spec.training.epochs
    more_epochs = progress.stopped == _EPOCHS and "training.epochs" in changed
    more_patience = progress.stopped == _PATIENCE and "training.patience" in changed
    if left and (more_epochs or (more_patience and (patience is None or progress.stale < patience))):
        saved[1]["progress"]["stopped"] = ""
        return None
    return report(run, spec, progress)


def mend_finished(run: RunDirectory, resumed: Resumed, report: TrainReport, reporter: Reporter) -> None:
    """Put the step that stands in for a damaged last.ckpt into its place; say it of a damaged best.ckpt."""
    if resumed.back_to is not None and damage_of(run.last):
        with suppress(OSError), run.locked():
            go_back(run, resumed.back_to)
    if report.best_epoch and (lost := damage_of(run.best)):
        reporter.warn(f"{lost}; the report tells of what it held")
