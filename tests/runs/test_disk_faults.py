"""A full disk, a lost folder, a flipped bit, a dead owner: one line, nothing good lost, the run goes on."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from metricli import TrainReport, train, validate
from metricli.components.tensorfile import read_tensor_file
from metricli.errors import CheckpointError, Interrupted, ResourceError
from metricli.runs.directory import RunDirectory
from tests.runs.conftest import Listener, spec_over
from tests.runs.resuming import assert_same_run
from tests.runs.snapshots import names_in

OVER = ("training.epochs=3", "validation.bootstrap={samples: 0}")
BETTER = "seed=5"
"""A run with it is best at its end."""
FULL = pytest.mark.skipif(sys.platform != "linux", reason="a limit on the size of files stands in for a disk")


@pytest.fixture(scope="module")
def one(table: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainReport:
    """The run that nothing happened to."""
    return train(spec_over(table), OVER, run_dir=tmp_path_factory.mktemp("one") / "run")


class Meddler(Listener):
    """Calls `act` once, after a step, or as a piece of work with a certain name begins after it."""

    def __init__(self, act: Callable[[], None], after: int, name: str = "") -> None:
        super().__init__()
        self.act, self.after, self.name = act, after, name

    def advance(self, amount: int, values: Mapping[str, float] | None = None) -> None:
        super().advance(amount, values)
        if values is not None and len(self.steps) == self.after and not self.name:
            self.act()

    def begin(self, name: str, total: int | None, unit: str) -> None:
        if self.name and self.name in name and len(self.steps) >= self.after:
            self.name = "\0"
            self.act()


@contextmanager
def file_sizes_kept() -> Iterator[Callable[[int], None]]:
    """A function that limits the size of all files; the limit ends with this."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    try:
        yield limit
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def assert_goes_on(one: TrainReport, table: Path, run: Path) -> None:
    """What lies there is whole, and becomes the run that nothing happened to."""
    for checkpoint in run.glob("checkpoints/*.ckpt"):
        read_tensor_file(checkpoint)
    assert not list(run.rglob(".*")), "nothing half written stays behind"
    two = train(spec_over(table), OVER, run_dir=run, resume="auto")
    assert_same_run(one, two)
    assert names_in(run) == names_in(one.run_dir)


def refused(caught: pytest.ExceptionInfo[ResourceError], *words: str) -> None:
    assert caught.value.exit_code == 7
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert caught.value.hint


@FULL
@pytest.mark.parametrize("after", [1, 3])
def test_no_room_for_last(one: TrainReport, table: Path, tmp_path: Path, after: int) -> None:
    run = tmp_path / "run"
    with file_sizes_kept() as limit, pytest.raises(ResourceError) as caught:
        train(spec_over(table), OVER, run_dir=run, reporter=Meddler(lambda: limit(60_000), after))
    refused(caught, f"cannot write '{run}/checkpoints/last.ckpt': ", "File too large")
    assert (run / "checkpoints/last.ckpt").exists() == (after > 2)
    assert_goes_on(one, table, run)


@FULL
@pytest.mark.parametrize("after", [2, 4])
def test_no_room_for_best(one: TrainReport, table: Path, tmp_path: Path, after: int) -> None:
    run = tmp_path / "run"
    heard = Meddler(lambda: limit(60_000), after, "search")
    with file_sizes_kept() as limit, pytest.raises(ResourceError) as caught:
        train(spec_over(table), (*OVER, BETTER), run_dir=run, reporter=heard)
    refused(caught, f"cannot write '{run}/checkpoints/best.ckpt': ", "File too large")
    assert (run / "checkpoints/best.ckpt").exists() == (after > 2)
    two = train(spec_over(table), (*OVER, BETTER), resume=run)
    assert_same_run(train(spec_over(table), (*OVER, BETTER), run_dir=tmp_path / "two"), two)


