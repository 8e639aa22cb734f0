"""However a command ends, nothing is left: no process, no shared memory, no temporary file, no lock."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import metricli
from metricli.runs.directory import RunDirectory
from tests.cli import faults
from tests.cli.test_faults import assert_nothing_torn, plugins_of, site

__all__ = ["site"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc and /dev/shm")
NOT_LEFT = ("calls", "run", "spec.yaml")
CACHE = "torchinductor_"
"""Of torch, for all that comes after."""
EPOCHS, STEPS = 12, 2


@dataclass
class Traces:
    """What the processes of a command hold outside of the run directory."""

    command: faults.Command
    temporary: Path
    segments: set[str]

    def note(self) -> None:
        """Note the shared memory that they have mapped by now."""
        for pid in self.command.alive():
            try:
                lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
            except OSError:
                continue
            found = (line.split(maxsplit=5)[-1] for line in lines if "/dev/shm/" in line)
            self.segments |= {name.removesuffix(" (deleted)") for name in found}

    def left(self, patience: float) -> list[str]:
        """What is still there after so many seconds."""
        end = time.monotonic() + patience
        while (found := self._found()) and time.monotonic() < end:
            time.sleep(0.05)
        return found

    def _found(self) -> list[str]:
        names = [path.name for path in self.temporary.iterdir()]
        files = [name for name in names if name not in NOT_LEFT and not name.startswith(CACHE)]
        parts = [str(path) for path in self.temporary.rglob("*.part")]
        return [*map(_named, self.command.alive()), *filter(os.path.exists, self.segments), *files, *parts]


def _named(pid: int) -> str:
    try:
        return f"{pid}: " + Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return str(pid)


@pytest.fixture
def started(tmp_path: Path, site: Path) -> Iterator[list[faults.Command]]:
    """Commands that the test has started; their processes are killed at its end."""
    commands: list[faults.Command] = []
    yield commands
    for command in commands:
        command.process.kill()
        command.orphans(patience=0)
        command.process.communicate(timeout=30)


def start(
    folder: Path, site: Path, started: list[faults.Command], words: list[str], **options: object
) -> Traces:
    """`metricli train` of the faulty package in `folder`, which is its TMPDIR too."""
    words = ["train", faults.write_spec(folder), "--run-dir", "run", *words]
    command = faults.start(words, cwd=folder, site=site, **options)  # type: ignore[arg-type]
    started.append(command)
    return Traces(command, folder, set())


def workers_of(command: faults.Command) -> list[int]:
    """The processes that decode: forked from a forkserver."""
    alive = command.alive()
    servers = [pid for pid in alive if "multiprocessing.forkserver" in _named(pid)]
    parents = {pid: int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in alive}
    return [pid for pid in alive if parents[pid] in servers]


def end(traces: Traces, how: str) -> None:
    """Do to the command what its case says."""
    process, command = traces.command.process, traces.command
    ranks = [pid for pid in command.alive() if "metricli.cli.worker" in _named(pid)]
    if how == "SIGINT twice":
        process.send_signal(signal.SIGINT)
        time.sleep(0.4)
        process.send_signal(signal.SIGINT)
    elif how == "SIGUSR1 to all":  # as Slurm does
        for pid in command.alive():
            os.kill(pid, signal.SIGUSR1)
    elif how == "SIGUSR1 to the group":
        os.killpg(process.pid, signal.SIGUSR1)
    elif how == "SIGUSR1 to a rank":
        os.kill(ranks[-1], signal.SIGUSR1)
    elif how == "SIGKILL of a rank":
        os.kill(ranks[-1], signal.SIGKILL)
    elif how == "SIGKILL of a worker":
        os.kill(workers_of(command)[0], signal.SIGKILL)
    elif how != "nothing":
        process.send_signal(getattr(signal, how))


CODES = {
    "nothing": 0,
    "SIGINT": 130,
    "SIGTERM": 75,
    "SIGUSR1": 75,
    "SIGINT twice": 130,
    "SIGUSR1 to all": 75,
    "SIGUSR1 to the group": 75,
    "SIGUSR1 to a rank": 75,
    "SIGKILL": -9,
    "SIGKILL of a rank": 6,
    "SIGKILL of a worker": 6,
}
ALONE = [how for how in CODES if "rank" not in how]
IN_CI = {("alone", "SIGKILL", 2), ("agent", "SIGKILL", 0)}
MATRIX = [
    pytest.param(*case, marks=() if case in IN_CI else pytest.mark.long)
    for case in [
        *(("alone", how, workers) for how in ALONE for workers in (0, 2) if workers or "worker" not in how),
        *(("agent", how, workers) for how in CODES for workers in (0, 2) if workers or "worker" not in how),
    ]
]


@pytest.mark.parametrize(("launcher", "how", "workers"), MATRIX)
def test_nothing_is_left(
    launcher: str, how: str, workers: int, site: Path, tmp_path: Path, started: list[faults.Command]
) -> None:
    words = [f"training.num_workers={workers}", "--requeue-exit-code"]
    words += [f"training.epochs={2 if how == 'nothing' else EPOCHS}"]
    traces = start(tmp_path, site, started, words, launcher=launcher, pace=0.05 if how == "nothing" else 0.3)
    traces.command.wait_for_calls(4)
    traces.note()
    assert bool(traces.segments) == (workers > 0)
    end(traces, how)
    _, err = traces.command.process.communicate(timeout=60)
    assert traces.command.process.returncode == CODES[how], err
    if launcher == "alone":
        with RunDirectory(tmp_path / "run").locked():  # at once: nobody else holds the lock
            pass
    if how == "SIGKILL of a rank":  # its log is kept, as the message says
        (kept,) = tmp_path.glob("metricli-*")
        assert str(kept) in err
        for path in sorted(kept.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        kept.rmdir()
    assert traces.left(2.0) == [], err
    assert "Traceback" not in err
    assert "resource_tracker" not in err
    assert_nothing_torn(tmp_path)
    if CODES[how] == 75:
        assert err.splitlines()[-1].startswith("error: stopped by a signal after step ")
    if how != "nothing":
        assert_goes_on(tmp_path, site)


def assert_goes_on(folder: Path, site: Path) -> None:
    """The run can be trained to its end."""
    with plugins_of(site):
        report = metricli.train(folder / "spec.yaml", [f"training.epochs={EPOCHS}"], resume=folder / "run")
    assert report.steps == EPOCHS * STEPS
