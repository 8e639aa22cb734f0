"""Loggers in a run: what they are told, in what order, once; and that none of them can harm it."""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from metricli import TrainReport
from metricli.components.trackers import MLflowLogger, TensorBoardLogger, WandbLogger
from metricli.reports import OVERALL
from metricli.runs import logs as logs_module
from metricli.runs.directory import RunDirectory
from metricli.runs.logs import Logs, Transcript, segment
from tests.conftest import TINY
from tests.runs.conftest import Listener, lines
from tests.specs.fakes import install  # noqa: F401  (a fixture)

Fit = Callable[..., TrainReport]
FIGURE = np.full((4, 6, 3), (250, 100, 0), np.uint8)
SPEC = {"name": "prod", "loss": {"name": "triplet", "margin": 0.25}, "validation": {"monitor": "cmc@1"}}
pytestmark = pytest.mark.filterwarnings("ignore")  # of packages that are not ours


def told(report: TrainReport) -> Counter[tuple[str, int, float]]:
    """(name, step, value) of every scalar, from metrics.jsonl."""
    found: Counter[tuple[str, int, float]] = Counter()
    for line in lines(report):
        place = line["split"] + (f"/{line['category']}" if line.get("category", OVERALL) != OVERALL else "")
        for name, value in line.items():
            if name not in ("step", "epoch", "split", "category"):
                found[f"{place}/{name}", line["step"], round(value, 5)] += 1
    return found


def without_own(found: Counter[tuple[str, int, float]]) -> Counter[tuple[str, int, float]]:
    """Without what metrics.jsonl does not hold."""
    return Counter({key: n for key, n in found.items() if key[0] not in ("epoch", "train/images_per_second")})


# What lies on the disk, read back.