@FULL
def test_no_room_for_a_line_of_the_metrics(one: TrainReport, table: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def fill() -> None:
        limit((run / "metrics.jsonl").stat().st_size + 100)  # the next line is cut off

    with file_sizes_kept() as limit, pytest.raises(ResourceError) as caught:
        train(spec_over(table), OVER, run_dir=run, reporter=Meddler(fill, 3))
    refused(caught, "File too large", f"{run}/metrics.jsonl")
    assert not (run / "metrics.jsonl").read_text().endswith("\n")
    assert_goes_on(one, table, run)


@FULL
def test_no_room_for_the_log(one: TrainReport, table: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(spec_over(table), OVER, run_dir=run, reporter=Listener(stop_after=1))
    with (run / "log.txt").open("a") as log:
        log.write("a long run\n" * 1_000_000)

    def fill() -> None:
        limit((run / "log.txt").stat().st_size + 5)

    with file_sizes_kept() as limit, pytest.raises(ResourceError) as caught:
        train(spec_over(table), OVER, resume=run, reporter=Meddler(fill, 1))
    refused(caught, "File too large", f"{run}/log.txt")
    assert_goes_on(one, table, run)


def test_a_folder_that_is_lost_amid_a_run(one: TrainReport, table: Path, tmp_path: Path) -> None:
    """A stand-in for a file system that has become read-only, which no test as root can make."""
    run, aside = tmp_path / "run", tmp_path / "aside"

    def lose() -> None:
        (run / "checkpoints").rename(aside)
        (run / "checkpoints").write_text("no folder")

    with pytest.raises(ResourceError) as caught:
        train(spec_over(table), OVER, run_dir=run, reporter=Meddler(lose, 3))
    refused(caught, f"cannot write '{run}/checkpoints/last.ckpt': ", "Not a directory")
    (run / "checkpoints").unlink()
    aside.rename(run / "checkpoints")
    assert_goes_on(one, table, run)


@pytest.mark.parametrize("method", ["append", "sync", "write_spec"])
def test_a_file_system_that_is_read_only_from_now_on(
    one: TrainReport, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(spec_over(table), OVER, run_dir=run, reporter=Listener(stop_after=1))

    def refuse(*_args: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(run))

    monkeypatch.setattr(RunDirectory, method, refuse)
    with pytest.raises(ResourceError) as caught:
        train(spec_over(table), OVER, resume=run)
    monkeypatch.undo()
    refused(caught, "Read-only file system", str(run))
    assert_goes_on(one, table, run)


def flip(file: Path, at: int) -> None:
    """Turn one bit."""
    content = bytearray(file.read_bytes())
    content[at] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("place", ["head", "middle", "end"])
def test_a_bit_of_last_is_flipped(one: TrainReport, table: Path, tmp_path: Path, place: str) -> None:
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(spec_over(table), OVER, run_dir=run, reporter=Listener(stop_after=3))
    last = run / "checkpoints/last.ckpt"
    at = {"head": 40, "middle": last.stat().st_size // 2, "end": -1}[place]
    flip(last, at)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    with pytest.raises(CheckpointError) as caught:
        train(spec_over(table), OVER, resume=run)
    assert caught.value.exit_code == 5
    assert str(last) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    assert validate(ckpt=run / "checkpoints/best.ckpt").metrics
    flip(last, at)
    assert_goes_on(one, table, run)


def test_a_bit_of_best_is_flipped(table: Path, tmp_path: Path) -> None:
    """It is refused where it is used; a run that goes on says so, and makes another one."""
    run, over = tmp_path / "run", (*OVER, BETTER)
    with pytest.raises(Interrupted):
        train(spec_over(table), over, run_dir=run, reporter=Listener(stop_after=3))
    best = run / "checkpoints/best.ckpt"
    flip(best, -1)
    with pytest.raises(CheckpointError) as caught:
        validate(ckpt=best)
    assert caught.value.exit_code == 5
    heard = Listener()
    two = train(spec_over(table), over, resume=run, reporter=heard)
    assert any(str(best) in message for message in heard.warned), heard.warned
    assert validate(ckpt=best).metrics == two.metrics


def test_the_lock_of_a_process_that_was_killed_is_none(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    program = (
        "import fcntl, os, signal, sys\n"
        "handle = os.open(sys.argv[1], os.O_RDONLY)\n"
        "fcntl.flock(handle, fcntl.LOCK_EX)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(run)], check=False)
    assert done.returncode == -9
    with RunDirectory(run).locked():
        pass
