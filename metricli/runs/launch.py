"""Start the processes of a verb on this host, and bring back its report or the first failure.

An agent of torchelastic, in this process, starts `python -m metricli.cli.worker FOLDER` for each; what they
have to say to it lies in the folder. No torch before `launch` is called.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

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
from metricli.runs.wire import Told, Wire, portable, wire_folder
from metricli.stopping import STOPPING, came, counts_as

__all__ = ["Told", "Wire", "launch", "portable"]

SAVING = 60
"""Seconds that processes have to save and leave after a signal."""
_BY_CODE: dict[int, type[MetricliError]] = {
    kind.exit_code: kind
    for kind in (UsageError, DataError, NonFiniteError, CheckpointError, ResourceError, GateError)
}


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
    with wire_folder() as wire:
        wire.ask(request)
        codes, signum = _run_agent(wire, processes)
        words = {rank: told for rank in range(processes) if (told := wire.told(rank)) is not None}
        if signum is None and not codes and 0 in words and words[0].error is None:
            return words[0].report
        error = _cause(words, codes, signum, wire)
        if isinstance(error, Interrupted):
            begun = [rank for rank in range(processes) if wire.pid(rank) is not None]
            error.abrupt = came.twice or any(rank not in words for rank in begun)
        raise error


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
    if not came.is_of_command:
        came.begin()

    def stop(signum: int, _frame: Any) -> None:
        heard = came.hear(signum)
        if heard == "first":
            raise raised(f"signal {signum}", counts_as(signum))
        for rank in range(processes if heard == "second" else 0):
            pid = wire.pid(rank)
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    before = {each: signal.getsignal(each) for each in (*STOPPING, signal.SIGHUP)}
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
        rank = min(died, key=lambda rank: (_stopped_by(died[rank]) is not None, rank))  # those it ended last
        if (by := _stopped_by(died[rank])) is not None:  # before it could say so
            return _interruption(by)
        return _silent_death(rank, died[rank], wire)
    others = sorted(words.values(), key=lambda told: told.rank if signum is not None else told.at)
    if signum is not None:
        others = [told for told in others if isinstance(told.error, Interrupted)]
        if not others:
            return _interruption(signum)
    for told in others:
        if told.error is not None:
            return told.error
    return WorkerError("the processes ended without a report")


def _interruption(signum: int) -> Interrupted:
    return Interrupted("interrupted" if signum == signal.SIGINT else "terminated", signum=signum)


def _stopped_by(code: int) -> int | None:
    """The signal that asked a process with this exit code to stop, if one did."""
    return next((each for each in STOPPING if code in (-each, 128 + each)), None)


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
