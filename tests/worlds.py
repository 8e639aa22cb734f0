"""Several processes of one run, for tests: started once, each told to call a function as rank r of n."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest

from metricli.errors import MetricliError

MOST = 4
GRACE = 5.0


def _serve(pipe: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            rank, size, port, function, args = pipe.recv()
        except EOFError:
            return
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        os.environ |= dict(zip(names, map(str, (rank, size, rank, size)), strict=True))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        try:
            told = (True, function(*args))
        except BaseException as error:
            told = (False, (error, traceback.format_exc()))
        if torch.distributed.is_initialized():  # a verb that failed leaves its group behind
            torch.distributed.destroy_process_group()
        try:
            pipe.send(told)
        except Exception as error:
            pipe.send((False, (RuntimeError(f"cannot send {told!r}: {error}"), "")))


class Worlds:
    """Up to `MOST` processes; one that fails ends them all, for the others may wait for it forever."""

    def __init__(self) -> None:
        self.members: list[tuple[Any, Connection]] = []

    def run(self, size: int, function: Callable[..., Any], *args: Any, timeout: float = 120) -> list[Any]:
        """What `function(*args)`, importable by name, returns in each process of a world of `size`."""
        context = multiprocessing.get_context("spawn")
        while len(self.members) < size:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self.members.append((process, ours))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank, (_, pipe) in enumerate(self.members[:size]):
            pipe.send((rank, size, port, function, args))
        return self._answers(size, timeout)

    def _answers(self, size: int, timeout: float) -> list[Any]:
        """By rank. Where one fails others may break as well: what was raised on purpose is told first."""
        ranks = {pipe: rank for rank, (_, pipe) in enumerate(self.members[:size])}
        found: dict[int, Any] = {}
        failed: list[BaseException] = []
        until = time.monotonic() + timeout
        while ranks:
            ready = wait(list(ranks), max(0.0, until - time.monotonic()))
            if not ready:
                silent = TimeoutError(f"ranks {sorted(ranks.values())} of {size} have not answered")
                failed.append(silent)
                break
            for pipe in ready:
                rank = ranks.pop(pipe)  # type: ignore[arg-type]
                try:
                    fine, value = pipe.recv()  # type: ignore[union-attr]
                except EOFError:
                    fine, value = False, (RuntimeError(f"rank {rank} of {size} died"), "")
                if fine:
                    found[rank] = value
                    continue
                error, trace = value
                error.add_note(f"in rank {rank} of {size}:\n{trace}")
                failed.append(error)
                until = min(until, time.monotonic() + GRACE)
        if failed:
            self.close()
            raise min(failed, key=lambda error: not isinstance(error, MetricliError))
        return [found[rank] for rank in range(size)]

    def close(self) -> None:
        """End all processes; the next run starts new ones."""
        for process, pipe in self.members:
            process.kill()
            process.join()
            pipe.close()
        self.members = []


@pytest.fixture(scope="session")
def worlds() -> Iterator[Worlds]:
    """Processes for every test of several; such tests carry `pytest.mark.xdist_group("worlds")`."""
    pool = Worlds()
    yield pool
    pool.close()
