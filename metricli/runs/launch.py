"""Start the processes of a verb on this host, and bring back its report or the first failure.

An agent of torchelastic, in this process, starts `python -m metricli.cli.worker FOLDER` for each; what they
have to say to it lies in the folder. No torch before `launch` is called.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from metricli.errors import (
    CheckpointError,
    DataError,
    GateError,
    Interrupted,
    MetricliError,
    NonFiniteError,
    ResourceError,
    UsageError,
    WorkerError,
)

__all__ = ["Told", "Wire", "launch", "portable"]

SAVING = 60
"""Seconds that processes have to save and leave after a signal."""
_BY_CODE: dict[int, type[MetricliError]] = {
    kind.exit_code: kind
    for kind in (UsageError, DataError, NonFiniteError, CheckpointError, ResourceError, GateError)
}


@dataclass(frozen=True)
class Told:
    """The last word of a process: what it made, or what stopped it."""

    rank: int
    at: float
    report: Any = None
    error: BaseException | None = None

    @property
    def is_cause(self) -> bool:
        """Whether it stopped of itself, not because of a signal or of another process."""
        other = isinstance(self.error, Interrupted) or getattr(self.error, "lost", False)
        return self.error is not None and not other


@dataclass(frozen=True)
class Wire:
    """The folder through which the agent and its processes speak; every file is there whole or not at all."""

    folder: Path
    REQUEST: ClassVar[str] = "request.json"

    def pid(self, rank: int) -> int | None:
        """The process of a rank, once it has begun."""
        with suppress(OSError, ValueError):
            return int((self.folder / f"rank{rank}.pid").read_text())
        return None

    def log(self, rank: int) -> Path:
        """Where a process that is not the main one prints."""
        return self.folder / f"log.rank{rank}.txt"

    def begin(self, rank: int) -> dict[str, Any]:
        """Note that this process is the one of a rank; what it has to do."""
        self._put(f"rank{rank}.pid", str(os.getpid()).encode())
        asked: dict[str, Any] = json.loads((self.folder / self.REQUEST).read_text(encoding="utf-8"))
        return asked

    def ask(self, request: Mapping[str, Any]) -> None:
        """Write down what the processes have to do."""
        self._put(self.REQUEST, json.dumps(request).encode())

    def tell(self, told: Told) -> None:
        """Leave a last word; what cannot travel goes as text."""
        try:
            word = pickle.dumps(told)
            pickle.loads(word)
        except Exception as problem:
            error = told.error or problem
            said = MetricliError(f"{type(error).__name__}: {error}")
            said.__notes__ = [*getattr(error, "__notes__", [])]
            word = pickle.dumps(replace(told, report=None, error=said))
        self._put(f"rank{told.rank}.told", word)

    def told(self, rank: int) -> Told | None:
        """The last word of a process, None if it has left none."""
        with suppress(OSError):
            word: Told = pickle.loads((self.folder / f"rank{rank}.told").read_bytes())
            return word
        return None

    def _put(self, name: str, content: bytes) -> None:
        part = self.folder / f"{name}.part"
        part.write_bytes(content)
        part.replace(self.folder / name)


def portable(report: Any, folder: Path) -> Any:
    """A report that can go to another process: what it would write is written, and taken along as bytes."""
    if getattr(report, "write", None) is None:
        return report
    folder.mkdir()
    report.write(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return replace(report, write=partial(_write_files, files))


def _write_files(files: Mapping[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        part = folder / f"{name}.part"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            part.write_bytes(content)
            part.replace(folder / name)
        except OSError as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise ResourceError(f"cannot write {str(folder / name)!r}: {error.strerror}") from None


def launch(request: Mapping[str, Any], *, processes: int, device: str) -> Any:
    """Run a verb in `processes` processes of this host; the report of the main one.

    `request` is plain data: see `metricli.cli.worker`.

    Raises:
        UsageError: the device is not there for so many.
        MetricliError: the first failure of a process, as it was raised there; of another than the main one
            its message says which.
        WorkerError: a process was killed, or left without a word.
        Interrupted: a signal came; the processes have had time to save.
    """
    _require_devices(processes, device)
    wire = Wire(Path(tempfile.mkdtemp(prefix="metricli-")))
    keep = False
    try:
        wire.ask(request)
        codes, signum = _run_agent(wire, processes)
        words = {rank: told for rank in range(processes) if (told := wire.told(rank)) is not None}
        if signum is None and not codes and 0 in words and words[0].error is None:
            return words[0].report
        error = _cause(words, codes, signum, wire)
        keep = str(wire.folder) in str(error)  # its log is named there
        raise error
    finally:
        if not keep:
            shutil.rmtree(wire.folder, ignore_errors=True)


def _require_devices(processes: int, device: str) -> None:
    import torch

    gpus = torch.cuda.device_count()
    if device == "cpu" or (device == "auto" and not gpus and not torch.backends.mps.is_available()):
        return
    if gpus < processes:
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(gpus))
        seen = f"{gpus} visible: {names}" if gpus else "none visible"
        raise UsageError(
            f"{processes} GPUs are asked for, {seen}",
            hint="lower --gpus, or set --device cpu for as many CPU processes",
        )


def _run_agent(wire: Wire, processes: int) -> tuple[dict[int, int], int | None]:
    """Exit codes of the processes that failed, by rank, and the signal that came, if one did."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        logs_specs=DefaultLogsSpecs(log_dir=str(wire.folder)),
        run_id=wire.folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        signals_to_handle="",  # they are ours
        shutdown_timeout=SAVING,
    )
    # a file of the working directory must not stand for a module there if it does not here
    safe = () if {"", os.getcwd()} & set(sys.path) else ("-P",)
    command = ("-u", *safe, "-m", "metricli.cli.worker", str(wire.folder), str(os.getpid()))
    try:
        with _silenced(), _signals(wire, processes, SignalException):
            elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as failed:
        return {rank: failure.exitcode for rank, failure in failed.failures.items()}, None
    except SignalException as stopped:
        return {}, int(stopped.sigval)
    return {}, None