def in_tensorboard(run_dir: Path) -> tuple[Counter[tuple[str, int, float]], Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    names = events.Tags()["scalars"]
    return Counter((n, e.step, round(e.value, 5)) for n in names for e in events.Scalars(n)), events


def in_mlflow(run_dir: Path) -> tuple[Counter[tuple[str, int, float]], Path]:
    """From the files of its store alone: a line `time value step` for each value."""
    (run,) = (run_dir / "mlruns").glob("*/*/meta.yaml")
    found: Counter[tuple[str, int, float]] = Counter()
    for file in (run.parent / "metrics").rglob("*"):
        if file.is_file():
            name = file.relative_to(run.parent / "metrics").as_posix().replace("_at_", "@")
            for line in file.read_text().splitlines():
                _, value, step = line.split()
                found[name, int(step), round(float(value), 5)] += 1
    return found, run.parent


def in_wandb(run_dir: Path) -> tuple[Counter[tuple[str, int, float]], list[Any]]:
    """From its log of records: 7 bytes, then blocks of 32 KiB of pieces with crc, length and kind."""
    from wandb.proto import wandb_internal_pb2

    found: Counter[tuple[str, int, float]] = Counter()
    records: list[Any] = []
    for file in sorted((run_dir / "wandb").glob("offline-run-*/*.wandb")):
        raw, at, got = file.read_bytes(), 7, b""
        while at + 7 <= len(raw):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            _, length, kind = struct.unpack("<IHB", raw[at : at + 7])
            got, at = got + raw[at + 7 : at + 7 + length], at + 7 + length
            if kind in (1, 4):
                records.append(wandb_internal_pb2.Record())
                records[-1].ParseFromString(got)
                got = b""
    for record in records:
        rows = [
            ("/".join([item.key, *item.nested_key]).strip("/"), json.loads(item.value_json))
            for item in record.history.item
        ]
        figures = tuple(name.removesuffix("_type") for name, _ in rows if name.endswith("/_type"))
        for name, value in rows:
            if not name.startswith(("_", *figures)) and isinstance(value, int | float):
                found[name, record.history.step.num, round(value, 5)] += 1
    return found, records


def test_three_at_once_have_what_metrics_jsonl_has(fit: Fit, capfd: pytest.CaptureFixture[str]) -> None:
    listener = Listener()
    tags = 'tags: ["a b", c]'
    report = fit(
        f"loggers=[tensorboard, {{name: wandb, {tags}}}, {{name: mlflow, {tags}}}]", reporter=listener
    )
    assert listener.warned == []
    assert capfd.readouterr().out == "", "trackers print"
    expected, name = told(report), report.run_dir.name
    board, events = in_tensorboard(report.run_dir)
    flow, run = in_mlflow(report.run_dir)
    bias, records = in_wandb(report.run_dir)
    assert expected["validation/ring/cmc@1", 2, lines(report, category="ring")[0]["cmc@1"]] == 1
    for found in (board, flow, bias):
        assert without_own(found) == expected
        assert [found["epoch", step, epoch] for step, epoch in ((1, 1), (2, 1), (3, 2), (4, 2))] == [1] * 4
        speeds = {step: value for (key, step, value) in found if key == "train/images_per_second"}
        assert set(speeds) == {2, 4}, "the first step of an epoch has no clock to go by"
        assert all(value > 0 for value in speeds.values())
    pictures = {"validation/worst", "validation/distances", "validation/map", "validation/ring/random"}
    steps = {at for at in (2, 4) if report.best_epoch * 2 >= at and (at == 2 or report.best_epoch == 2)}
    assert pictures <= set(events.Tags()["images"])
    assert {image.step for image in events.Images("validation/worst")} == steps
    (media,) = report.run_dir.glob("wandb/offline-run-*/files/media/images/validation")
    assert len(list(media.glob("worst_*.png"))) == len(list(media.glob("ring/worst_*.png"))) == len(steps)
    assert len(list((run / "artifacts/figures/validation/worst").glob("*.png"))) == len(steps)
    text = b"".join(event.tensor_proto.string_val[0] for event in events.Tensors("spec/text_summary"))
    assert b"loss.margin: 0.2" in text
    assert b"run_dir: " + str(report.run_dir).encode() in text
    assert "_hparams_/session_start_info" in str(events.summary_metadata)
    assert (run / "params" / "loss.margin").read_text() == "0.2"
    assert (run / "params" / "run_dir").read_text() == str(report.run_dir)
    assert (run / "tags" / "mlflow.runName").read_text() == name
    assert (run / "tags" / "a b").read_text() == "true"
    assert yaml.safe_load((run.parent / "meta.yaml").read_text())["name"] == "tiny"
    (opened,) = [record.run for record in records if record.HasField("run")]
    assert (opened.display_name, opened.project, list(opened.tags)) == (name, "tiny", ["a b", "c"])
    config = {u.key: json.loads(u.value_json) for r in records for u in r.config.update}
    assert config["loss"]["margin"] == 0.2
    assert config["run_dir"] == str(report.run_dir)
    assert any("wandb sync" in line for line in listener.said)


def test_a_resumed_run_goes_on_in_the_same_one(fit: Fit, whole: Fit) -> None:
    """Killed after it has logged the last epoch, before that was saved: what is repeated is there once."""
    loggers = "loggers=[tensorboard, mlflow, wandb]"
    first = fit(loggers, "training.epochs=1", "training.keep=3")
    second = fit(loggers, "training.epochs=2", resume=first.run_dir, allow_change=["training.epochs"])
    assert second.steps == 4
    kept = json.loads((first.run_dir / "loggers" / "mlflow.json").read_text())
    step = next(first.run_dir.glob("checkpoints/step-*2"), None)
    assert step is not None
    third = fit(loggers, "training.epochs=2", resume=step, allow_change=["training.epochs"])
    expected = told(third)
    assert max(key[1] for key in expected) == 4
    for found, *_ in map(lambda read: read(first.run_dir), (in_tensorboard, in_mlflow, in_wandb)):
        assert without_own(found) == expected
    assert in_mlflow(first.run_dir)[1].name == kept["id"]
    ids = {record.run.run_id for record in in_wandb(first.run_dir)[1] if record.HasField("run")}
    assert len(ids) == 1


@pytest.mark.parametrize(
    "text",
    ["[]", "{", "null", '{"id": 3, "sent": {}}', '{"id": "../../x", "sent": {}}', "[" * 9999,
     '{"id": "a", "sent": {"train": "4"}}', '{"id": "a", "sent": [1]}', '{"id": "a b", "sent": {}}'],
)  # fmt: skip
def test_a_foreign_memory_begins_a_new_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "loggers").mkdir()
    (tmp_path / "loggers" / "tensorboard.json").write_text(text)
    logger = TensorBoardLogger(tmp_path)
    logger.start(SPEC, step=3)
    logger.log({"train/loss": 1.0}, step=4)
    logger.close()
    what = "loggers/tensorboard.json is not what was left there; a new run of the tracker is begun"
    assert logger.notes == [what]
    assert json.loads((tmp_path / "loggers" / "tensorboard.json").read_text())["sent"] == {"train": 4}


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"id": "theirs", "sent": {"train": 9}}')
    (tmp_path / "loggers").mkdir()
    (tmp_path / "loggers" / "tensorboard.json").symlink_to(secret)
    logger = TensorBoardLogger(tmp_path)
    logger.start(SPEC, step=3)
    logger.close()
    assert len(logger.notes) == 1
    assert secret.read_text() == '{"id": "theirs", "sent": {"train": 9}}'
    assert not (tmp_path / "loggers" / "tensorboard.json").is_symlink()


