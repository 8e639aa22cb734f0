"""Signals: the first is heeded in order, wherever it meets the command; a second one at once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import metricli
from metricli.cli.progress import PlainReporter
from metricli.cli.requeue import with_default_code
from metricli.components.tensorfile import read_tensor_file
from metricli.errors import Interrupted, Terminated
from metricli.runs.context import stop_on_signals
from metricli.runs.launch import Wire, _cause
from metricli.stopping import Came
from tests.cli.conftest import TINY, Call, error_of, process, unbroken
from tests.cli.test_runs import assert_same_run
from tests.runs.test_processes_train import assert_same_lines, jsonl
from tests.worlds import Worlds

WORDS = ["training.epochs=2", "validation.batch_size=16"]
DOUBLE = [*WORDS, "validation.batch_size=8", "training.precision=fp64"]
STOPPED = "error: stopped by a signal after step "


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run that nobody stops."""
    return metricli.train(TINY, WORDS, run_dir=tmp_path_factory.mktemp("whole") / "run")


def signal_at(monkeypatch: pytest.MonkeyPatch, unit: str, at: int, *signums: int) -> list[int]:
    """Send signals to this process when the `at`-th piece of a kind is done; how many were done in all."""
    done: list[int] = []
    advance = PlainReporter.advance

    def signalling(self: PlainReporter, amount: int, values: Any = None) -> None:
        advance(self, amount, values)
        if self.unit == unit:
            done.append(amount)
            if len(done) == at:
                for signum in signums:
                    os.kill(os.getpid(), signum)

    monkeypatch.setattr(PlainReporter, "advance", signalling)
    return done


@pytest.mark.parametrize(
    ("signum", "words", "code"),
    [
        (signal.SIGUSR1, [], 143),
        (signal.SIGUSR1, ["--requeue-exit-code"], 75),
        (signal.SIGTERM, ["--requeue-exit-code", "99"], 99),
        (signal.SIGINT, ["--requeue-exit-code", "99"], 130),
    ],
)
def test_a_signal_saves_and_the_code_may_ask_for_a_requeue(
    cli: Call, spec: str, monkeypatch: pytest.MonkeyPatch, signum: int, words: list[str], code: int
) -> None:
    signal_at(monkeypatch, "step", 1, signum)
    done = cli("train", *words, spec, *WORDS, "--run-dir", "cut", "--json")
    assert (done.code, done.json["error"]["code"]) == (code, "interrupted")
    assert unbroken(done.err).strip().splitlines()[-1].startswith(f"{STOPPED}1, saved in ")
    assert Path("cut/checkpoints/last.ckpt").is_file()


