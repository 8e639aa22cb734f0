from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from metricli import TrainReport
from metricli.runs.checkpoints import read_best, read_last
from metricli.runs.history import Progress
from metricli.runs.training import Training
from tests.runs.conftest import LABELS, Listener, lines, write_table

Fit = Callable[..., TrainReport]
CONSTANT = "scheduler={name: constant}"


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the validations give these values of cmc@1, one after another."""

    def plant(*values: float) -> None:
        left: Iterator[float] = iter(values)
        monkeypatch.setattr(
            Training, "validate", lambda _self, *_: {"OVERALL": {"cmc@1": next(left), "cmc@5": 1.0}}
        )

    return plant


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the epochs have these mean losses, one after another."""

    def plant(*values: float) -> None:
        left = iter(values)
        monkeypatch.setattr(Progress, "means", lambda _self: {"loss": next(left)})

    return plant


def test_the_best_checkpoint_is_of_the_best_epoch(fit: Fit, planted: Any) -> None:
    planted(0.1, 0.3, 0.2, 0.3)
    listener = Listener()
    report = fit("training.epochs=4", CONSTANT, reporter=listener)
    assert (report.best_epoch, report.monitor_value, report.stopped) == (2, 0.3, "epochs")
    assert report.metrics == {"OVERALL": {"cmc@1": 0.3, "cmc@5": 1.0}}
    assert [row["best"] for row in listener.epochs] == [1, 1, 0, 0]
    best = read_best(report.best_ckpt)
    assert (best.epoch, best.metrics) == (2, report.metrics)
    planted(0.1, 0.3)
    shorter = read_last(fit("training.epochs=2", CONSTANT).last_ckpt)[0]["extractor"]
    assert all(torch.equal(tensor, shorter[name]) for name, tensor in best.weights.items())


def test_patience_counts_validations_that_are_not_better(fit: Fit, planted: Any) -> None:
    planted(0.1, 0.3, 0.2, 0.3, 0.25, 0.9)
    listener = Listener()
    report = fit("training.epochs=10", "training.patience=3", reporter=listener)
    assert (report.best_epoch, report.epochs, report.stopped) == (2, 5, "early stopping")
    assert listener.said[-1] == "stopped early: cmc@1 has not improved for 3 validations"
    again = fit("training.epochs=10", "training.patience=3", resume=report.run_dir)
    assert (again.epochs, again.stopped) == (5, "early stopping")


def test_patience_in_validations_not_epochs(fit: Fit, planted: Any) -> None:
    planted(0.5, 0.4, 0.3, 0.2)
    report = fit("training.epochs=12", "training.patience=2", "validation.every_n_epochs=2")
    assert (report.best_epoch, report.epochs) == (2, 6)


def test_a_gain_below_min_delta_is_none(fit: Fit, planted: Any) -> None:
    planted(0.1, 0.14, 0.16, 0.2, 0.21)
    report = fit("training.epochs=5", "training.min_delta=0.05", "training.patience=2")
    assert (report.best_epoch, report.epochs) == (3, 5)
    assert report.monitor_value == 0.16


def test_a_monitor_that_is_nan_is_never_best(fit: Fit, planted: Any) -> None:
    planted(math.nan, 0.2, math.nan)
    report = fit("training.epochs=3")
    assert (report.best_epoch, report.monitor_value) == (2, 0.2)
    planted(math.nan, math.nan)
    report = fit("training.epochs=2")
    assert report.best_ckpt.is_file()
    assert math.isnan(report.monitor_value)


def test_of_the_loss_the_lowest_is_best(fit: Fit, losses: Any) -> None:
    losses(3.0, 1.0, 2.0)
    report = fit("training.epochs=3", "validation.monitor=loss")
    assert (report.best_epoch, report.monitor_value) == (2, 1.0)
    losses(1.0, 0.99, 0.8, 0.85)
    report = fit("training.epochs=4", "validation.monitor=loss", "training.min_delta=0.1")
    assert (report.best_epoch, report.monitor_value) == (3, 0.8)


def test_the_loss_that_is_monitored_is_the_mean_over_the_epoch(fit: Fit) -> None:
    report = fit("training.epochs=1", "validation.monitor=loss")
    steps = [line["loss"] for line in lines(report, split="train")]
    assert report.monitor_value == pytest.approx(sum(steps) / 2)


def test_every_few_epochs_and_after_the_last(fit: Fit) -> None:
    report = fit("training.epochs=5", "validation.every_n_epochs=2")
    judged = [line["epoch"] for line in lines(report, category="OVERALL")]
    assert judged == [2, 4, 5]
    assert [line["step"] for line in lines(report, category="OVERALL")] == [4, 8, 10]
    assert report.best_epoch in judged


def falls(report: TrainReport) -> list[float]:
    return [line["lr"] / 1e-3 for line in lines(report, split="train")][::2]


def test_plateau_watches_the_monitor(fit: Fit, planted: Any, losses: Any) -> None:
    plateau = "scheduler={name: plateau, patience: 0, factor: 0.5}"
    planted(0.5, 0.4, 0.6, 0.6, 0.7)
    assert falls(fit("training.epochs=5", plateau)) == [1, 1, 0.5, 0.5, 0.25]
    losses(3.0, 2.0, 2.5, 1.0)
    planted(0.1, 0.1, 0.1, 0.1)
    assert falls(fit("training.epochs=4", plateau, "validation.monitor=loss")) == [1, 1, 1, 0.5]


def test_without_validation_rows_the_last_epoch_is_best(
    fit: Fit, spec: dict[str, Any], tmp_path: Path
) -> None:
    spec["data"]["table"] = str(write_table(tmp_path / "t.csv", LABELS, []))
    listener = Listener()
    plateau = "scheduler={name: plateau, patience: 0, factor: 0.5}"
    report = fit("training.epochs=3", "training.patience=1", plateau, reporter=listener)
    assert (report.best_epoch, report.epochs, report.metrics) == (3, 3, {})
    assert math.isnan(report.monitor_value)
    assert falls(report) == [1, 1, 1], "a rate falls when a metric stands still, not for want of one"
    said = "no row has the split 'validation': the last epoch will be taken as the best, unjudged"
    assert listener.warned == report.warnings
    assert said in report.warnings
    state = read_last(report.last_ckpt)[0]["extractor"]
    assert all(torch.equal(t, state[name]) for name, t in read_best(report.best_ckpt).weights.items())
