"""The lowest bounds of each query seen so far, kept up block by block."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metricli.core.blocks import Side, count_of, less, places_of

if TYPE_CHECKING:
    from metricli.core.scan import Scan

__all__ = ["Listed", "Nearest", "capacity"]

_SIFTED = 2**17  # places for listed scores that are sorted out at a time
_FEW = 2048  # queries that are compressed at a time


def capacity(kept: int) -> int:
    """Places that a query has for `kept` bounds: those, and as many new ones as wait to be sorted out."""
    return kept + max(12, kept // 2)


@dataclass(frozen=True)
class Listed:
    """The pairs of a block whose bound is below the limit of the query; the squared gap of no other is."""

    limit: Tensor
    """(n,)"""
    line: Tensor
    """(p,) of those who ask, sorted; `column` (p,) of the items, and their `bound` (p,)."""
    column: Tensor
    bound: Tensor


class Nearest:
    """For each of the `queries` (n,) the lowest bounds and their gallery rows, with those of its k nearest.

    A reservoir: a bound below the limit of its query is put behind those that are there, and once there is no
    place left, the lowest `kept` of them stay. The new limit is where certainly k items are nearer, or the
    largest that stayed if that is lower; nothing below the limit was ever dropped.
    """

    def __init__(self, scan: Scan, queries: Tensor) -> None:
        self.scan, self.queries = scan, queries
        self.k, self.kept = scan.plan.k, scan.plan.candidates
        self.size = capacity(self.kept)
        num, dtype, device = len(queries), scan.space.bound_dtype, queries.device
        self.values = torch.full((num, self.size), torch.inf, dtype=dtype, device=device)
        self.columns = torch.zeros(num, self.size, dtype=torch.int32, device=device)
        self.limit = torch.full((num,), torch.inf, dtype=dtype, device=device)
        self._used = torch.zeros(num, dtype=torch.int64, device=device)
        self._lock = threading.Lock()

    def lowest(self, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The `kept` lowest bounds (n, kept) of the queries at `places` (n,), infinite for none, their
        gallery rows, and what no bound of any other item is below (n,)."""
        values, order = _of(self.values, places).topk(self.kept, dim=1, largest=False, sorted=False)
        least = torch.minimum(self.limit[places], values.amax(1))
        return values, _of(self.columns, places).gather(1, order).long(), least

    def offer(self, places: Tensor, side: Side) -> Listed | None:
        """Take the scores (n, m) of a block for the queries kept at `places` (n,).

        What was listed for it comes back; None where nothing was, as more than a few could count.

        Few scores can be among the lowest once blocks have been seen: those are listed through the minima of
        groups, which is far cheaper than topk over all.
        """
        scores, columns = side.scores, side.gallery
        num, total = scores.shape
        limit = self.limit[places]
        fresh = bool(limit.isinf().any())
        size = min(side.group, total // (4 * self.k if fresh else self.k))
        if size < 4 or num < 4:
            self._topk(places, side)
            return None
        minima = side.minima(size)
        groups = minima.shape[1]
        if fresh:  # the k-th lowest minimum is no lower than the k-th lowest score
            limit = torch.minimum(limit, self.scan.beyond(self.queries[places], side.reach(minima, self.k)))
        most = side.limit(limit)
        chosen = less(minima, most)
        if 2 * count_of(chosen) > num * groups:
            self._topk(places, side)
            return None
        row, column = side.listed(chosen, size, None, most)
        value = side.bounds(row, column)
        if scores.dtype != value.dtype:  # bounds are lower than their scores told, or not
            kept = places_of(value < _of(limit, row))
            row, column, value = _of(row, kept), _of(column, kept), _of(value, kept)
        if len(row):
            self._append(places, row, _of(columns, column), value)
            if fresh:  # the limit was that of minima
                with self._lock:
                    self._compress(places[self._used[places] >= self.k])
        return Listed(limit, row, column, value)

    def _append(self, places: Tensor, row: Tensor, column: Tensor, value: Tensor) -> None:
        """Put listed scores, sorted by row, behind those that are there, making room if need be."""
        counts = torch.bincount(row, minlength=len(places))
        turn = torch.arange(len(row), device=row.device) - _of(counts.cumsum(0) - counts, row)
        with self._lock:  # a query may be offered scores by several threads, as itself and turned over
            used = self._used[places]
            full = ((used + counts > self.size) & (used > self.kept)).nonzero()[:, 0]
            if len(full):
                self._compress(places[full])
                used[full] = self.kept
            crowded = used + counts > self.size
            at = _of(places * self.size + used, row) + turn
            if bool(crowded.any()):
                fits = ~_of(crowded, row)
                put, rest = places_of(fits), places_of(~fits)
                self._sift(places, crowded, counts, *(_of(each, rest) for each in (row, turn, column, value)))
                at, column, value = _of(at, put), _of(column, put), _of(value, put)
                used, counts, places = used[~crowded], counts[~crowded], places[~crowded]
            self.values.view(-1).scatter_(0, at, value)
            self.columns.view(-1).scatter_(0, at, column.int())
            self._used[places] = used + counts

    def _sift(
        self,
        places: Tensor,
        crowded: Tensor,
        counts: Tensor,
        row: Tensor,
        turn: Tensor,
        column: Tensor,
        value: Tensor,
    ) -> None:
        """Let the lowest stay of what rows have that are listed more than there are places for."""
        order = crowded.cumsum(0) - 1  # among the crowded
        ends = counts[crowded].cumsum(0)
        for part in torch.split(crowded.nonzero()[:, 0], max(1, _SIFTED // int(counts.amax()))):
            first, last = int(order[part[0]]), int(order[part[-1]])
            listed = slice(int(ends[first] - counts[part[0]]), int(ends[last]))
            line, width = _of(order, row[listed]) - first, int(counts[part].amax())
            values = value.new_full((len(part), width), torch.inf)
            items = column.new_zeros(len(part), width)
            values[line, turn[listed]], items[line, turn[listed]] = value[listed], column[listed]
            self._join(places[part], values, items)

    def _compress(self, places: Tensor) -> None:
        """Let the lowest stay."""
        for part in torch.split(places, _FEW) if len(places) else ():
            values, order = _of(self.values, part).topk(self.kept, dim=1, largest=False)
            self.columns[part, : self.kept] = _of(self.columns, part).gather(1, order)
            self._keep(part, values)

    def _topk(self, places: Tensor, side: Side) -> None:
        """The same for scores of which many may count."""
        for some, plain in side.plain(torch.arange(len(places), device=places.device)):
            count = min(self.kept, plain.scores.shape[1])
            lowest = plain.scores.topk(count, dim=1, largest=False, sorted=False)
            with self._lock:
                for part in torch.split(torch.arange(len(some), device=places.device), _FEW):
                    items = side.gallery[lowest.indices[part]]
                    self._join(places[some[part]], lowest.values[part], items)

    def _join(self, places: Tensor, values: Tensor, items: Tensor) -> None:
        """Let the lowest stay of what is there and of the scores (n, m) of more items (n, m)."""
        values = torch.cat([_of(self.values, places), values], 1)
        values, order = values.topk(self.kept, dim=1, largest=False)
        both = torch.cat([_of(self.columns, places), items.int()], 1)
        self.columns[places, : self.kept] = both.gather(1, order)
        self._keep(places, values)

    def _keep(self, places: Tensor, values: Tensor) -> None:
        """`values` (n, kept), ascending."""
        room = 0, self.size - self.kept
        self.values.index_copy_(0, places, torch.nn.functional.pad(values, room, value=float("inf")))
        beyond = self.scan.beyond(self.queries[places], values[:, self.k - 1])
        self.limit[places] = torch.minimum(values[:, -1], beyond)
        self._used[places] = self.kept


def _of(values: Tensor, places: Tensor) -> Tensor:
    """`values[places]`, several times faster for long lists."""
    return values.index_select(0, places)