def test_a_signal_in_a_validation_ends_it_and_resuming_repeats_it(
    cli: Call, spec: str, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second epoch, at its second batch of six."""
    done = signal_at(monkeypatch, "image", 8, signal.SIGUSR1)
    cut = cli("train", spec, *WORDS, "--run-dir", "cut")
    assert cut.code == 143
    place = Path.cwd() / "cut"
    assert unbroken(cut.err).strip().splitlines()[-1] == (
        f"{STOPPED}4, in its validation, saved in {place}; "
        f"go on with: metricli train {place}/spec.resolved.yaml --resume {place}"
    )
    assert len(done) == 8
    monkeypatch.setattr(PlainReporter, "advance", lambda *_: None)
    report = metricli.train(TINY, WORDS, resume=place)
    assert report.metrics == whole.metrics
    assert_same_run(place, whole.run_dir)
    mine, theirs = (read_tensor_file(path)[0] for path in (report.best_ckpt, whole.best_ckpt))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_signal_in_the_search_ends_it(cli: Call, spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = PlainReporter.begin

    def signalling(self: PlainReporter, name: str, total: int | None, unit: str) -> None:
        begin(self, name, total, unit)
        if unit == "query":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(PlainReporter, "begin", signalling)
    cut = cli("train", spec, *WORDS, "--run-dir", "cut", "--requeue-exit-code")
    assert cut.code == 75
    assert unbroken(cut.err).strip().splitlines()[-1].startswith(f"{STOPPED}2, in its validation, saved in ")


def stopped_in_validation(place: Path, signalled: int, what: str) -> tuple[int, str, float]:
    """Train until one rank gets a signal in the second validation: the code, the words, seconds since."""
    from metricli.runs import embed, evaluate, training  # which has names of the others

    assert training

    module, name = (embed, "refuse_bad") if what == "batch" else (evaluate, "_surveyed")
    before, calls, at = getattr(module, name), [], [0.0]

    def signalling(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == (8 if what == "batch" else 2):  # of each rank: 6 batches of 8, one search
            at[0] = time.monotonic()
            if int(os.environ["RANK"]) == signalled:
                signal.raise_signal(signal.SIGUSR1)
        if len(calls) > 6 and what == "batch":
            time.sleep(0.3)
        return before(*args)

    setattr(module, name, signalling)
    try:
        metricli.train(TINY, DOUBLE, run_dir=place)
    except Interrupted as stopped:
        return stopped.exit_code, str(stopped), time.monotonic() - at[0]
    finally:
        setattr(module, name, before)
    raise AssertionError("it was not stopped")


@pytest.mark.xdist_group("worlds")
@pytest.mark.parametrize(
    ("signalled", "what"), [pytest.param(0, "batch", marks=pytest.mark.long), (1, "batch"), (1, "search")]
)
def test_a_signal_to_one_rank_ends_the_validation_of_all(
    worlds: Worlds, tmp_path: Path, signalled: int, what: str
) -> None:
    place = tmp_path / "run"
    told = worlds.run(2, stopped_in_validation, place, signalled, what)
    for code, words, _ in told:
        assert code == 143
        assert words.startswith("stopped by a signal after step 4, in its validation, saved in ")
    if what == "batch":
        assert max(seconds for *_, seconds in told) < 0.3 * 4, "four more batches were to come"
    metricli.train(TINY, DOUBLE, resume=place)
    metricli.train(TINY, DOUBLE, run_dir=tmp_path / "one")
    assert_same_lines(jsonl(tmp_path / "one"), jsonl(place))


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["train", "--requeue-exit-code", "a.yaml"], ["train", "--requeue-exit-code=75", "a.yaml"]),
        (["train", "a.yaml", "--requeue-exit-code"], ["train", "a.yaml", "--requeue-exit-code=75"]),
        (["train", "--requeue-exit-code", "--json"], ["train", "--requeue-exit-code=75", "--json"]),
        (["train", "--requeue-exit-code", "3", "a.yaml"], ["train", "--requeue-exit-code", "3", "a.yaml"]),
        (["train", "--requeue-exit-code=3", "a.yaml"], ["train", "--requeue-exit-code=3", "a.yaml"]),
        (["train", "--", "--requeue-exit-code"], ["train", "--", "--requeue-exit-code"]),
    ],
)
def test_the_bare_option_means_75(words: list[str], found: list[str]) -> None:
    assert with_default_code(words) == found


@pytest.mark.parametrize("code", ["0", "-1", "256"])
def test_an_exit_code_that_no_process_can_have(refused: Call, spec: str, code: str) -> None:
    done = refused("train", spec, "--requeue-exit-code", code)
    assert done.code == 2
    limit = "less than or equal to 255" if code == "256" else "greater than or equal to 1"
    assert error_of(done).startswith(f"invalid value for '--requeue-exit-code': Input should be {limit}; ")


def interrupting(monkeypatch: pytest.MonkeyPatch, *signums: int, error: BaseException | None = None) -> None:
    """Have `metricli.train` get signals, as while it loads libraries, or fail."""

    def train(*_args: Any, **_options: Any) -> None:
        if error is not None:
            raise error
        try:
            os.kill(os.getpid(), signums[0])
        finally:
            for signum in signums[1:]:
                os.kill(os.getpid(), signum)

    monkeypatch.setattr("metricli.api.train", train)


def test_a_signal_while_loading_may_be_requeued(
    refused: Call, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupting(monkeypatch, signal.SIGUSR1)
    done = refused("train", spec, "--requeue-exit-code")
    assert (done.code, error_of(done)) == (75, "terminated")
    done = refused("train", spec)
    assert (done.code, error_of(done)) == (143, "terminated")


def test_what_a_second_signal_or_the_end_of_patience_cut_off_is_not_requeued(
    refused: Call, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupting(monkeypatch, signal.SIGINT, signal.SIGTERM)
    assert refused("train", spec, "--requeue-exit-code").code == 143
    killed = Interrupted("terminated", signum=signal.SIGTERM)
    killed.abrupt = True
    interrupting(monkeypatch, error=killed)
    assert refused("train", spec, "--requeue-exit-code").code == 143


@pytest.mark.parametrize("verb", ["dry_run", "validate", "predict", "inspect_dataset", "merge"])
def test_sigusr1_ends_every_verb(
    refused: Call, spec: str, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    words = {
        "dry_run": ["train", spec, "--dry-run"],
        "validate": ["validate", spec],
        "predict": ["predict", "--out", "f.npy"],
        "inspect_dataset": ["inspect-dataset", spec],
        "merge": ["merge", "a.npy", "--out", "f.npy"],
    }[verb]
    monkeypatch.setattr(f"metricli.api.{verb}", lambda *_, **__: signal.raise_signal(signal.SIGUSR1))
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    done = refused(*words)
    assert (done.code, error_of(done)) == (143, "terminated")
    assert before == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]


def test_a_signal_that_comes_twice_in_a_moment_is_one() -> None:
    """As `timeout` sends it: to the process, and to its group."""
    with stop_on_signals() as stop:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signum == signal.SIGTERM
    came = Came()
    assert [came.hear(signal.SIGTERM) for _ in range(2)] == ["first", "same"]
    came.at -= 0.3
    assert came.hear(signal.SIGTERM) == "second"
    came.begin()
    signums = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGTERM)
    assert [came.hear(each) for each in signums] == ["first", "same", "second", "second"]
    came.begin(hears_one=True)  # a process of our agent, which sends on what came
    assert [came.hear(each) for each in signums] == ["first", "same", "same", "same"]


def test_a_signal_that_a_library_swallowed_is_not_forgotten(
    cli: Call, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = metricli.api.train

    def careless(*args: Any, **options: Any) -> Any:
        with contextlib.suppress(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
        return train(*args, **options)

    monkeypatch.setattr("metricli.api.train", careless)
    cut = cli("train", spec, *WORDS, "--run-dir", "cut")
    assert (cut.code, unbroken(cut.err).strip().splitlines()[-1][: len(STOPPED) + 2]) == (143, f"{STOPPED}0,")


@pytest.mark.parametrize(("signum", "code"), [("SIGUSR1", 143), ("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_in_the_first_moment(tmp_path: Path, signum: str, code: int) -> None:
    """While the command line itself is imported."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'metricli.cli.launch':\n"
        f"            os.kill(os.getpid(), signal.{signum})\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    paths = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    running = process("--version", cwd=tmp_path, env={"PYTHONPATH": paths})
    out, err = running.communicate(timeout=30)
    word = "interrupted" if signum == "SIGINT" else "terminated"
    assert (running.returncode, out, err) == (code, "", f"error: {word}\n")


HANGING = """
import ctypes, time
from metricli.cli import launch

def hang(*_args, **_options):
    try:
        print("ready", flush=True)
        time.sleep(30) if {raises} else wait()
    finally:
        time.sleep(30)  # as something that ends in good order, or waits for other processes

def wait():  # in a library, for ever: its lock is locked
    library, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    library.pthread_mutex_lock(lock) or library.pthread_mutex_lock(lock)

from metricli import api
api.train = hang
launch.main(["train", "spec.yaml", "--json"])
"""


@pytest.mark.parametrize("raises", [True, False])
def test_a_second_ctrl_c_leaves_a_process_that_hangs(tmp_path: Path, raises: bool) -> None:
    code = HANGING.format(raises=raises)
    running = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "ready\n"
    running.send_signal(signal.SIGINT)
    time.sleep(0.3)
    running.send_signal(signal.SIGINT)
    sent = time.monotonic()
    out, err = running.communicate(timeout=20)
    assert time.monotonic() - sent < 2
    assert (running.returncode, err) == (130, "error: interrupted\n")
    assert json.loads(out) == {"error": {"code": "interrupted", "message": "interrupted", "hint": ""}}


@pytest.mark.parametrize("code", [143, -signal.SIGTERM, -signal.SIGUSR1])
def test_a_rank_that_a_signal_met_before_it_could_speak(tmp_path: Path, code: int) -> None:
    error = _cause({}, {1: code, 0: -signal.SIGTERM}, None, Wire(tmp_path))
    assert isinstance(error, Interrupted)
    assert (error.exit_code, str(error)) == (143, "terminated")
    error = _cause({}, {1: -signal.SIGKILL, 0: 143}, None, Wire(tmp_path))
    assert str(error).startswith("rank 1 was killed by SIGKILL")
