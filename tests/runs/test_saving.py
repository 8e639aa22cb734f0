"""When last.ckpt is written, what stays of it, and what it can be used for beside a resume."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metricli import TrainReport, predict, validate
from metricli.components.tensorfile import read_tensor_file
from metricli.errors import CheckpointError, Interrupted, ResourceError
from metricli.runs.checkpoints import read_best, read_last
from tests.runs.conftest import Listener, assert_same_weights, lines
from tests.runs.test_resuming import assert_same_run, interrupted

Fit = Callable[..., TrainReport]
LONGER = ("training.epochs=3",)
EVERY = ("training.save_every_steps=1", "training.keep=3")
"""A run of the fixture has two steps an epoch."""


def names(run: Path) -> list[str]:
    """What lies in the folder of checkpoints."""
    return sorted(os.listdir(run / "checkpoints"))


def kept(run: Path, step: int) -> Path:
    """The directory of a step."""
    return run / "checkpoints" / f"step-{step:08d}"


def flipped(path: Path) -> None:
    """Damage a file, without touching its other names."""
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.unlink()
    path.write_bytes(content)


def saves(fit: Fit, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> list[tuple[int, int]]:
    """The position (epoch, step in it) of each save of a run."""
    from metricli.runs import training

    seen: list[tuple[int, int]] = []
    save = training.save

    def note(run: Any, learner: Any, progress: Any, *rest: Any) -> None:
        seen.append((progress.epoch, progress.step_in_epoch))
        save(run, learner, progress, *rest)

    monkeypatch.setattr(training, "save", note)
    fit("validation.every_n_epochs=3", *overrides)
    return seen


def test_it_is_saved_at_the_ends_of_epochs_by_default(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    assert saves(fit, monkeypatch, "training.epochs=1") == [(0, 2), (1, 0)]


def test_and_every_so_many_steps(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    found = saves(fit, monkeypatch, *LONGER, "training.save_every_steps=3", "sampler.batches=4")
    assert found == [(0, 3), (1, 0), (1, 2), (2, 0), (2, 1), (2, 4), (3, 0)]


def test_and_when_the_newest_is_old(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    from metricli.runs import training

    clock = iter(range(0, 1_000_000, 61))  # a minute passes whenever it is asked for
    monkeypatch.setattr(training.time, "monotonic", lambda: float(next(clock)))
    found = saves(fit, monkeypatch, "training.save_every_minutes=1.5", "sampler.batches=4")
    assert (0, 1) in found or (0, 2) in found
    never = saves(fit, monkeypatch, "training.save_every_minutes=null", "sampler.batches=4")
    assert [place for place in never if 0 < place[1] < 4] == []


def test_the_newest_few_stay(fit: Fit) -> None:
    report = fit(*LONGER, "training.save_every_steps=1", "training.keep=2")
    assert names(report.run_dir) == ["best.ckpt", "last.ckpt", "step-00000005", "step-00000006"]
    assert read_last(kept(report.run_dir, 5) / "last.ckpt")[1]["progress"]["step"] == 5
    assert (kept(report.run_dir, 6) / "last.ckpt").samefile(report.last_ckpt)  # it takes no room of its own


def test_without_steps_the_ends_of_epochs_stay(fit: Fit) -> None:
    report = fit(*LONGER, "training.keep=5")
    assert names(report.run_dir)[2:] == ["step-00000002", "step-00000004", "step-00000006"]
    for epoch in (1, 2, 3):
        progress = read_last(kept(report.run_dir, 2 * epoch) / "last.ckpt")[1]["progress"]
        assert (progress["epoch"], progress["step_in_epoch"]) == (epoch, 0)


def test_keeping_changes_nothing_of_the_run(fit: Fit, whole: Fit) -> None:
    one, two = whole(*LONGER), fit(*LONGER, *EVERY)
    assert_same_weights(one.best_ckpt, two.best_ckpt)
    assert lines(one) == lines(two)


def test_where_there_are_no_links_they_are_copies(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    report = fit("training.keep=1")
    copy = kept(report.run_dir, 4) / "last.ckpt"
    assert not copy.samefile(report.last_ckpt)
    assert copy.read_bytes() == report.last_ckpt.read_bytes()


def test_going_back_to_a_step_makes_the_rest_again(fit: Fit, whole: Fit) -> None:
    run = fit(*LONGER, *EVERY).run_dir
    listener = Listener()
    again = fit(*LONGER, *EVERY, resume=kept(run, 4), reporter=listener)
    assert again.run_dir == run
    assert len(listener.steps) == 2
    assert_same_weights(whole(*LONGER).best_ckpt, again.best_ckpt)
    assert_same_weights(whole(*LONGER).last_ckpt, again.last_ckpt)
    assert lines(whole(*LONGER)) == lines(again)
    assert names(run)[2:] == ["step-00000004", "step-00000005", "step-00000006"]


def test_going_back_forgets_a_best_that_came_later(fit: Fit) -> None:
    run = fit("training.epochs=2", "training.keep=2", "training.save_every_steps=1").run_dir
    best = kept(run, 3) / "best.ckpt"
    first = best.read_bytes()
    with pytest.raises(Interrupted):
        fit(
            "training.epochs=2",
            "training.keep=2",
            "training.save_every_steps=1",
            resume=kept(run, 3),
            reporter=Listener(stop_after=1),
        )
    assert (run / "checkpoints" / "best.ckpt").read_bytes() == first
    assert not list((run / "checkpoints").glob(".*"))


def test_a_damaged_newest_names_the_step_before_it(fit: Fit, tmp_path: Path, whole: Fit) -> None:
    run = interrupted(fit, *LONGER, *EVERY, after=4)
    flipped(run / "checkpoints" / "last.ckpt")
    with pytest.raises(CheckpointError) as caught:
        fit(*LONGER, *EVERY, resume=run)
    assert caught.value.hint == f"go back to a save that was kept: --resume {kept(run, 3)}"
    flipped(kept(run, 3) / "last.ckpt")
    listener = Listener()
    done = fit(*LONGER, *EVERY, run_dir=run, resume="auto", reporter=listener)
    assert len(listener.steps) == 4  # from step 2
    assert any(f"going back to {kept(run, 2)}" in line for line in listener.warned)
    assert lines(done) == lines(whole(*LONGER))
    assert_same_weights(done.best_ckpt, whole(*LONGER).best_ckpt)


def test_nothing_sound_is_left(fit: Fit) -> None:
    run = interrupted(fit, *LONGER, after=4)
    flipped(run / "checkpoints" / "last.ckpt")
    with pytest.raises(CheckpointError, match="does not match its sha256"):
        fit(*LONGER, run_dir=run, resume="auto")


@pytest.mark.parametrize("ema", [(), ("training.ema={decay: 0.5}",)])
def test_a_step_serves_inference(fit: Fit, tmp_path: Path, ema: tuple[str, ...]) -> None:
    report = fit(*ema, "training.keep=1", "training.save_every_steps=3")
    step = kept(report.run_dir, 3)
    state = read_last(step / "last.ckpt")[0]
    expected = state["ema"] if ema else state["extractor"]
    for given in (step, step / "last.ckpt"):
        found = read_best(given if given.is_file() else step / "last.ckpt")
        assert found.weights.keys() == expected.keys()
        assert all(torch.equal(found.weights[name], expected[name]) for name in expected)
        listener = Listener()
        validate(ckpt=given, reporter=listener)
        assert any("the weights after step 3" in line for line in listener.said)
    predict(ckpt=step, out=tmp_path / "of_step.npy")
    predict(ckpt=report.last_ckpt, out=tmp_path / "of_last.npy")
    predict(ckpt=report.run_dir, out=tmp_path / "of_run.npy")
    of_step, of_last, of_run = (np.load(tmp_path / f"of_{name}.npy") for name in ("step", "last", "run"))
    assert not np.array_equal(of_step, of_last)
    best_is_last = report.best_epoch == report.epochs
    assert np.array_equal(of_run, of_last) == best_is_last


def test_a_run_without_a_best_names_its_last(fit: Fit) -> None:
    run = interrupted(fit, after=1)
    with pytest.raises(CheckpointError) as caught:
        validate(ckpt=run)
    assert caught.value.hint == "give its checkpoints/last.ckpt"
    assert validate(ckpt=run / "checkpoints" / "last.ckpt").metrics


def test_what_a_killed_save_left_is_removed(fit: Fit, whole: Fit) -> None:
    run = interrupted(fit, after=3)
    folder = run / "checkpoints"
    (folder / ".last.ckpt.4711.part").write_bytes(b"half")
    (folder / ".tmpAbC123").write_bytes(b"half")
    (folder / ".step-00000002.part").mkdir()
    (folder / ".step-00000002.part" / "last.ckpt").write_bytes(b"half")
    (run / "metrics.part").write_text("{}")
    done = fit(resume=run)
    assert names(run) == ["best.ckpt", "last.ckpt"]
    assert not (run / "metrics.part").exists()
    assert_same_run(whole(), done)


def test_a_run_that_was_killed_in_its_first_save_starts_anew_and_leaves_nothing(fit: Fit, whole: Fit) -> None:
    run = interrupted(fit, after=1)
    (run / "checkpoints" / "last.ckpt").rename(run / "checkpoints" / ".last.ckpt.4711.part")
    (run / "checkpoints" / ".keepme").touch()
    done = fit(run_dir=run, resume="auto")
    assert names(run) == [".keepme", "best.ckpt", "last.ckpt"]
    assert_same_run(whole(), done)


def test_the_labels_stand_once_in_a_last(fit: Fit) -> None:
    """There may be a million of them, and a head has an end."""
    report = fit()
    head = report.last_ckpt.read_bytes()
    assert head.count(b"hexagon_hollow") == report.best_ckpt.read_bytes().count(b"hexagon_hollow") == 1
    assert read_best(report.last_ckpt).labels == read_best(report.best_ckpt).labels


@pytest.mark.parametrize("after", [None, 3])
def test_a_disk_without_room_is_refused_before_the_first_step(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int | None
) -> None:
    place: dict[str, Any] = {"run_dir": tmp_path / "run"}
    if after is not None:
        place = {"resume": interrupted(fit, after=after)}
    free = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: free)
    listener = Listener()
    with pytest.raises(ResourceError, match=r"need \d+ MB in .*, and \d+ MB are free; .*training\.keep"):
        fit("training.keep=9", reporter=listener, **place)
    assert listener.steps == []
    assert after is not None or not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "overrides", [(), ("optimizer={name: sgd, momentum: 0.9}",), ("optimizer={name: sgd}", "training.ema={}")]
)
def test_the_room_asked_for_is_what_is_written(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    from metricli.runs import room, train

    sizes = []
    monkeypatch.setattr(
        train, "require_room", lambda _run, learner: sizes.append(room._size_of_last(learner))
    )
    report = fit(*overrides)
    assert sizes[0] - room._OVERHEAD == pytest.approx(_bytes_of(report.last_ckpt), rel=0.02)


def test_room_is_asked_for_what_is_still_frozen(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    from metricli.runs import room, train

    frozen = (*LONGER, "training.freeze_epochs=2")
    run = interrupted(fit, *frozen, after=1)
    sizes = []
    monkeypatch.setattr(
        train, "require_room", lambda _run, learner: sizes.append(room._size_of_last(learner))
    )
    report = fit(*frozen, resume=run)
    assert sizes[0] - room._OVERHEAD >= 0.98 * _bytes_of(report.last_ckpt)


def _bytes_of(file: Path) -> int:
    return sum(t.numel() * t.element_size() for t in read_tensor_file(file)[0].values())


def test_a_best_that_is_gone_is_looked_for_anew(fit: Fit) -> None:
    run = interrupted(fit, *LONGER, after=4)
    (run / "checkpoints" / "best.ckpt").unlink()
    listener = Listener()
    done = fit(*LONGER, resume=run, reporter=listener)
    assert any("best.ckpt is gone" in line for line in listener.warned)
    assert read_best(done.best_ckpt).epoch == done.best_epoch >= 2