def test_pictures(tmp_path: Path) -> None:
    """By way of `Logs.figure`, to each of the three; read back as pixels."""
    from PIL import Image

    from metricli.plugins.loggers import MLflow, TensorBoard, Wandb

    run = RunDirectory(tmp_path / "run")
    run.start({})
    listener = Listener()
    with Logs(run, [TensorBoard(), MLflow(), Wandb()], listener, resolved=SPEC) as logs:
        logs.row(1, 1, "train", {"loss": 1.0})
        logs.figure(1, "validation/../worst", FIGURE)
    assert listener.warned == []
    name = f"validation/{segment('..')}/worst"
    (event,) = in_tensorboard(run.path)[1].Images(f"{name}")
    assert (event.step, event.width, event.height) == (1, 6, 4)
    (png,) = in_mlflow(run.path)[1].rglob("artifacts/figures/**/00000001.png")
    (other,) = (run.path / "wandb").rglob("files/media/**/*.png")
    assert f"/figures/{name}/" in str(png)
    for file in (png, other):
        assert np.array_equal(np.asarray(Image.open(file).convert("RGB")), FIGURE)


def test_mlflow_names(tmp_path: Path) -> None:
    """Only what MLflow takes, and two names stay two."""
    logger = MLflowLogger(tmp_path)
    assert logger.called("validation/cmc@1") == "validation/cmc_at_1"
    names = ["validation/a&b/cmc@1", "validation/a+b/cmc@1", "validation/a_b/cmc@1", "validation/é/map@r"]
    called = [logger.called(name) for name in names]
    assert len(set(called)) == 4
    assert called[2] == "validation/a_b/cmc_at_1"
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-. :/") for name in called)


@pytest.mark.parametrize("text", ["..", ".", "", "a/b", "a\\b", "/etc", "\x1b[31m", "  ", "a\nb"])
def test_a_category_is_no_path(text: str) -> None:
    found = segment(text)
    assert found != text
    assert not set(found) & set("/\\\x1b\n")
    assert found.strip(".")
    assert segment("a/b") != segment("a\\b") != segment("a_b") == "a_b"


