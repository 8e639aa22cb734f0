"""`--gpus 2` from the command line and from Python: what one gives, and errors before any is started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import metricli
from metricli import api
from metricli.errors import CheckpointError, Interrupted, UsageError, WorkerError
from metricli.reporter import SilentReporter
from metricli.runs.context import stop_on_signals
from metricli.runs.launch import Told, Wire, _cause
from metricli.specs.kinds import ExtractorSpec
from metricli.specs.train import TrainSpec
from tests.cli.conftest import Call, error_of


@pytest.mark.xdist_group("worlds")
def test_two_processes_judge_as_one_does(cli: Call, trained: Any, tmp_path: Path) -> None:
    words = ["validate", "--ckpt", trained.best_ckpt, "--json", "--fail-under", "cmc@1=0.999"]
    alone = cli(*words, "--out", "one")
    done = cli(*words, "--out", "two", "--gpus", "2")
    assert (done.code, done.err) == (8, alone.err.replace("report one/", "report two/"))
    assert done.json | {"seconds": 0} == alone.json | {"seconds": 0}
    files = ["metrics.json", "per_query.parquet", "pictures.json", "report.html"]
    assert [path.name for path in sorted(Path("two").iterdir())] == files
    one, two = (json.loads(Path(name, "pictures.json").read_text()) for name in ("one", "two"))
    assert two["panels"] == one["panels"]
    assert two["command"] == one["command"].replace("validate", "validate compute.gpus=2")
    assert Path("two/per_query.parquet").read_bytes() == Path("one/per_query.parquet").read_bytes()
    assert json.loads(Path("two/metrics.json").read_text())["metrics"] == done.json["metrics"]


@pytest.mark.xdist_group("worlds")
def test_a_failure_of_all_is_raised_and_said_once(cli: Call, tmp_path: Path) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    message = "the checkpoint 'gone.ckpt' does not exist"
    with pytest.raises(CheckpointError) as caught:
        metricli.predict(ckpt="gone.ckpt", out="f.npy", gpus=2)
    assert str(caught.value) == message
    assert before == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    done = cli("predict", "--ckpt", "gone.ckpt", "--out", "f.npy", "--gpus", "2", "--json")
    assert (done.code, error_of(done)) == (5, message)
    assert done.json == {"error": {"code": "checkpoint", "message": message, "hint": ""}}


@pytest.mark.xdist_group("worlds")
def test_a_terminal_that_is_closed_under_nohup_and_files_named_like_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither ends a run of several processes, as neither ends that of one."""
    (tmp_path / "tokenize.py").write_text("raise RuntimeError('a file of the user')\n")
    monkeypatch.chdir(tmp_path)
    over = threading.Event()

    def hang_up() -> None:
        while not over.wait(0.1):
            os.kill(os.getpid(), signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    hanging = threading.Thread(target=hang_up)
    hanging.start()
    try:
        with pytest.raises(CheckpointError, match=r"gone\.ckpt"):
            metricli.predict(ckpt="gone.ckpt", out="f.npy", gpus=2)
    finally:
        over.set()
        hanging.join()
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for hosts without a GPU")
def test_more_gpus_than_there_are(refused: Call, spec: str) -> None:
    done = refused("train", spec, "--gpus", "2", "--device", "cuda")
    assert (done.code, error_of(done)) == (
        2,
        "2 GPUs are asked for, none visible; lower --gpus, or set --device cpu for as many CPU processes",
    )


def test_a_spec_is_checked_before_processes_start(
    refused: Call, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metricli.runs.launch.launch", lambda *_, **__: pytest.fail("processes were started"))
    assert refused("train", spec, "--gpus", "2", "loss.margn=1").code == 2
    assert refused("validate", spec, "compute.gpus=2", "validation.metrics.cm=[1]").code == 2
    done = refused("predict", "--out", "f.npy", "compute.gpus=two")
    assert "compute.gpus" in error_of(done)


def test_objects_without_a_package_cannot_travel(tiny: dict[str, Any]) -> None:
    class Mine(ExtractorSpec):
        """Mine."""

        name: Literal["mine"] = "mine"

    spec = TrainSpec.model_validate(tiny).model_copy(update={"extractor": Mine()})
    with pytest.raises(UsageError) as caught:
        metricli.train(spec, gpus=2)
    assert str(caught.value) == (
        "the spec holds objects that other processes cannot build from its words: extractor 'mine' "
        f"({__name__}:{Mine.__qualname__}); install their package with its entry points, "
        "or start the script itself with torchrun"
    )


def test_a_launcher_wins_over_gpus_and_it_is_said(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from metricli.runs import request
    from metricli.specs.data import ComputeSpec

    said: list[str] = []

    class Listener(SilentReporter):
        def warn(self, message: str) -> None:
            said.append(message)

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for gpus in (1, 2, 3):
        given = {"spec": tiny, "reporter": Listener()}
        assert request.done_by_others("train", ComputeSpec(gpus=gpus), given) is None
    assert said == ["3 processes are asked for, and the launcher has started 2: its number counts"]


def test_a_second_signal_of_any_kind_acts_at_once() -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with stop_on_signals() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.signum == signal.SIGTERM
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_no_library_swallows_sigterm(refused: Call, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As imports do that try one way, and on any error another."""

    def careless(*_args: Any, **_options: Any) -> None:
        with contextlib.suppress(Exception):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("metricli.api.dry_run", careless)
    before = signal.getsignal(signal.SIGTERM)
    try:
        done = refused("train", spec, "--dry-run")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (done.code, error_of(done)) == (143, "terminated")


@pytest.mark.parametrize("first", [0, 1])
def test_the_first_of_those_that_did_not_fail_tells_why(tmp_path: Path, first: int) -> None:
    """Someone ended one process, and the other lost it; or they lost each other, and the agent ended one."""
    lost = WorkerError("lost the others")
    lost.lost = True
    errors = [lost, Interrupted("terminated", signum=signal.SIGTERM)]
    words = {rank: Told(rank, float(rank != first), error=error) for rank, error in enumerate(errors)}
    assert _cause(words, {0: 6, 1: 143}, None, Wire(tmp_path)) is errors[first]


def test_a_last_word_that_cannot_travel_goes_as_text(tmp_path: Path) -> None:
    class Odd(Exception):
        pass

    wire = Wire(tmp_path)
    wire.tell(Told(1, 0.0, error=Odd("of here alone")))
    told = wire.told(1)
    assert told is not None
    assert str(told.error) == "Odd: of here alone"
    assert told.is_cause


def test_env_says_whether_a_spec_trains_alike(
    cli: Call, spec: str, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes themselves are those of any verb, and their step is tested beside it."""
    trials = api.first_step(tiny, device="cpu")
    told = {1: trials, 2: trials}
    monkeypatch.setattr(api, "first_step", lambda *_args, gpus, **_options: told[gpus])
    done = cli("env", "--distributed", spec)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1] == "the same: a step of 12 images, in float64, to 1e-09"
    noisy = (replace(trials[0], embeddings=trials[0].embeddings + 1, noise=["drop"]), trials[1])
    told[2] = noisy
    done = cli("env", "--distributed", spec)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1].startswith("the same without dropout; dropout: its noise depends on")
    changed = tuple(replace(trial, embeddings=trial.embeddings + 1, own_norms=["bn1"]) for trial in trials)
    told[2] = (changed[0], changed[1])
    done = cli("env", "--distributed", spec, "--json")
    assert (done.code, done.json["same"]) == (6, False)
    assert error_of(done).startswith(
        "1 processes do not train as one does: batch norm sees a part of the batch: bn1"
    )


def test_env_takes_a_spec_only_to_check_it(refused: Call, spec: str) -> None:
    done = refused("env", spec)
    assert (done.code, error_of(done)) == (
        2,
        f"env takes no {spec!r}; metricli env --distributed spec.yaml checks one",
    )
    assert refused("env", "--distributed").code == 2
