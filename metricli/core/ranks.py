"""Ranks of the nearest and the farthest relevant item of each query in its full ranking."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from metricli.core.blocks import Side
from metricli.core.ranking import first_equal_rows
from metricli.core.relevant import Marked
from metricli.core.scan import Scan

__all__ = ["RankCounter"]

_CROWD = 4  # pairs of a query, in the mean, from which on it pays to look for equal ones
_TOGETHER = 2**13  # pairs that are measured at a time


class RankCounter:
    """Counts, block by block, the items before the marked one of each query."""

    def __init__(self, scan: Scan, marked: Marked) -> None:
        self.scan, self.marked = scan, marked
        self.before = torch.zeros_like(marked.row)
        self._low, self._high = scan.space.squares_around(marked.gap)
        self._places = torch.full_like(marked.row, -1)
        there = marked.row >= 0
        self._places[there] = scan.layout.positions[marked.row[there]]
        if scan.coarse is not None:
            scan.coarse.expect(there, self._low, self._high)
        self._lock = threading.Lock()
        self._distinct: tuple[Tensor, Tensor] | None = None
        self._waiting: list[tuple[Tensor, Tensor]] = []  # queries and items that are measured together

    def ranks(self) -> Tensor:
        """(Q,) int64, from 1, once all blocks were counted; 0 for a query without a marked item."""
        self._measure(self._waiting)
        self._waiting = []
        return torch.where(self.marked.row >= 0, self.before + 1, 0)

    def count(self, side: Side, buffer: Tensor) -> None:
        """Take the scores of a block, some queries at a time, by way of `buffer`.

        Below `low` an item is certainly before the marked one, above `high` it is not, and between them it is
        measured. The marked item itself lies between.
        """
        queries, dtype = side.queries, self.scan.space.bound_dtype
        high = _step(self._high[queries], dtype, torch.inf)
        high.masked_fill_(self.marked.row[queries] < 0, -torch.inf)
        asking = (side.lowest < side.limit(high)).nonzero()[:, 0]
        if len(asking) == 0:
            return
        low = _step(self._low[queries] - self.scan.error(queries, side.gallery), dtype, -torch.inf)
        low = torch.minimum(low, high)
        if len(asking) * (4 if side.turned else 2) < len(queries):
            memory = buffer.view(side.scores.dtype)
            for part in torch.split(asking, max(1, len(memory) // (2 * side.scores.shape[1]))):
                some = side.some(part, memory)
                taken = -(-some.scores.nbytes // buffer.itemsize)
                self._count(some, low[part], high[part], buffer[taken:])
        else:
            self._count(side, low, high, buffer)

    def _count(self, side: Side, low: Tensor, high: Tensor, buffer: Tensor) -> None:
        place = self._places[side.queries] - side.low
        known = torch.where((place >= 0) & (place < side.scores.shape[1]), place, -1)
        nearer = torch.zeros_like(known)
        for found in side.compare(low, high, known, buffer.view(side.scores.dtype)):
            nearer += found.below
            if len(found.line):
                self._later(side.queries[found.line], side.gallery[found.column])
            for some, plain in side.plain(found.crowded) if len(found.crowded) else ():
                self._count(plain, low[some], high[some], buffer)
        with self._lock:
            self.before.index_add_(0, side.queries, nearer)

    def _later(self, rows: Tensor, items: Tensor) -> None:
        """Measure the listed pairs (p,), together with others if they are few."""
        with self._lock:
            self._waiting.append((rows, items))
            pairs = self._waiting
            if sum(len(waiting) for waiting, _ in pairs) < _TOGETHER:
                return
            self._waiting = []
        self._measure(pairs)

    def _measure(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Count those of the pairs that come before the marked item of their query."""
        if not pairs:
            return
        rows, items = torch.cat([rows for rows, _ in pairs]), torch.cat([items for _, items in pairs])
        measured_rows, measured_items, back = rows, items, None
        if len(rows) > _CROWD * len(torch.unique(rows)):  # equal rows of the gallery are measured once
            self._distinct = self._distinct or first_equal_rows(
                self.scan.space.gallery, chunk=self.scan.plan.rows
            )
            first, place = self._distinct
            keys, back = torch.unique(rows * len(first) + place[items], return_inverse=True)
            measured_rows, measured_items = keys // len(first), first[keys % len(first)]
        found = self.scan.space.measure(measured_rows, measured_items[:, None], chunk=self.scan.plan.pairs)
        distance = found.distance[:, 0] if back is None else found.distance[back, 0]
        limit = self.marked.distance[rows]
        before = (distance < limit) | ((distance == limit) & (items < self.marked.row[rows]))
        with self._lock:
            self.before.index_add_(0, rows, before.long())


def _step(values: Tensor, dtype: torch.dtype, towards: float) -> Tensor:
    """`values` in `dtype`, moved by two of its steps, so that no rounding is on the wrong side."""
    rounded = values.to(dtype)
    target = torch.full_like(rounded, towards)
    return rounded.nextafter(target).nextafter(target)
