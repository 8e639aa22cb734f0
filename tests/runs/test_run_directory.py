from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from metricli import TrainReport
from metricli.components.loggers import TrackerLogger
from metricli.components.trackers import TensorBoardLogger
from metricli.errors import ResourceError
from metricli.reports import OVERALL
from metricli.runs.directory import RunDirectory, environment
from metricli.runs.logs import Logs
from metricli.specs.load import load_spec
from metricli.specs.train import TrainSpec
from tests.runs.conftest import LABELS, Listener, lines, meta

Fit = Callable[..., TrainReport]
METRICS = ["cmc@1", "cmc@5", "precision@5", "map@5", "map@r"]


def test_what_a_run_leaves(whole: Fit) -> None:
    report = whole()
    found = {
        path.relative_to(report.run_dir).as_posix() for path in report.run_dir.rglob("*") if path.is_file()
    }
    assert found >= {
        "spec.resolved.yaml",
        "env.json",
        "metrics.jsonl",
        "log.txt",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
    }
    assert not [name for name in found if name.endswith(".part")]


def test_lines_of_metrics(whole: Fit) -> None:
    report = whole()
    steps = lines(report, split="train")
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert [line["epoch"] for line in steps] == [1, 1, 2, 2]
    expected = ["step", "epoch", "split", "lr", "loss", "grad_norm"]
    assert all(list(line)[:6] == expected for line in steps)
    assert {"active", "positive_distance", "negative_distance"} <= set(steps[0]), "the stats of the loss"
    judged = lines(report, split="validation")
    assert [line["category"] for line in judged if line["epoch"] == 1] == [OVERALL, "glyph", "ring"]
    assert all(list(line) == ["step", "epoch", "split", "category", *METRICS] for line in judged)
    assert all(isinstance(value, (int, float, str)) for line in lines(report) for value in line.values())
    last = lines(report, category=OVERALL, epoch=report.best_epoch)[0]
    assert {name: last[name] for name in METRICS} == report.metrics[OVERALL]


def test_fewer_lines_on_request(fit: Fit) -> None:
    report = fit("training.log_every_steps=3")
    assert [line["step"] for line in lines(report, split="train")] == [3]


