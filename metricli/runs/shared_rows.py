"""Matrices of rows that the processes of a host hold together: one file, mapped by each of them."""

from __future__ import annotations

import mmap
import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from metricli.errors import MetricliError, ResourceError
from metricli.runs.processes import World

T = TypeVar("T")

BLOCK = 4096
"""Rows that are copied, or come from other hosts, at a time."""


@dataclass(frozen=True)
class Host:
    """The processes of a run that share the memory of this one."""

    world: World
    ranks: tuple[int, ...]
    """Ascending; the first makes what they share."""

    @staticmethod
    def of(world: World) -> Host:
        """By the names of hosts; two of one name are told apart by where their local ranks begin again."""
        if world.size == 1:
            return Host(world, (0,))
        newest: dict[str, int] = {}
        firsts = []
        for rank, (name, local_rank) in enumerate(world.gather((platform.node(), world.local_rank))):
            if local_rank == 0:
                newest[name] = rank
            firsts.append(newest.setdefault(name, rank))
        own = firsts[world.rank]
        return Host(world, tuple(rank for rank, first in enumerate(firsts) if first == own))

    @property
    def leads(self) -> bool:
        """Whether this process makes what is shared."""
        return self.world.rank == self.ranks[0]

    def part(self, count: int) -> range:
        """This process's part of `count` things that the host's processes divide."""
        place, size = self.ranks.index(self.world.rank), len(self.ranks)
        return range(count * place // size, count * (place + 1) // size)


def agreed(world: World, make: Callable[[], T]) -> T:
    """What this process makes, once all have made theirs; what the first of them raises is raised in all."""
    made: list[T] = []
    error: MetricliError | None = None
    try:
        made.append(make())
    except MetricliError as raised:
        error = raised
    for found in world.gather(error):
        if found is not None:
            raise found
    return made[0]


def to_main(world: World, value: T) -> list[T] | None:
    """What each process gives, by rank, in the main process alone."""
    if world.size == 1:
        return [value]
    values: list[T | None] | None = [None] * world.size if world.is_main else None
    dist.gather_object(value, values)
    return values  # type: ignore[return-value]


def shared_matrix(host: Host, count: int, dim: int, dtype: torch.dtype) -> Tensor:
    """Zeros (count, dim) that every process of the host sees as one; on the CPU.

    The file behind them has its blocks from the start, so that a full disk is an error here and does not kill
    who writes, and has no name any more once all have it open: nothing is left of it, however they end.

    Raises:
        ResourceError: there is no room for it, or a process cannot open it.
    """
    size = count * dim * dtype.itemsize
    if host.world.size == 1 or size == 0:
        return torch.zeros(count, dim, dtype=dtype)
    made: list[str] = []
    try:
        agreed(host.world, lambda: made.append(_reserved(size)) if host.leads else None)
        (path,) = host.world.gather(made)[host.ranks[0]]
        memory = agreed(host.world, lambda: _opened(path, size))
    finally:
        for path in made:
            os.unlink(path)
    return torch.frombuffer(memory, dtype=dtype).view(count, dim)


def _reserved(size: int) -> str:
    folder = tempfile.gettempdir()
    path = ""
    try:
        handle, path = tempfile.mkstemp(prefix="metricli-", dir=folder)
        with os.fdopen(handle, "wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                for start in range(0, size, 2**20):
                    file.write(bytes(min(2**20, size - start)))
    except BaseException as error:
        if path:
            os.unlink(path)
        if not isinstance(error, OSError):
            raise
        raise ResourceError(
            f"{folder!r} has no room for {size / 2**20:.0f} MB of embeddings, which the processes of this "
            f"host share: {error.strerror}",
            hint="free some space there, or set TMPDIR to another folder",
        ) from None
    return path


def _opened(path: str, size: int) -> mmap.mmap:
    try:
        with open(path, "r+b") as file:
            return mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise ResourceError(
            f"cannot open {path!r}, which the processes of this host share: {error.strerror}",
            hint="let TMPDIR be the same folder for all of them",
        ) from None


def share(world: World, count: int) -> range:
    """The rows of this process out of `count`: every `world.size`-th."""
    return range(world.rank, count, world.size)


def complete(host: Host, matrix: Tensor) -> None:
    """Wait until every process has written its `share` of a shared matrix, and take the rows of other hosts.

    These come a block at a time, and one process of each host writes them.
    """
    world = host.world
    if len(host.ranks) == world.size:
        return world.wait()
    step = max(1, BLOCK // world.size)
    away = [rank for rank in range(world.size) if rank not in host.ranks]
    most = len(share(World(0, world.size), len(matrix)))
    for start in range(0, most, step):
        mine = matrix[world.rank :: world.size][start : start + step]
        block = torch.zeros(step, matrix.shape[1], dtype=matrix.dtype)
        block[: len(mine)] = mine
        blocks = [torch.empty_like(block) for _ in range(world.size)]
        dist.all_gather(blocks, block)
        for rank in away if host.leads else ():
            theirs = matrix[rank :: world.size][start : start + step]
            theirs.copy_(blocks[rank][: len(theirs)])
    return world.wait()


def selected(host: Host, source: Tensor, rows: np.ndarray, dtype: torch.dtype) -> Tensor:
    """`source[rows]` (n, D) of ascending `rows` (n,) in `dtype`: a view where they stand side by side.

    Else it is copied: of several processes on the CPU to one matrix for the host, which all fill together.
    """
    beside = len(rows) and rows[-1] - rows[0] == len(rows) - 1
    if beside and source.is_contiguous() and source.dtype == dtype:
        return source[int(rows[0]) : int(rows[-1]) + 1]
    places = torch.from_numpy(rows)
    if host.world.size == 1 or source.device.type != "cpu":
        return source[places.to(source.device)].to(dtype)
    found = shared_matrix(host, len(rows), source.shape[1], dtype)
    own = host.part(len(rows))
    for start in range(own.start, own.stop, BLOCK):
        part = slice(start, min(start + BLOCK, own.stop))
        found[part] = source[places[part]]
    host.world.wait()
    return found