@contextmanager
def _silenced() -> Iterator[None]:
    """The agent says nothing: what there is to say, we say."""
    known = list(logging.root.manager.loggerDict)
    there = [logging.getLogger(name) for name in known if name.startswith("torch.distributed")]
    before = [(logger, logger.disabled) for logger in there]
    for logger in there:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in before:
            logger.disabled = disabled


@contextmanager
def _signals(wire: Wire, processes: int, raised: type[Exception]) -> Iterator[None]:
    """The first signal goes to the processes, by way of the agent; a second ends them at once.

    A SIGHUP that is ignored, as under nohup, stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def stop(signum: int, _frame: Any) -> None:
        came.append(signum)
        if len(came) == 1:
            raise raised(f"signal {signum}", signal.Signals(signum))
        for rank in range(processes):
            pid = wire.pid(rank)
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        for each, handler in before.items():
            if each != signal.SIGHUP or handler != signal.SIG_IGN:
                signal.signal(each, stop)
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _cause(
    words: Mapping[int, Told], codes: Mapping[int, int], signum: int | None, wire: Wire
) -> BaseException:
    """What to raise: the first error of a process that failed of itself, else a death, else the signal."""
    causes = sorted((told for told in words.values() if told.is_cause), key=lambda told: told.at)
    if causes:
        first = causes[0]
        alike = 0 in words and str(words[0].error) == str(first.error)
        return _named(first, 0 if alike else first.rank)
    died = {rank: code for rank, code in codes.items() if rank not in words}
    if signum is None and died:
        rank = min(died, key=lambda rank: (died[rank] == -signal.SIGTERM, rank))  # those the agent ended last
        return _silent_death(rank, died[rank], wire)
    others = sorted(words.values(), key=lambda told: told.rank if signum is not None else told.at)
    if signum is not None:
        others = [told for told in others if isinstance(told.error, Interrupted)]
        if not others:
            return Interrupted("interrupted" if signum == signal.SIGINT else "terminated", signum=signum)
    for told in others:
        if told.error is not None:
            return told.error
    return WorkerError("the processes ended without a report")


def _named(told: Told, rank: int) -> BaseException:
    """Its error, with the rank in front where it is not the main one's too."""
    error = told.error
    assert error is not None
    if rank and isinstance(error, MetricliError):
        error.message = f"rank {rank}: {error.message}"
    elif rank:
        error.__dict__["rank"] = rank  # for the command line, whose line begins with it
        error.add_note(f"in rank {rank}")
    return error.with_traceback(None)


def _silent_death(rank: int, code: int, wire: Wire) -> MetricliError:
    """A process that was killed, or left without a word; a documented exit code stays what it is."""
    hint = f"its output is in {wire.log(rank)}" if wire.log(rank).exists() else ""
    if code == -signal.SIGKILL:
        hint = "; ".join(["the memory may not suffice", *([hint] if hint else [])])
    if code < 0:
        return WorkerError(f"rank {rank} was killed by {signal.Signals(-code).name}", hint=hint)
    kind = _BY_CODE.get(code, WorkerError)
    return kind(f"rank {rank} left with exit code {code} and said nothing", hint=hint)
