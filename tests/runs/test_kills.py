"""`kill -9` at any moment costs the steps since the last save and no more: over every state of the files."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from metricli import TrainReport, train
from metricli.components.tensorfile import read_tensor_file
from metricli.runs.directory import RunDirectory
from tests.runs.conftest import spec_over
from tests.runs.resuming import assert_same_run
from tests.runs.snapshots import Camera, filmed, names_in

QUICK = ("validation.bootstrap={samples: 0}", "validation.metrics={cmc: [1], map: [], precision: []}")
OFTEN = (*QUICK, "training.save_every_steps=1")
KEPT = (*OFTEN, "training.keep=9", "training.epochs=3", "seed=5")


def film(spec: dict[str, Any], overrides: Iterable[str], folder: Path) -> tuple[TrainReport, list[Path]]:
    """An uninterrupted run, and a run directory for each state that its files were in."""
    with filmed(folder / "one", folder / "shots") as camera:
        one = train(copy.deepcopy(spec), tuple(overrides), run_dir=folder / "one")
    return one, camera.shots


def assert_goes_on(one: TrainReport, spec: dict[str, Any], overrides: Iterable[str], shot: Path) -> None:
    """The same command as before, made to go on, ends as if there had been no kill, and tidies up."""
    for checkpoint in shot.glob("checkpoints/*.ckpt"):
        read_tensor_file(checkpoint)  # what has a name is whole
    two = train(copy.deepcopy(spec), tuple(overrides), run_dir=shot, resume="auto")
    assert_same_run(one, two)
    assert names_in(shot) == names_in(one.run_dir)


def torn(shot: Path) -> None:
    """Cut the last line of metrics.jsonl in two, as a kill within a write does."""
    text = (shot / "metrics.jsonl").read_text()
    last = text.rstrip("\n").rpartition("\n")[2]
    (shot / "metrics.jsonl").write_text(text[: len(text) - len(last) // 2])


def test_a_kill_at_any_moment_loses_nothing(table: Path, tmp_path: Path) -> None:
    spec = spec_over(table)
    one, shots = film(spec, OFTEN, tmp_path)
    assert len(shots) > 25
    assert sum(any(shot.glob("checkpoints/.*")) for shot in shots) >= 5, "some amid a save"
    written = [(shot / "metrics.jsonl").exists() and (shot / "metrics.jsonl").read_bytes() for shot in shots]
    for number, shot in enumerate(shots):
        if written[number] and written[number] != written[number - 1] and number % 2:
            torn(shot)
        try:
            assert_goes_on(one, spec, OFTEN, shot)
        except BaseException as error:
            error.add_note(f"killed in state {number}: {names_in(tmp_path / 'shots' / str(number))}")
            raise


def test_a_kill_of_the_run_that_goes_on_loses_nothing(table: Path, tmp_path: Path) -> None:
    spec = spec_over(table)
    one, shots = film(spec, OFTEN, tmp_path)
    amid = next(shot for shot in shots if (shot / "checkpoints/last.ckpt").exists() and left_over(shot))
    torn(amid)
    with filmed(amid, tmp_path / "again") as camera:
        assert_goes_on(one, spec, OFTEN, amid)
    before = first_save(camera)
    assert before >= 3, "it tidies up, cuts metrics.jsonl off, writes the spec"
    for shot in camera.shots[1:before:2]:
        assert_goes_on(one, spec, OFTEN, shot)


def left_over(shot: Path) -> list[Path]:
    return [path for path in shot.glob("checkpoints/.*") if path.stat().st_size]


def first_save(camera: Camera) -> int:
    """How many states it took until last.ckpt was written again."""
    contents = [(shot / "checkpoints/last.ckpt").read_bytes() for shot in camera.shots]
    return next(at for at, content in enumerate(contents) if content != contents[0])


def test_a_line_that_was_cut_behind_a_brace_is_made_again(table: Path, tmp_path: Path) -> None:
    spec = spec_over(table)
    one = train(copy.deepcopy(spec), QUICK, run_dir=tmp_path / "one")
    cut = shutil.copytree(one.run_dir, tmp_path / "cut")
    lines = (cut / "metrics.jsonl").read_text().splitlines(keepends=True)
    run = RunDirectory(cut)
    for tail in ('{"step": 4, "category": "a}', '{"step": 4, "category": "a}\n', "\0\0\0\0"):
        run.metrics.write_text("".join(lines) + tail)
        run.forget_after(one.steps)
        assert run.metrics.read_text() == "".join(lines)


@pytest.fixture(scope="module")
def kept(table: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainReport:
    """A run that kept all its steps, and is best in its last epoch; nobody changes it."""
    report = train(spec_over(table), KEPT, run_dir=tmp_path_factory.mktemp("kept") / "run")
    assert report.best_epoch == 3, "else going back to step 3 changes no best.ckpt"
    return report


def test_a_kill_while_a_run_goes_back_loses_nothing(kept: TrainReport, table: Path, tmp_path: Path) -> None:
    spec, run = spec_over(table), shutil.copytree(kept.run_dir, tmp_path / "run")
    with filmed(run, tmp_path / "shots") as camera:
        two = train(copy.deepcopy(spec), KEPT, resume=run / "checkpoints" / "step-00000003")
    assert_same_run(kept, two)
    steps = [len(list(shot.glob("checkpoints/step-*"))) for shot in camera.shots]
    going = camera.shots[: next(at for at in range(1, len(steps)) if steps[at] > steps[at - 1])]
    assert len(going) >= 8
    for shot in going[1::8]:
        again = shutil.copytree(shot, shot.with_name(f"{shot.name}-again"))
        same = train(copy.deepcopy(spec), KEPT, resume=again / "checkpoints" / "step-00000003")
        assert_same_run(kept, same)
        assert names_in(again) == names_in(kept.run_dir)
    for shot in going[1:3]:  # whether or not it had gone back when it was killed, the whole is one run
        assert_same_run(kept, train(copy.deepcopy(spec), KEPT, run_dir=shot, resume="auto"))


VARIANTS = {
    "everything": (
        "training.epochs=4",
        "training.save_every_steps=1",
        "training.keep=3",
        "training.ema={decay: 0.9, warmup: true}",
        "training.freeze_epochs=1",
        "training.patience=2",
        "training.micro_batch=4",
        "scheduler={name: plateau, patience: 0, factor: 0.5}",
        "optimizer={name: sgd, lr: 0.05, momentum: 0.9}",
        "loss=[{loss: {name: supcon, memory: {size: 16}}}, {loss: {name: sub_center_arcface}}]",
    ),
    "rarely saved": ("training.epochs=4", "validation.every_n_epochs=2", "training.log_every_steps=3"),
    "epochs are kept": ("training.epochs=4", "training.keep=2"),
    "every second step": ("training.epochs=3", "sampler.batches=3", "training.save_every_steps=2"),
}


@pytest.mark.long
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_of_other_runs(table: Path, tmp_path: Path, variant: str) -> None:
    spec, overrides = spec_over(table), (*QUICK, *VARIANTS[variant])
    one, shots = film(spec, overrides, tmp_path)
    for shot in shots:
        two = train(copy.deepcopy(spec), overrides, run_dir=shot, resume="auto")
        assert_same_run(one, two)
