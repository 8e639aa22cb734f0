"""What is said where a run ends or cannot go on, and a finished run whose newest save is lost."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metricli import TrainReport, validate
from metricli.data.disk import remedy
from metricli.errors import CheckpointError, DataError, Interrupted, ResourceError, UsageError
from metricli.runs.checkpoints import damage_of, read_last
from metricli.runs.training import Training
from tests.runs.conftest import Listener
from tests.runs.test_resuming import interrupted
from tests.runs.test_saving import EVERY, flipped, kept

Fit = Callable[..., TrainReport]


def test_the_log_tells_how_a_run_ended(fit: Fit, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(Interrupted) as caught:
        fit(run_dir=run, reporter=Listener(stop_after=1))
    last = (run / "log.txt").read_text().splitlines()[-1]
    assert last.split(" ", 1)[1] == f"error: {caught.value}"
    assert "stopped by a signal after step 1, saved in " in last


def test_the_log_tells_of_a_fault_of_ours_and_never_hides_it(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    def broken(self: Any, *_: Any) -> None:
        (run / "log.txt").chmod(0o600)
        raise AttributeError("no such\nthing")

    monkeypatch.setattr(Training, "train_epoch", broken)
    with pytest.raises(AttributeError, match="no such"):
        fit(run_dir=run)
    words = [line.split(" ", 1)[1] for line in (run / "log.txt").read_text().splitlines()]
    assert words[-2:] == ["error: AttributeError: no such", "thing"]

    def gone(self: Any, *_: Any) -> None:
        (run / "log.txt").unlink()
        (run / "log.txt").mkdir()
        raise AttributeError("no such thing")

    monkeypatch.setattr(Training, "train_epoch", gone)
    with pytest.raises(AttributeError, match="no such thing"):
        fit(run_dir=run, resume="auto")


def test_a_finished_run_takes_its_kept_step_for_a_damaged_newest(fit: Fit) -> None:
    first = fit(*EVERY)
    expected = read_last(first.last_ckpt)[1]
    for damage in (flipped, Path.unlink):
        damage(first.last_ckpt)
        with pytest.raises(CheckpointError) as caught:
            fit(*EVERY, resume=first.run_dir)
        assert caught.value.hint == f"go back to a save that was kept: --resume {kept(first.run_dir, 4)}"
        listener = Listener()
        again = fit(*EVERY, run_dir=first.run_dir, resume="auto", reporter=listener)
        assert again.metrics == first.metrics
        assert listener.steps == []
        assert [f"going back to {kept(first.run_dir, 4)}" in line for line in listener.warned] == [True]
        assert damage_of(first.last_ckpt) == ""
        assert read_last(first.last_ckpt)[1] == expected


def test_a_finished_run_says_that_its_best_is_damaged(fit: Fit) -> None:
    first = fit()
    flipped(first.best_ckpt)
    listener = Listener()
    fit(resume=first.run_dir, reporter=listener)
    assert listener.warned == [
        f"{str(first.best_ckpt)!r} is damaged: its content does not match its sha256; "
        "the report tells of what it held"
    ]


def test_what_to_resume_is_named(fit: Fit, tmp_path: Path) -> None:
    run = interrupted(fit, *EVERY, after=2)
    step = kept(run, 1)
    assert step.is_dir()
    meant = {run / "checkpoints": run, run / "checkpoints" / "last.ckpt": run, step / "last.ckpt": step}
    for given, hint in meant.items():
        with pytest.raises(UsageError) as caught:
            fit(*EVERY, resume=given)
        assert caught.value.hint == f"did you mean --resume {hint}?"
    (run / "spec.resolved.yaml").rename(tmp_path / "spec.resolved.yaml")
    with pytest.raises(UsageError) as caught:
        fit(*EVERY, resume=tmp_path)
    assert caught.value.hint == (
        f"it was stopped before its first save: --run-dir {tmp_path} --resume auto starts it again"
    )


def test_the_folder_of_a_run_s_checkpoints_is_the_run(fit: Fit) -> None:
    report = fit()
    found = validate(ckpt=report.best_ckpt.parent)
    assert found.metrics == report.metrics
    assert found.embeddings == str(report.best_ckpt)


def test_what_to_do_by_the_number_of_the_failure() -> None:
    assert remedy(errno.ENOSPC) == remedy(errno.EDQUOT) == "free some space"
    assert remedy(errno.EFBIG) == "raise the limit on the size of a file (ulimit -f)"
    assert remedy(errno.EROFS) == remedy(None) == "check the folder and its permissions"


def test_a_run_directory_that_has_become_read_only(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    run = interrupted(fit, after=1)
    write_text = Path.write_text

    def refuse(path: Path, *args: Any, **kwargs: Any) -> int:
        if path.parent == run:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return write_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(ResourceError) as caught:
        fit(resume=run)
    assert str(caught.value) == (
        f"cannot write {str(run / 'metrics.part')!r}: Read-only file system; "
        "check the folder and its permissions"
    )


def test_a_hint_stands_on_a_line_of_its_own_below_a_list() -> None:
    assert str(DataError("one thing", hint="do it")) == "one thing; do it"
    assert str(DataError("two things\n  one\n  two", hint="do it")) == "two things\n  one\n  two\n  do it"