def test_the_environment_does_not_send(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What others have set (a server, a run to go on with) is not heeded, and stands again afterwards."""
    theirs = {
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "MLFLOW_RUN_ID": "x",
        "MLFLOW_EXPERIMENT_NAME": "theirs",
    }
    for key, value in theirs.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    logger = MLflowLogger(tmp_path, project="mine")
    logger.start(SPEC, step=0)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    logger.close()
    _, run = in_mlflow(tmp_path)
    assert yaml.safe_load((run.parent / "meta.yaml").read_text())["name"] == "mine"
    assert {key: os.environ.get(key) for key in theirs} == theirs
    assert "MLFLOW_DISABLE_TELEMETRY" not in os.environ
    assert WandbLogger.environment == {"WANDB_ERROR_REPORTING": "false"}


# Loggers that misbehave.


class Door:
    """A logger and the spec that builds it; a call named in `faults` does that first."""

    def __init__(self, **faults: Callable[[], Any]) -> None:
        self.faults, self.calls = faults, list[tuple[Any, ...]]()

    def _call(self, name: str, *args: Any) -> None:
        self.calls.append((name, *args))
        self.faults.get(name, lambda: None)()

    def build(self, *, run_dir: Path) -> Any:
        self._call("build", run_dir)
        return self

    def start(self, spec: Any, *, step: int) -> None:
        self._call("start", spec, step)

    def log(self, values: Any, *, step: int) -> None:
        self._call("log", dict(values), step)

    def log_figure(self, name: str, figure: Any, *, step: int) -> None:
        self._call("log_figure", name, figure.shape, step)

    def close(self) -> None:
        self._call("close")


ALL = ["build", "start", "log", "log", "log_figure", "close"]


def away() -> None:
    raise ConnectionError("the service\nis \x1b[31maway" + " for long" * 50)


FAULTS: dict[str, tuple[Callable[[], Any], str]] = {
    "raises": (away, "ConnectionError: the service is \\x1b[31maway for long"),
    "exits": (lambda: sys.exit(3), "SystemExit: 3"),
    "hangs": (lambda: time.sleep(1.5), "it has not come back after 0.2 seconds"),
    "asks": (lambda: input("key? "), "EOFError"),
}


@pytest.mark.parametrize("call", ["build", "start", "log", "log_figure", "close"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_warning(
    tmp_path: Path, call: str, fault: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    limits = dict.fromkeys(logs_module.LIMITS, 0.2 if fault == "hangs" else 60.0)
    monkeypatch.setattr(logs_module, "LIMITS", limits)
    run, listener = RunDirectory(tmp_path / "run"), Listener()
    run.start({})
    what, words = FAULTS[fault]
    broken, sound = Door(**{call: what}), Door()
    with Logs(run, [broken, sound], listener) as logs:  # type: ignore[list-item]
        logs.row(1, 1, "train", {"loss": 0.5})
        logs.row(2, 1, "train", {"loss": 0.25})
        logs.figure(2, "validation/worst", FIGURE)
    assert [name for name, *_ in broken.calls] == ALL[: ALL.index(call) + 1]
    assert [name for name, *_ in sound.calls] == ALL
    (warning,) = listener.warned
    assert warning.startswith(f"the logger 'Door' failed and is left out from now on: {words}")
    assert len(warning) <= 200
    assert [json.loads(line)["loss"] for line in run.metrics.read_text().splitlines()] == [0.5, 0.25]
    assert capfd.readouterr().out == ""


def test_what_a_logger_prints_and_patches_stays_with_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def loud() -> None:
        print("Track this run!")  # noqa: T201
        os.write(1, b"view it at \x1b[1mexample\n")
        os.system("echo from a child")
        sys.excepthook = lambda *_: None

    run, listener, hook = RunDirectory(tmp_path / "run"), Listener(), sys.excepthook
    run.start({})
    heard = Transcript(listener)
    heard.write_to(run.log)
    with Logs(run, [Door(start=loud, close=loud)], heard) as logs:  # type: ignore[list-item]
        logs.row(1, 1, "train", {"loss": 0.5})
        print("{}")  # noqa: T201
    assert capfd.readouterr().out == "{}\n"
    assert sys.excepthook is hook
    kept = run.log.read_text()
    assert kept.count("Door: Track this run!") == 2
    assert kept.count("Door: view it at \\x1b[1mexample") == 2
    assert kept.count("Door: from a child") == 2
    assert listener.said == listener.warned == []


def test_a_run_whose_logger_is_broken_is_the_run_without(
    fit: Fit, whole: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MLflowLogger, "open", lambda self: sys.exit(7))
    listener = Listener()
    report = fit("loggers=[mlflow]", reporter=listener)
    assert lines(report) == lines(whole())
    assert report.metrics == whole().metrics
    what = "the logger 'mlflow' failed and is left out from now on: SystemExit: 7"
    assert [w for w in listener.warned if "logger" in w] == [what]


PLUGIN = '''
class Recorder(LoggerSpec):
    """Records its calls."""

    name: Literal["recorder"] = "recorder"
    calls: ClassVar[list] = []

    def build(self, *, run_dir):
        self.calls.append(("build", run_dir))
        return self

    def start(self, spec, *, step):
        self.calls.append(("start", spec, step))

    def log(self, values, *, step):
        self.calls.append(("log", dict(values), step))

    def log_figure(self, name, figure, *, step):
        self.calls.append(("log_figure", name, figure, step))

    def close(self):
        self.calls.append(("close",))
'''


def shaped(call: tuple[Any, ...]) -> tuple[Any, ...]:
    """A call with the shape and kind of a figure in its place."""
    return tuple((x.shape, str(x.dtype)) if isinstance(x, np.ndarray) else x for x in call)


def test_a_plugin_gets_the_calls_that_ours_get(
    install: Any,  # noqa: F811
    fit: Fit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install("recorder-plugin", "loggers", {"recorder": "Recorder"}, PLUGIN)
    ours: list[tuple[Any, ...]] = []
    for name in ("start", "log", "log_figure", "close"):
        true = getattr(TensorBoardLogger, name)

        def spy(self: Any, *args: Any, _true: Any = true, _name: str = name, **kwargs: Any) -> None:
            ours.append((_name, *args, *kwargs.values()))
            _true(self, *args, **kwargs)

        monkeypatch.setattr(TensorBoardLogger, name, spy)
    report = fit("loggers=[recorder, tensorboard]")
    theirs = sys.modules["recorder_plugin"].Recorder.calls
    assert theirs[0] == ("build", report.run_dir)
    assert [shaped(call) for call in theirs[1:]] == [shaped(call) for call in ours]
    (_, spec, step), rows = theirs[1], [call[1] for call in theirs if call[0] == "log"]
    resolved = yaml.safe_load((report.run_dir / "spec.resolved.yaml").read_text())
    assert (spec, step, theirs[-1]) == (resolved, 0, ("close",))
    splits = [next(iter(row)).rpartition("/")[0] for row in rows]
    of_epoch = ["train", "train", "train_epoch", "validation", "validation/glyph", "validation/ring"]
    assert splits == of_epoch * 2
    figures = [call[1:] for call in theirs if call[0] == "log_figure"]
    kinds = {"worst", "median", "random", "distances", "map"}
    assert kinds <= {name.removeprefix("validation/") for name, *_ in figures}
    assert any(name.startswith("validation/ring/") for name, *_ in figures)
    assert {at for *_, at in figures} <= {2, 4}
    assert all(figure.ndim == 3 and figure.dtype == np.uint8 and figure.std() > 5 for _, figure, _ in figures)
    assert {"train/loss", "train/lr", "train/effective_rank", "train/embedding_spread"} <= set(rows[0])
    assert TINY["name"] == spec["name"]
