"""Ranks of the nearest and the farthest relevant item of each query in its full ranking."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from metricli.core.blocks import Side, pairs_of, places_of
from metricli.core.nearest import Listed
from metricli.core.ranking import first_equal_rows
from metricli.core.relevant import Marked
from metricli.core.scan import Scan

__all__ = ["RankCounter"]

_CROWD = 4  # pairs of a query, in the mean, from which on it pays to look for equal ones
_TOGETHER = 2**11  # pairs that are measured at a time


class RankCounter:
    """Counts, block by block, the items before each marked one of each query.

    A mark is one of M marked items of one of Q queries; marks (p,) are places in what is kept of all M x Q.
    """

    def __init__(self, scan: Scan, marked: Sequence[Marked]) -> None:
        self.scan, self._shape = scan, (len(marked), len(scan.space.queries))
        self._row = torch.cat([each.row for each in marked])
        self._distance = torch.cat([each.distance for each in marked])
        low, high = scan.space.squares_around(torch.cat([each.gap for each in marked]))
        there = self._row >= 0
        self._low, self._high = low, high.masked_fill_(~there, -torch.inf)
        self._places = torch.full_like(self._row, -1)
        self._places[there] = scan.layout.positions[self._row[there]]
        if scan.coarse is not None:
            for one in zip(*(each.view(self._shape) for each in (there, low, high)), strict=True):
                scan.coarse.expect(*one)
        self.before = torch.zeros_like(self._row)
        self._lock = threading.Lock()
        self._distinct: tuple[Tensor, Tensor] | None = None
        self._waiting: list[tuple[Tensor, Tensor]] = []  # marks and items that are measured together
        self._listed = 0  # how many these are

    def ranks(self) -> Tensor:
        """(M, Q) int64, from 1, once all blocks were counted; 0 for a query without a marked item."""
        self._measure(self._waiting)
        self._waiting, self._listed = [], 0
        return torch.where(self._row >= 0, self.before + 1, 0).view(self._shape)

    def count(self, side: Side, listed: Listed | None, buffer: Tensor) -> None:
        """Take the scores of a block, some queries at a time, by way of `buffer`, or what is `listed` of
        them, where that goes as far as the marked item.

        Below `low` an item is certainly before the marked one, above `high` it is not, and between them it is
        measured. The marked item itself lies between.
        """
        dtype, (kinds, num) = self.scan.space.bound_dtype, self._shape
        marks = side.queries + num * torch.arange(kinds, device=side.queries.device)[:, None]
        high = _step(self._high[marks], dtype, torch.inf)
        asking = side.lowest < side.limit(high)
        if not bool(asking.any()):
            return
        low = _step(self._low[marks] - self.scan.error(side.queries, side.gallery), dtype, -torch.inf)
        low = torch.minimum(low, high)
        if listed is not None:
            told = high <= listed.limit
            self._count_listed(side, listed, marks, low, high.masked_fill(~told, -torch.inf))
            low, high = low.masked_fill_(told, -torch.inf), high.masked_fill_(told, -torch.inf)
            asking &= ~told
        many = asking.sum(1) * (4 if side.turned else 2) >= len(side.queries)
        for kind in many.nonzero()[:, 0].tolist():
            self._count(side, marks[kind], low[kind], high[kind], buffer)
        memory = buffer.view(side.scores.dtype)
        few = torch.stack(pairs_of((asking & ~many[:, None]).T))  # by row
        step = max(1, 3 * len(memory) // (4 * side.scores.shape[1]))
        for part, kind in torch.split(few, step, dim=1) if few.numel() else ():
            some = side.some(part, memory)
            taken = -(-some.scores.nbytes // buffer.itemsize)
            self._count(some, marks[kind, part], low[kind, part], high[kind, part], buffer[taken:])

    def _known(self, side: Side, marks: Tensor) -> Tensor:
        """The column (p,) of each marked item, -1 where it is in another block."""
        place = self._places[marks] - side.low
        return place.masked_fill_(place >= side.scores.shape[1], -1).clamp_(min=-1)

    def _count_listed(self, side: Side, listed: Listed, marks: Tensor, low: Tensor, high: Tensor) -> None:
        """Count what is listed for the marks (M, n) with limits (M, n)."""
        kind, place = pairs_of(listed.bound < high.index_select(1, listed.line))
        mark = kind * len(side.queries) + listed.line.index_select(0, place)  # of those here
        column = listed.column.index_select(0, place)
        before = listed.bound.index_select(0, place) < low.view(-1).index_select(0, mark)
        nearer = torch.bincount(mark[before], minlength=marks.numel())
        left = places_of(~before)
        mark, column = mark[left], column[left]
        left = places_of(column != self._known(side, marks.view(-1)).index_select(0, mark))
        self._add(marks.view(-1), nearer, marks.view(-1)[mark[left]], side.gallery[column[left]])

    def _count(self, side: Side, marks: Tensor, low: Tensor, high: Tensor, buffer: Tensor) -> None:
        """Count the scores of a block for the mark (n,) of each who asks."""
        known = self._known(side, marks)
        for found in side.compare(low, high, known, buffer.view(side.scores.dtype)):
            self._add(marks, found.below, marks[found.line], side.gallery[found.column])
            for some, plain in side.plain(found.crowded) if len(found.crowded) else ():
                self._count(plain, marks[some], low[some], high[some], buffer)

    def _add(self, marks: Tensor, nearer: Tensor, later: Tensor, items: Tensor) -> None:
        """Add what is `nearer` (n,) for the `marks` (n,), and measure the pairs of `later` (p,) and `items`
        (p,), together with others if they are few."""
        with self._lock:
            self.before.index_add_(0, marks, nearer)
            self._waiting.append((later, items))
            self._listed += len(later)
            if self._listed < _TOGETHER:
                return
            pairs, self._waiting, self._listed = self._waiting, [], 0
        self._measure(pairs)

    def _measure(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Count those of the pairs that come before the marked item."""
        if not pairs:
            return
        marks, items = torch.cat([marks for marks, _ in pairs]), torch.cat([items for _, items in pairs])
        rows = marks % self._shape[1]
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
        limit = self._distance[marks]
        before = (distance < limit) | ((distance == limit) & (items < self._row[marks]))
        with self._lock:
            self.before.index_add_(0, marks, before.long())


def _step(values: Tensor, dtype: torch.dtype, towards: float) -> Tensor:
    """`values` in `dtype`, moved by two of its steps, so that no rounding is on the wrong side."""
    rounded = values.to(dtype)
    target = torch.full_like(rounded, towards)
    return rounded.nextafter(target).nextafter(target)
