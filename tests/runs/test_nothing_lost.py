"""What a failure, a second run or another table must not cost."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metricli import evaluate, validate
from metricli.errors import CheckpointError, DataError, Interrupted, NonFiniteError, UsageError
from metricli.reporter import SilentReporter
from metricli.runs.directory import RunDirectory
from metricli.runs.learner import MAX_SKIPPED, Learner
from tests.conftest import FIGURES
from tests.runs.conftest import JUDGED, LABELS, Listener, write_table


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def rewritten(source: Path, target: Path, change: Any) -> Path:
    """The table with its rows changed by a function of the list."""
    rows = rows_of(source)
    with target.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(change(rows))
    return target


def test_a_validation_image_that_cannot_be_read_costs_no_step(fit, table, tmp_path, whole):
    images = tmp_path / "images"
    shutil.copytree(FIGURES.parent / "images", images)
    own = Path(shutil.copy(table, tmp_path / "t.csv"))
    broken = next(row["path"] for row in rows_of(own) if row["split"] == "validation")
    (tmp_path / broken).write_bytes(b"torn")
    place = (f"data.table={own}", f"data.root={tmp_path}")
    with pytest.raises(DataError, match=Path(broken).name):
        fit(*place, run_dir=tmp_path / "run")
    report = fit(*place, "data.on_bad_image=skip", resume=tmp_path / "run")
    assert (report.steps, report.epochs, report.skipped) == (4, 2, [broken])


def test_two_runs_never_share_a_directory(fit, tmp_path):
    with RunDirectory(tmp_path / "new").locked(), pytest.raises(UsageError, match="a run is going on in"):
        fit(run_dir=tmp_path / "new")
    assert not any((tmp_path / "new").iterdir())
    with pytest.raises(Interrupted):
        fit(run_dir=tmp_path / "old", reporter=Listener(stop_after=1))
    before = (tmp_path / "old/metrics.jsonl").read_text()
    with RunDirectory(tmp_path / "old").locked(), pytest.raises(UsageError, match="a run is going on in"):
        fit(resume=tmp_path / "old")
    assert (tmp_path / "old/metrics.jsonl").read_text() == before


def test_a_monitor_that_is_never_defined_keeps_the_newest(fit, table, tmp_path):
    hidden = rewritten(table, tmp_path / "t.csv", lambda rows: [r | {"sequence": r["label"]} for r in rows])
    listener = Listener()
    report = fit(f"data.table={hidden}", "training.epochs=3", "training.patience=1", reporter=listener)
    assert (report.best_epoch, report.epochs, report.stopped) == (3, 3, "epochs")
    assert math.isnan(report.monitor_value)
    assert "cmc@1 has no value on the validation rows: the newest is kept" in report.warnings


def test_every_epoch_leaves_its_mean_loss(fit):
    report = fit("training.log_every_steps=100")
    lines = [json.loads(line) for line in (report.run_dir / "metrics.jsonl").read_text().splitlines()]
    means = [line for line in lines if line["split"] == "train_epoch"]
    assert [line["epoch"] for line in means] == [1, 2]
    assert all(line["loss"] > 0 for line in means)


def test_a_kill_after_the_validation_was_logged_logs_it_once(fit, whole, monkeypatch, tmp_path):
    from metricli.runs.training import Training

    log_epoch = Training.log_epoch

    def log_and_die(self: Training, *args: Any) -> None:
        log_epoch(self, *args)
        raise KeyboardInterrupt

    uninterrupted, place = whole(), tmp_path / "killed"
    monkeypatch.setattr(Training, "log_epoch", log_and_die)
    with pytest.raises(KeyboardInterrupt):
        fit(run_dir=place)
    monkeypatch.setattr(Training, "log_epoch", log_epoch)
    fit(resume=place)
    assert (place / "metrics.jsonl").read_text() == (uninterrupted.run_dir / "metrics.jsonl").read_text()


def test_a_resume_wants_the_same_train_rows_wherever_they_lie(fit, table, tmp_path):
    with pytest.raises(Interrupted):
        fit(run_dir=tmp_path / "run", reporter=Listener(stop_after=1))
    turned = rewritten(table, tmp_path / "turned.csv", lambda rows: rows[::-1])
    with pytest.raises(CheckpointError, match=r"the train rows .* are not those of the run"):
        fit(f"data.table={turned}", resume=tmp_path / "run")
    moved = shutil.copy(table, tmp_path / "moved.csv")
    assert fit(f"data.table={moved}", resume=tmp_path / "run").epochs == 2


def test_a_folder_with_files_of_another_is_no_run_directory(fit, tmp_path):
    (tmp_path / "env.json").write_text("mine")
    with pytest.raises(UsageError, match=r"is no run directory, and holds env\.json"):
        fit(run_dir=tmp_path)
    assert (tmp_path / "env.json").read_text() == "mine"


def test_fp16_that_skips_every_step_stops():
    class Skipping:
        step_was_skipped = True

    learner = object.__new__(Learner)
    learner._optimizer, learner._skipped = Skipping(), 0
    for step in range(MAX_SKIPPED - 1):
        learner._refuse_skipping(step)
    with pytest.raises(NonFiniteError, match="the gradient is NaN or infinite"):
        learner._refuse_skipping(MAX_SKIPPED - 1)
    learner._optimizer.step_was_skipped = False
    learner._refuse_skipping(MAX_SKIPPED)
    assert learner._skipped == 0


def test_the_variable_outranks_the_spec_and_a_checkpoint_forgets_the_device(fit, spec, trained, monkeypatch):
    spec["compute"] = {"device": "cuda"}
    monkeypatch.setenv("METRICLI_DEVICE", "cpu")
    report = fit("training.epochs=1")
    monkeypatch.delenv("METRICLI_DEVICE")
    assert validate(ckpt=report.best_ckpt).metrics == report.metrics


def judged(table: Path) -> int:
    return sum(row["split"] == "validation" for row in rows_of(table))


def test_odd_embeddings_in_memory(table, tmp_path):
    count, root = judged(table), FIGURES.parent
    noise = np.random.default_rng(0).normal(size=(count, 8)).astype(np.float32)
    plain = evaluate(noise, table, root=root)
    assert evaluate(noise.astype(">f4"), table, root=root).metrics == plain.metrics
    assert evaluate(noise[::-1].copy()[::-1], table, root=root).metrics == plain.metrics
    with pytest.raises(DataError, match="no dimension at all"):
        evaluate(noise[:, :0], table, root=root)
    with pytest.raises(DataError, match="cannot be searched"):
        evaluate(noise.astype(np.float64) * 1e200, table, root=root)
    warned = evaluate(np.ones((count, 4), np.float32), table, root=root).warnings
    assert any(message.startswith("all gallery embeddings are equal") for message in warned)


def test_k_beyond_what_a_query_can_retrieve_is_said(table):
    from metricli import MetricsSpec, ValidationSpec

    rows = [row for row in rows_of(table) if row["split"] == "validation"]
    true = rows[0]["is_query"]
    queries = [row for row in rows if row["is_query"] == true]
    both = sum(row["is_gallery"] == true for row in queries)
    gallery = sum(row["is_gallery"] == true for row in rows)
    noise = np.random.default_rng(0).normal(size=(len(rows), 8)).astype(np.float32)
    asked = ValidationSpec(metrics=MetricsSpec(cmc=[gallery - 1, gallery]))
    warnings = evaluate(noise, table, root=FIGURES.parent, validation=asked).warnings
    assert (
        f"k {gallery} is more than {both} of {len(queries)} queries can retrieve "
        f"(the fewest: {gallery - 1}); for these it is clipped to what they can"
    ) in warnings


def test_the_search_tells_how_far_it_is(table):
    class Steps(SilentReporter):
        done = 0

        def advance(self, amount: int, values: Any = None) -> None:
            self.done += amount

    steps = Steps()
    noise = np.random.default_rng(0).normal(size=(judged(table), 8)).astype(np.float32)
    evaluate(noise, table, root=FIGURES.parent, reporter=steps)
    assert steps.done == judged(table)


def test_a_dry_run_without_a_readable_image_is_a_data_error(spec, tmp_path):
    from metricli import dry_run

    table = write_table(tmp_path / "t.csv", LABELS[:3], JUDGED)
    for row in rows_of(table):
        (tmp_path / row["path"]).parent.mkdir(exist_ok=True)
        (tmp_path / row["path"]).write_bytes(b"torn")
    spec["data"] = {"table": str(table), "on_bad_image": "skip"}
    with pytest.raises(DataError, match="no image can be read for 6 places of a batch"):
        dry_run(spec)
