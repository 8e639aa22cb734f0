"""What processes of a run could come to differ in, one decides for all: what is judged, stops, fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from metricli import dry_run
from metricli.errors import CollapseError, ResourceError
from metricli.placement import placement
from metricli.reports import DryRunReport
from metricli.runs import training as training_module
from metricli.runs.checkpoints import read_last
from metricli.runs.history import Progress
from metricli.runs.training import Training
from metricli.runs.watch import Watch
from tests.runs.conftest import spec_over, tensors
from tests.runs.test_processes_train import run
from tests.worlds import Worlds

pytestmark = pytest.mark.xdist_group("worlds")


def statistics_of_each(spec: dict[str, Any], place: Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    """A run, and the buffers of the model that this process has judged at its end."""
    judged: list[dict[str, Any]] = []
    validate = Training.validate

    def noted(training: Training, *args: Any) -> Any:
        metrics = validate(training, *args)
        judged.append({name: buffer.clone() for name, buffer in training.learner.judged.named_buffers()})
        return metrics

    with mock.patch.object(Training, "validate", noted):
        found = run(spec, place, overrides)
    assert found["error"] is None, found["error"]
    return judged[-1]


@pytest.mark.parametrize("ema", ["null", "{decay: 0.5}"])
def test_all_judge_the_model_that_is_saved(worlds: Worlds, table: Path, tmp_path: Path, ema: str) -> None:
    """Batch norm of each process's own has other statistics in each; one of them is saved and judged."""
    place = tmp_path / "run"
    overrides = ("extractor={name: timm, model: test_resnet, dim: 8}", f"training.ema={ema}")
    overrides += ("training.sync_batchnorm=false", "training.epochs=1")
    one, two = worlds.run(2, statistics_of_each, spec_over(table), place, overrides)
    saved = tensors(place / "checkpoints" / "best.ckpt")
    assert any(name.endswith("running_var") for name in one)
    for name, buffer in one.items():
        assert torch.equal(buffer, two[name]), name
        assert torch.equal(buffer, saved[f"extractor.{name}"]), name


def at_odds(spec: dict[str, Any], place: Path, what: str) -> dict[str, Any]:
    """A run whose processes differ in what they compute for themselves, as GPUs may in the last bit."""
    rank = placement().rank
    losses = iter([1.0, 2.0, 3.0, 4.0] if rank == 0 else [4.0, 3.0, 2.0, 1.0])

    def look(watch: Watch, step: int, *_args: Any) -> dict[str, float]:
        if (step == 2) == (rank == 0):
            watch.collapse = "collapsed"
        return {}

    def save(*_args: Any, **_options: Any) -> None:
        raise ResourceError("the disk is full")

    places: dict[str, tuple[Any, ...]] = {
        "patience": (Progress, "means", lambda _: {"loss": next(losses)}),
        "collapse": (Watch, "look", look),
        "disk": (training_module, "save", save),
        "disk at the best": (training_module, "save_best", save),
    }
    words = {
        "patience": ("validation.monitor=loss", "training.patience=2", "training.epochs=4"),
        "collapse": ("training.on_collapse=stop", "training.log_every_steps=1"),
    }
    with mock.patch.object(*places[what]):
        return run(spec, place, words.get(what, ()))


def test_one_decides_for_all_when_patience_is_out(worlds: Worlds, table: Path, tmp_path: Path) -> None:
    for found in worlds.run(2, at_odds, spec_over(table), tmp_path / "run", "patience"):
        assert found["error"] is None
        told = found["report"]
        assert (told.stopped, told.epochs, told.best_epoch, told.monitor_value) == (
            "early stopping",
            3,
            1,
            1.0,
        )


def test_one_decides_for_all_that_the_run_has_collapsed(worlds: Worlds, table: Path, tmp_path: Path) -> None:
    for found in worlds.run(2, at_odds, spec_over(table), tmp_path / "run", "collapse"):
        assert isinstance(found["error"], CollapseError)
    assert read_last(tmp_path / "run" / "checkpoints" / "last.ckpt")[1]["progress"]["step"] == 2


@pytest.mark.parametrize("what", ["disk", "disk at the best"])
def test_all_learn_that_nothing_can_be_saved(worlds: Worlds, table: Path, tmp_path: Path, what: str) -> None:
    for found in worlds.run(2, at_odds, spec_over(table), tmp_path / "run", what):
        assert str(found["error"]) == "the disk is full"


def with_its_own_table(specs: list[dict[str, Any]], place: Path) -> dict[str, Any]:
    return run(specs[placement().rank], place, ())


def test_processes_with_other_tables_do_not_train(worlds: Worlds, table: Path, tmp_path: Path) -> None:
    """As many rows and labels in each, and two of them in another order."""
    lines = table.read_text().splitlines()
    lines[1], lines[2] = lines[2], lines[1]
    (tmp_path / "other.csv").write_text("\n".join(lines) + "\n")
    specs = [spec_over(table), spec_over(tmp_path / "other.csv")]
    told = worlds.run(2, with_its_own_table, specs, tmp_path / "run")
    assert [str(found["error"]) for found in told] == [
        f"processes {i} and {1 - i} have read another table; give all hosts the same files" for i in (0, 1)
    ]
    assert not (tmp_path / "run").exists()


def tried(spec: dict[str, Any]) -> DryRunReport:
    return dry_run(spec)


def test_a_dry_run_tells_of_the_whole_batch(worlds: Worlds, table: Path) -> None:
    one = dry_run(spec_over(table)).train_batch
    own = {"seconds", "loss", "grad_norm"}
    for report in worlds.run(2, tried, spec_over(table)):
        assert report.train_batch.keys() == one.keys()
        for name in one.keys() - own:
            assert report.train_batch[name] == pytest.approx(one[name], rel=1e-3), name
