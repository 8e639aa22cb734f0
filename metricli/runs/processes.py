"""The processes of a run: joining them, and what they tell each other outside of the model."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from metricli.errors import DataError, MetricliError, UsageError, WorkerError
from metricli.placement import Placement, cores, placement

__all__ = ["ALONE", "World", "cores", "joined"]

T = TypeVar("T")

PATIENCE = timedelta(hours=1)
"""How long a process waits for the others, who may be saving or scoring; a dead one is noticed at once."""


@dataclass(frozen=True)
class World(Placement):
    """This process among those of the run. Every call below is made by all of them, in the same order."""

    def gather(self, value: T) -> list[T]:
        """What each process gives, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def once(self, make: Callable[[], T]) -> T:
        """What the main process makes, in every process; what it raises is raised in every process.

        Of a failure that is not ours the others learn by a WorkerError that leaves the word to the main one.
        """
        if self.size == 1:
            return make()
        told: list[Any] = [None, None]
        fault: Exception | None = None
        if self.is_main:
            try:
                told = [make(), None]
            except MetricliError as error:
                told = [None, error]
            except Exception as error:
                fault, lost = error, WorkerError(f"process 0 failed: {type(error).__name__}: {error}")
                lost.lost = True
                told = [None, lost]
        dist.broadcast_object_list(told, src=0)
        if fault is not None:
            raise fault
        if told[1] is not None:
            raise told[1]
        made: T = told[0]
        return made

    def require_alike(self, **seen: object) -> None:
        """Refuse to go on where processes, perhaps on several hosts, have read other files; `seen` by name.

        Raises:
            DataError: naming what differs.
        """
        for rank, theirs in enumerate(self.gather(seen)):
            for what in seen:
                if theirs[what] != seen[what]:
                    raise DataError(
                        f"processes {self.rank} and {rank} have read another {what}",
                        hint="give all hosts the same files",
                    )

    def wait(self) -> None:
        """Until every process is here."""
        self.gather(None)


ALONE = World()


@contextmanager
def joined(device: str, gpus: int = 1) -> Iterator[World]:
    """The world of this process, on `device`; within it the processes can talk to each other.

    Several processes are there if a launcher has set its variables; `gpus` alone starts none. They stay in
    touch until they end: to part and meet again at one address is a race.

    Raises:
        UsageError: `gpus` are asked for and no launcher has started them, or the device cannot be shared.
    """
    here = placement()
    world = World(here.rank, here.size, here.local_rank, here.local_size)
    if world.size == 1:
        if gpus > 1:
            raise UsageError(
                f"{gpus} processes are asked for, and this is the only one",
                hint="start them by the command line (metricli ... --gpus N) or by torchrun",
            )
        yield world
        return
    if device == "mps":
        raise UsageError("several processes cannot share the device mps", hint="use --device cpu")
    if device == "cuda":
        if world.local_rank >= torch.cuda.device_count():
            seen = torch.cuda.device_count()
            what = f"process {world.local_rank} of this host has no GPU: {seen} are visible"
            raise UsageError(what, hint="start as many processes as there are GPUs")
        torch.cuda.set_device(world.local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:  # the processes of a host share its cores
        threads = max(1, cores() // world.local_size)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        os.environ.setdefault("MASTER_ADDR", "localhost")
        if "MASTER_PORT" not in os.environ:
            hint = "export MASTER_ADDR and MASTER_PORT before srun; docs/scale.md has a recipe"
            raise UsageError("MASTER_PORT is not set: the processes know no place to meet", hint=hint)
        known = {"RANK": world.rank, "WORLD_SIZE": world.size, "LOCAL_RANK": world.local_rank}
        for name, value in known.items():  # Accelerate knows torchrun's names, not srun's
            os.environ.setdefault(name, str(value))
        dist.init_process_group(backend, rank=world.rank, world_size=world.size, timeout=PATIENCE)
        atexit.register(_part)
    yield world


def _part() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
