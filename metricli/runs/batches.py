"""The global batches of an epoch, and this process's slice of each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from metricli.components.dataset import Place
from metricli.specs.kinds import BatchSampler


class ShuffledBatches:
    """Plain shuffling in batches of constant size; the last one is completed from the start of the order.

    Raises:
        ValueError: more images in a batch than there are.
    """

    def __init__(self, rows: int, *, batch_size: int, seed: int) -> None:
        if batch_size > rows:
            raise ValueError(f"a batch of {batch_size} images, and there are {rows}")
        self.rows, self.batch_size, self.seed, self.epoch = rows, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.rows)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield order.take(range(start, start + self.batch_size), mode="wrap").tolist()


class EpochBatches:
    """Deals each global batch of a sampler to the processes, each image with its place in the epoch.

    The slices differ in length by one image at most. The place is counted over the global order, so
    augmentation does not depend on the number of processes.
    """

    def __init__(self, sampler: BatchSampler, *, rank: int = 0, world: int = 1) -> None:
        self.sampler, self.rank, self.world = sampler, rank, world
        self.epoch, self.skip = 0, 0

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """The next iteration is over this epoch, without its first `skip` batches."""
        self.epoch, self.skip = epoch, skip
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[Place]]:
        position = 0
        for number, rows in enumerate(self.sampler):
            if number >= self.skip:
                places = [Place(int(row), self.epoch, position + i) for i, row in enumerate(rows)]
                first, end = (len(places) * r // self.world for r in (self.rank, self.rank + 1))
                yield places[first:end]
            position += len(rows)
