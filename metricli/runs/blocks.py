"""The rows of a features file in blocks, which a process takes and finishes as a whole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST_BLOCKS = 1024
"""So many that processes get equal shares to a thousandth, where there are as many rows."""
MOST_ROWS = 4096
"""So few that a lost block costs little."""


@dataclass(frozen=True)
class Blocks:
    """Rows `start` to `stop` of a table in blocks of consecutive rows, numbered from 0.

    Their size depends on the number of rows alone, so that any number of processes agrees on them.
    """

    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Rows in all."""
        return self.stop - self.start

    @property
    def size(self) -> int:
        """Rows of a block; the last may have fewer."""
        return min(MOST_ROWS, max(1, self.rows // LEAST_BLOCKS))

    def __len__(self) -> int:
        return -(-self.rows // self.size)

    def span(self, number: int) -> range:
        """The rows of a block."""
        first = self.start + number * self.size
        return range(first, min(first + self.size, self.stop))

    def number(self, row: int) -> int:
        """The block that a row is in."""
        return (row - self.start) // self.size


class RowsOf:
    """The rows of some blocks, one block after the other; no list over all rows."""

    def __init__(self, blocks: Blocks, numbers: NDArray[np.int64]) -> None:
        self.blocks = blocks
        self.numbers = numbers  # rising, so that a shorter block is the last
        short = len(numbers) > 0 and blocks.size - len(blocks.span(int(numbers[-1])))
        self.length = len(numbers) * blocks.size - int(short)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, places: slice) -> list[int]:
        wanted = np.arange(*places.indices(self.length))
        block, inside = np.divmod(wanted, self.blocks.size)
        found: list[int] = (self.blocks.start + self.numbers[block] * self.blocks.size + inside).tolist()
        return found


def shard_of(rows: int, shard: tuple[int, int] | None) -> Blocks:
    """The rows of shard (i, n), 1 <= i <= n: the i-th of n contiguous parts, a row apart at most."""
    i, n = shard or (1, 1)
    return Blocks(rows * (i - 1) // n, rows * i // n)