def test_the_resolved_spec_loads_back(
    whole: Fit, table: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tests.runs.conftest import spec_over

    report = whole()
    monkeypatch.chdir(tmp_path)
    original = load_spec(spec_over(table), TrainSpec, ["compute.device=cpu"]).spec  # by METRICLI_DEVICE
    again = load_spec(report.run_dir / "spec.resolved.yaml", TrainSpec).spec
    assert again == original
    assert yaml.safe_load((report.run_dir / "spec.resolved.yaml").read_text())["optimizer"]["lr"] == 0.001


def test_the_environment_names_versions_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    secrets = {"HF_TOKEN": "hf_s3cret", "WANDB_API_KEY": "s3cret", "AWS_SECRET_ACCESS_KEY": "s3cret"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("sys.argv", ["metricli", "train", "/home/ada/spec.yaml", "loggers.api_key=s3cret"])
    run = RunDirectory(tmp_path / "run")
    run.start({"name": "x"})
    text = (run.path / "env.json").read_text()
    found = json.loads(text)
    assert found == environment()
    assert torch.__version__.startswith(found["packages"]["torch"])
    assert found["variables"]["OMP_NUM_THREADS"] == "1"
    assert "s3cret" not in text
    assert "TOKEN" not in text
    assert "/home" not in text
    assert os.environ.get("USER", "ada") not in text.split('"')


def test_labels_are_sorted_text_in_both_checkpoints(whole: Fit) -> None:
    report = whole()
    assert meta(report.best_ckpt)["labels"] == meta(report.last_ckpt)["labels"] == LABELS


def test_labels_that_are_numbers_sort_as_text(
    fit: Fit, spec: dict[str, Any], table: Path, tmp_path: Path
) -> None:
    text = table.read_text()
    for new, label in zip(["10", "9", "007", "é", "Z", "a"], LABELS, strict=True):
        text = text.replace(f"{label},", f"{new},")
    (tmp_path / "t.csv").write_text(text)
    spec["data"]["table"] = str(tmp_path / "t.csv")
    report = fit("training.epochs=1")
    expected = ["007", "10", "9", "Z", "a", "é"]
    assert meta(report.best_ckpt)["labels"] == meta(report.last_ckpt)["labels"] == expected


def test_a_failed_save_leaves_the_run_resumable(
    fit: Fit, monkeypatch: pytest.MonkeyPatch, whole: Fit
) -> None:
    from metricli.components import tensorfile

    calls: list[str] = []
    real = tensorfile.save_file

    def filling(tensors: Any, part: Path, metadata: Any) -> None:
        calls.append(part.name)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        real(tensors, part, metadata=metadata)

    monkeypatch.setattr(tensorfile, "save_file", filling)
    with pytest.raises(ResourceError) as caught:
        fit("validation.monitor=loss")
    assert caught.value.exit_code == 7
    monkeypatch.undo()
    run = Path(caught.value.message.split("'")[1]).parents[1]
    assert lines(fit("validation.monitor=loss", resume=run)) == lines(whole("validation.monitor=loss"))


def scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_what_metrics_jsonl_has(fit: Fit) -> None:
    report = fit("loggers=[tensorboard]")
    found = scalars(report.run_dir)
    for line in lines(report):
        place = line["split"] + (f"/{line['category']}" if line.get("category", OVERALL) != OVERALL else "")
        for name, value in line.items():
            if name not in ("step", "epoch", "split", "category"):
                assert (line["step"], pytest.approx(value)) in found[f"{place}/{name}"]
    assert {"train/loss", "train/lr", "validation/cmc@1", "validation/ring/cmc@1", "epoch"} <= set(found)


def test_a_figure_is_logged(tmp_path: Path) -> None:
    import numpy as np

    class Tracker:
        def log_images(self, images: dict[str, Any], **settings: Any) -> None:
            self.got = {name: image.shape for name, image in images.items()}, settings

    tracker: Any = Tracker()
    TensorBoardLogger(tmp_path).show(tracker, "hits", np.zeros((4, 5, 3), dtype=np.uint8), step=2)
    assert tracker.got == ({"hits": (1, 4, 5, 3)}, {"step": 2, "dataformats": "NHWC"})


class Door:
    """A logger, and the spec that builds it; it fails in the named call."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.calls: list[str] = []

    def build(self, *, run_dir: Path) -> Door:
        return self

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.failing:
            raise ConnectionError("the service is away")

    def log(self, values: Any, *, step: int) -> None:
        self._call("log")

    def close(self) -> None:
        self._call("close")


@pytest.mark.parametrize(("failing", "calls"), [("log", ["log"]), ("close", ["log", "log", "close"])])
def test_a_failing_logger_is_left_out_after_one_warning(
    tmp_path: Path, failing: str, calls: list[str]
) -> None:
    run, listener = RunDirectory(tmp_path / "run"), Listener()
    run.start({})
    broken, sound = Door(failing), Door()
    with Logs(run, [broken, sound], listener) as logs:  # type: ignore[list-item]
        logs.row(1, 1, "train", {"loss": 0.5})
        logs.row(2, 1, "train", {"loss": float("nan")})
    assert broken.calls == calls
    assert sound.calls == ["log", "log", "close"]
    what = "the logger 'Door' failed and is left out from now on: ConnectionError: the service is away"
    assert listener.warned == [what]
    written = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [line["loss"] for line in written] == [0.5, None]


def test_loggers_are_closed_when_the_run_fails(tmp_path: Path) -> None:
    run, door = RunDirectory(tmp_path / "run"), Door()
    run.start({})
    with pytest.raises(KeyboardInterrupt), Logs(run, [door], Listener()):  # type: ignore[list-item]
        raise KeyboardInterrupt
    assert door.calls == ["close"]


def test_a_run_with_a_failing_logger_is_the_run_without(
    fit: Fit, whole: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_args: Any, **_kwargs: Any) -> None:
        raise ConnectionError("away")

    monkeypatch.setattr(TrackerLogger, "log", away)
    listener = Listener()
    report = fit("loggers=[tensorboard]", reporter=listener)
    assert lines(report) == lines(whole())
    assert [w for w in listener.warned if "the logger 'tensorboard' failed" in w] == [listener.warned[-1]]
    assert "left out from now on: ConnectionError: away" in (report.run_dir / "log.txt").read_text()
